//! estop runs AI-agent tools that are compiled to WebAssembly components, and can stop any of them at any moment.
//!
//! ```
//! # use estop::{Cause, End, Host, Source};
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! # let wasm = estop_tests::guests::path("runaway");
//! let host = Host::builder().build()?;
//! let runaway = host.load(Source::file(wasm)).await?;
//! // A tool that never returns and never looks whether it should.
//! let call = host.agent("support-7").call(&runaway, "spin", serde_json::json!({})).start();
//!
//! call.interrupt(Cause::Operator, "alice");
//! let outcome = call.outcome().await;
//! assert!(matches!(&outcome.end, End::Stopped(stopped) if stopped.actor == "alice"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Code map
//!
//! | ask | look at |
//! | --- | --- |
//! | what is one call, from end to end? | `call.rs`: `drive`, and `settle` for interrupt → rollback → entry |
//! | where do worker, interrupt and commit meet? | `gate.rs`, one atomic word; model-checked in `tests/tests/gate_model.rs` |
//! | where does an interrupt go? | `interrupt.rs`; `interrupt/preempter.rs` finishes it |
//! | what is halted, and stays so? | `interrupt/halts.rs`; `halts/act.rs` stops it; `halts/files.rs` on the disk |
//! | how does a host end? | `shutdown.rs` |
//! | what is counted, and who watches? | `metrics.rs`, `control/metrics.rs`; `control/events.rs`; `trace.rs` |
//! | who can reach the switch from outside? | `control.rs`: `server.rs` answers, `place.rs` finds hosts, `client.rs` asks |
//! | who may ask for what? | `control/rights.rs`, `control/denials.rs`, `control/token.rs` |
//! | who makes room on a socket? | `control/connections.rs`; `control/agents/places.rs` for calls |
//! | who is let in, who waits, who gives way? | `call/room.rs`; `call/room/queue.rs` as plain data |
//! | who calls tools from outside? | `control/agents.rs`, from the shelf of `control/served.rs`; `cli/serve.rs` fills it as `policy.rs` says |
//! | a tool that invokes another one? | `call/child.rs`; `transaction/keys.rs`, `workspace/overlay/nested.rs` for what it writes |
//! | how is an agent's own program stopped? | `call/program.rs`, with the crate `estop-supervise` |
//! | who polls guests? | `workers.rs`, through `call/gated.rs` |
//! | what runs, and who finds it? | `inventory.rs`, without locks |
//! | deadlines, epochs, fuel | `engine.rs` (the ticker), `sandbox.rs` (arming them), `call/meter.rs` (what was used so far) |
//! | what may a guest ask? | `hostcalls/`, one file for each WIT interface |
//! | where is rollback? | `transaction.rs`: dropping it; of files, `workspace.rs` |
//! | what may a call use? | `grants.rs`, `budget.rs`; `policy/` in `estop.toml`; `docs/grants.md` |
//! | who runs programs for tools, and ends them? | `process.rs`: `running.rs` is the host's side, `supervisor.rs` the process beside it; `docs/programs.md` |
//! | how does a request get out, and what of it? | `hostcalls/http.rs`, `http/send.rs`; `docs/http.md` |
//! | how does a folder change all at once? | `workspace/plan.rs` (what), `stage.rs` and `commit.rs` (how); `docs/workspaces.md` |
//! | where is state kept? | `store.rs` (the contract), `store/conformance.rs` (its suite), `store/memory.rs` |
//! | how does it survive? | `store/sqlite/write.rs` (a batch, and a COMMIT that failed), `recover.rs` (hosts that died), `home.rs` |
//! | what is recorded? | `log/entry.rs`; `log/writer.rs` is the committer; `log/alternate.rs` while the log cannot be written |
//! | how is it shown that nothing was changed? | `log/chain.rs`, `log/checkpoint.rs`, `log/verify.rs` |
//! | what does an auditor take along? | `log/export.rs`, `log/bundle.rs` |
//! | how does a component get in? | `call/load.rs`; `tools/compile.rs` compiles, in a process of its own if it may |
//! | what is compiled once? | `tools/cache.rs`; `tools/trusted.rs`, the one place with `unsafe` |
//! | what is let in? | `tools/admission.rs` (bytes), `tools/describe.rs` (descriptions), `tools/schema.rs` (input) |
//! | what does the command do? | `cli/`, one file for each subcommand (`halt.rs`: also `halts` and `lift`); `drill.rs` |
//! | how does the process always end? | `cli/signals.rs`, `cli/watchdog.rs` |
//!
//! # What is deliberately absent
//!
//! - No other way to stop than [`Host::interrupt`] and what calls it. Nothing aborts a task or kills a thread.
//! - No lock that a guest's thread and an interrupt share, and none that a commit and an interrupt share.
//! - No process-wide state: several hosts live in one process and do not know of each other. The library installs no
//!   signal handler of its own, no logger and no panic hook; only the `estop` command does. (Wasmtime installs its trap
//!   handlers, chained to those that were there.)
//! - No call, commit point or program is tried again: what conflicts or fails is told. (A host that serves loads a
//!   component again once halts or files have changed.)

mod agent;
mod budget;
mod call;
#[cfg(feature = "cli")]
pub mod cli;
mod clock;
#[cfg(feature = "control")]
pub mod control;
#[cfg(feature = "control")]
pub mod drill;
mod engine;
mod gate;
mod grants;
mod heartbeat;
mod home;
mod host;
mod hostcalls;
mod ids;
mod interrupt;
mod inventory;
pub mod log;
mod metrics;
mod observer;
#[cfg(feature = "cli")]
mod policy;
mod process;
mod sandbox;
mod secret;
mod shutdown;
pub mod store;
mod sync;
mod tools;
mod trace;
mod transaction;
mod user;
mod workers;
mod workspace;

pub use agent::{AGENT_BYTES_MAX, Agent, DEFAULT_AGENT};
pub use budget::Budget;
pub use call::{
    Attachment, Call, CallBuilder, CallLimits, Commits, Effect, EffectState, End, Failure, LimitsChange, Outcome,
    Output, PRIORITY_DEFAULT, Progress, Stopped,
};
pub use clock::{Clock, SystemClock};
pub use engine::{FUEL_INTERVAL, TICK};
pub use grants::{
    GrantError, Grantee, Grants, HttpGrant, HttpLimits, ProgramGrant, ProgramLimits, Secret, WorkspaceGrant,
};
pub use home::{Home, HomeError};
pub use host::{BuildError, Host, HostBuilder, HostLimits};
pub use hostcalls::http::{HttpResolver, LOOKUPS_MAX, Resolving};
pub use ids::{CallId, HaltId, HomeId, HostId, IdError, InterruptId};
pub use interrupt::halts::{Halt, HaltError, HaltScope};
pub use interrupt::{Cause, Interrupt, Interruption, Reached, Scope};
pub use observer::Observer;
pub use process::{Containment, ProcessSupervisor, process_supervisor};
pub use sandbox::{CallCtx, EffectGuard, TooManyEffects};
pub use secret::SecretError;
pub use shutdown::{HookCut, SHUTDOWN_HOOKS_MAX, SHUTDOWN_LOGGED_WITHIN, SHUTDOWN_RELEASED_WITHIN, Shutdown};
pub use tools::{AdmissionError, CompileChild, Component, Digest, Hints, LoadError, Source, ToolInfo, compile_child};
pub use transaction::{Size, StateLimits};
/// The version that an embedder's interfaces have to be generated with.
pub use wasmtime;
pub use workspace::{CHANGES_MAX, Changes, Decision, FileChange, Shown, WorkspaceError, WorkspaceLimits};
