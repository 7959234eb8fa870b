//! estop runs AI-agent tools that are compiled to WebAssembly components, and can stop any of them at any moment.

mod agent;
mod call;
#[cfg(feature = "cli")]
pub mod cli;
mod clock;
#[cfg(feature = "cli")]
pub mod drill;
mod engine;
mod gate;
mod host;
mod hostcalls;
mod interrupt;
mod inventory;
pub mod log;
mod observer;
mod sandbox;
pub mod store;
mod sync;
mod tools;
mod transaction;
mod workers;

pub use agent::{AGENT_BYTES_MAX, Agent, DEFAULT_AGENT};
pub use call::{
    Attachment, Call, CallBuilder, CallId, CallLimits, Commits, Effect, EffectState, End, Failure, Outcome, Output,
    Progress, Stopped,
};
pub use clock::{Clock, SystemClock};
pub use engine::{FUEL_INTERVAL, TICK};
pub use host::{BuildError, Host, HostBuilder, HostLimits};
pub use interrupt::{Cause, Interrupt, Interruption, Reached, Scope};
pub use observer::Observer;
pub use sandbox::{CallCtx, EffectGuard, TooManyEffects};
pub use tools::{AdmissionError, Component, Digest, Hints, LoadError, Source, ToolInfo};
pub use transaction::{Size, StateLimits};
/// The version that an embedder's interfaces have to be generated with.
pub use wasmtime;
