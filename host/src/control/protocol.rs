//! What is said over the sockets: the same words as in the log and on the command line.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::HostKind;
use super::place::Mode;
use crate::call::{Commits, Effect};
use crate::ids::{CallId, HaltId, HostId};
use crate::interrupt::halts::{Halt, HaltScope};
use crate::interrupt::{Cause, Reached};
use crate::log::rfc3339_us;
use crate::tools::{Digest, ToolInfo};
use crate::transaction::Size;

/// What a socket is for. Whoever may connect to it has the role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// List, look, watch, stop, halt and drill; nothing else.
    Operator,
    /// Lift, load and unload tools, and look.
    Admin,
    /// Call tools, stop one's own calls, and learn of halts.
    Agent,
}

impl Role {
    /// The socket's name.
    pub fn socket(self) -> &'static str {
        match self {
            Role::Operator => "operator.sock",
            Role::Admin => "admin.sock",
            Role::Agent => "agent.sock",
        }
    }

    /// The word in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Operator => "operator",
            Role::Admin => "admin",
            Role::Agent => "agent",
        }
    }

    /// Whose socket it is in service mode.
    pub const fn group(self) -> &'static str {
        match self {
            Role::Operator => "estop-operators",
            Role::Admin => "estop-admins",
            Role::Agent => "estop-agents",
        }
    }
}

/// Everything about one host: `GET /v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The host.
    pub host: HostInfo,
    /// What runs or waits there.
    pub calls: Vec<CallInfo>,
    /// Calls that are not in the list, because it would be too long.
    pub calls_left_out: usize,
    /// Halts that are in force there.
    pub halts: Vec<Halt>,
    /// Why nobody knows what else is halted. Then everything is.
    pub halts_unreadable: Option<String>,
}

/// A host process, or one host of several in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostInfo {
    /// The host.
    pub host: HostId,
    /// Its process.
    pub pid: u32,
    /// What kind of process that is.
    pub kind: HostKind,
    /// The user that it runs as.
    pub user: String,
    /// Whether that user is one of its own, apart from those who ask.
    #[serde(default)]
    pub mode: Mode,
    /// Where its state is, if it is anywhere.
    pub home: Option<PathBuf>,
    /// Of estop.
    pub version: String,
    /// Since when.
    #[serde(with = "rfc3339_us")]
    pub since: SystemTime,
    /// Calls that run or wait.
    pub calls: usize,
    /// Why no call may start, if none may.
    pub refuses: Option<String>,
}

/// Where a call stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallPhase {
    /// It has not been given room yet.
    Queued,
    /// Its guest may be on a processor.
    Running,
    /// A commit is on its way to the disk.
    Committing,
    /// It was told to stop and may tidy up.
    Warned,
    /// It was stopped and is not released.
    Stopping,
    /// It was stopped some time ago and is still not released.
    Unconfirmed,
}

impl CallPhase {
    /// All of them, in order.
    pub const ALL: [CallPhase; 6] = [
        CallPhase::Queued,
        CallPhase::Running,
        CallPhase::Committing,
        CallPhase::Warned,
        CallPhase::Stopping,
        CallPhase::Unconfirmed,
    ];

    /// The word in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            CallPhase::Queued => "queued",
            CallPhase::Running => "running",
            CallPhase::Committing => "committing",
            CallPhase::Warned => "warned",
            CallPhase::Stopping => "stopping",
            CallPhase::Unconfirmed => "unconfirmed",
        }
    }
}

/// A call that runs or waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CallInfo {
    /// The call.
    pub call: CallId,
    /// Where.
    pub host: HostId,
    /// On whose behalf.
    pub agent: String,
    /// The user whose process it is.
    pub owner: String,
    /// Which tool.
    pub tool: String,
    /// The component's digest.
    pub component: Option<Digest>,
    /// The call that invoked it.
    pub parent: Option<CallId>,
    /// How urgent it is; higher is more.
    pub priority: u8,
    /// Where it stands.
    pub state: CallPhase,
    /// Since it was registered (µs).
    pub age_us: u64,
    /// Until its deadline, once it has started (µs).
    pub time_left_us: Option<u64>,
    /// Units of fuel that it was granted.
    pub fuel_granted: u64,
    /// Of those, what it has used: of a guest that computes, at most two [`FUEL_INTERVAL`](crate::FUEL_INTERVAL)s less than
    /// that. See [`Outcome::fuel`](crate::Outcome::fuel) for what is known at its end.
    pub fuel_used: u64,
    /// The rest.
    pub fuel_left: u64,
    /// Memory that it has (bytes).
    pub memory_bytes: u64,
    /// The function of the host that it is in.
    pub host_call: Option<String>,
    /// Written and not committed.
    pub uncommitted: Size,
    /// What it has committed.
    pub commits: Commits,
    /// What has left the sandbox.
    pub effects: Vec<Effect>,
    /// How far the tool says it is.
    pub progress: Option<ProgressInfo>,
    /// Calls that it has invoked and that run.
    pub children: usize,
    /// Host interfaces beyond what everybody has.
    pub grants: Vec<String>,
    /// Who stopped it and why, if somebody did.
    pub stopped: Option<StoppedBy>,
    /// What it is, if it is an agent's own program and no tool.
    #[serde(default)]
    pub program: Option<ProgramInfo>,
    /// Programs that it has started and that are not gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<ProcessInfo>,
}

/// A program that a tool has started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Of its supervisor, which is its parent, once that was started. Killing that kills the program.
    pub supervisor: Option<u32>,
    /// As it was started, cut to a bound.
    pub command: String,
    /// What keeps it from being verified that nothing of it is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// An agent's own program under supervision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProgramInfo {
    /// Its first process, once it has been started.
    pub pid: Option<u32>,
    /// As it was started, cut to a bound.
    pub command: String,
    /// It was sent SIGTERM, and is killed when its grace is over.
    pub in_grace: bool,
    /// Processes that the last attempt to kill its tree has not ended, up to a bound.
    pub left: Vec<LeftProcess>,
    /// What kept it from being verified that the tree is gone.
    pub trouble: Option<String>,
}

/// A process that could not be ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeftProcess {
    /// Which.
    pub pid: u32,
    /// Its name, as the kernel cuts it.
    pub name: String,
    /// Its state, as in proc(5); `D` is uninterruptible sleep.
    pub state: char,
}

/// Everything about one call: `GET /v1/calls/{call}`. With `?input=true` also what it was asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shown {
    /// As in lists.
    #[serde(flatten)]
    pub call: CallInfo,
    /// What it was asked, once that has been checked.
    pub input: Option<InputInfo>,
}

/// The input of a call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InputInfo {
    /// Its length as JSON text.
    pub bytes: u64,
    /// SHA-256 of the text, in hexadecimal digits.
    pub sha256: String,
    /// The text, if it was asked for: at most its first mebibyte.
    pub text: Option<String>,
}

/// See [`Progress`](crate::Progress).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProgressInfo {
    /// Steps done.
    pub done: u64,
    /// Of how many, if that is known.
    pub total: Option<u64>,
    /// In the words of the tool.
    pub message: String,
    /// Since it said so (µs).
    pub ago_us: u64,
}

/// Who stopped a call that is not released yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoppedBy {
    /// Why.
    pub cause: Cause,
    /// Who.
    pub actor: String,
    /// In the words of the actor.
    pub reason: String,
    /// Since then (µs).
    pub ago_us: u64,
}

/// `POST /v1/stop`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Which.
    pub call: CallId,
    /// In the words of whoever asks.
    #[serde(default)]
    pub reason: String,
    /// Time to tidy up (µs).
    #[serde(default)]
    pub grace_us: u64,
}

/// `POST /v1/halt`. An empty body halts everything.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HaltRequest {
    /// What.
    #[serde(default = "everything")]
    pub scope: HaltScope,
    /// In the words of whoever asks.
    #[serde(default)]
    pub reason: String,
    /// If it was latched elsewhere already.
    #[serde(default)]
    pub halt: Option<HaltId>,
    /// Never to be lifted: what it covers is retired.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub permanent: bool,
}

fn everything() -> HaltScope {
    HaltScope::All
}

/// What a stop or a halt has reached in one host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The host.
    pub host: HostId,
    /// Its process.
    pub pid: u32,
    /// The halt that was asked for, if one was. It is in force, unless `not_on_disk` says otherwise.
    pub halt: Option<Halt>,
    /// Why the halt will not outlive the host's process, if it will not; or why it is not in force, because too many are.
    pub not_on_disk: Option<String>,
    /// From the request until every guest that was reached was halted (µs), if all were.
    pub halted_us: Option<u64>,
    /// What was reached.
    pub calls: Vec<ReachedCall>,
}

/// One call that a stop or a halt has reached.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReachedCall {
    /// The call.
    pub call: CallId,
    /// On whose behalf.
    pub agent: String,
    /// Which tool.
    pub tool: String,
    /// Where it stood.
    pub reached: Reached,
    /// From the interrupt until no guest instruction could run (µs).
    pub halted_us: Option<u64>,
    /// From the interrupt until it was released (µs). None: it was not when this was written.
    pub released_us: Option<u64>,
    /// What had left the sandbox.
    pub effects: Vec<Effect>,
    /// What it is, if it is an agent's own program and no tool.
    #[serde(default)]
    pub program: Option<ProgramInfo>,
    /// Programs that it has started and that are not gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<ProcessInfo>,
}

/// `POST /v1/lift`, on the admin's socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiftRequest {
    /// Which.
    pub halt: HaltId,
    /// Why.
    pub reason: String,
}

/// What agents can call: `GET /v1/tools`, on the agents' socket.
#[derive(Clone, Debug, Serialize)]
pub struct ToolList {
    /// The host.
    pub host: HostId,
    /// Its components, by name.
    pub components: Vec<ServedComponent>,
    /// Why the configuration that is in force is not the one on the disk, if it is not.
    pub trouble: Option<String>,
}

/// One component that agents can call.
#[derive(Clone, Debug, Serialize)]
pub struct ServedComponent {
    /// The name whose state it has.
    pub component: String,
    /// Of what is served. None: nothing is, because of `error`.
    pub digest: Option<Digest>,
    /// Why what is on the disk is not what is served, if it is not.
    pub error: Option<String>,
    /// As the component describes them.
    pub tools: Vec<ToolInfo>,
}

/// `POST /v1/load`, on the admin's socket: the files are looked at now, and what was taken away is put back. The answer is a
/// [`ToolList`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadRequest {
    /// What to put back, by its name in the configuration; everything, if nothing is said.
    #[serde(default)]
    pub component: Option<String>,
}

/// `POST /v1/unload`, on the admin's socket: takes a component away, and stops its calls, until it is loaded again or the
/// host is started again.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnloadRequest {
    /// Its name in the configuration.
    pub component: String,
    /// Why; whoever calls its tools is told.
    pub reason: String,
}

/// What is answered.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct UnloadAnswer {
    /// Calls that were stopped.
    pub stopped: usize,
}

/// `POST /v1/call`, on the agents' socket. Limits and priority can only be lower than those of the host. When too many calls
/// are waited for, of this user or of all, the answer is 503, and nothing was begun.
///
/// The answer is a stream of server-sent events: `call` ([`CallBegun`]) at once, `progress`
/// ([`Progress`](crate::Progress)) now and then, and at last `outcome`
/// ([`Outcome::to_json`](crate::Outcome::to_json)). Closing the connection before that stops the call, cause
/// `disconnected`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallRequest {
    /// Which tool.
    pub tool: String,
    /// Of which component, if several have one of this name.
    #[serde(default)]
    pub component: Option<String>,
    /// Its input.
    #[serde(default = "no_input")]
    pub input: Value,
    /// On whose behalf.
    #[serde(default)]
    pub agent: Option<String>,
    /// How long the guest may run (µs).
    #[serde(default)]
    pub deadline_us: Option<u64>,
    /// What it gets to tidy up after that (µs).
    #[serde(default)]
    pub grace_us: Option<u64>,
    /// Units of fuel.
    #[serde(default)]
    pub fuel: Option<u64>,
    /// Linear memory (bytes).
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// How urgent it is, from 0 to 255; higher is more.
    #[serde(default)]
    pub priority: Option<u8>,
}

fn no_input() -> Value {
    Value::Object(serde_json::Map::new())
}

/// The first event of a call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CallBegun {
    /// The call.
    pub call: CallId,
    /// Whoever has it may stop the call.
    pub token: String,
}

/// `POST /v1/stop`, on the agents' socket: stops a call with the token that was given when it was made, cause `cancelled`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CancelRequest {
    /// Which.
    pub call: CallId,
    /// As the call's first event had it.
    #[serde(default)]
    pub token: String,
    /// In the words of whoever asks.
    #[serde(default)]
    pub reason: String,
}

/// An event `halted` of `GET /v1/agents/{agent}/halted`, on the agents' socket: at once, and at every change. For an
/// agent's own program, in any language. When the stream ends the host is gone: nobody can tell until one answers again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaltedNow {
    /// Whether a halt covers the agent: then its own program has to stop as well.
    pub halted: bool,
    /// By whom, when and why.
    pub why: Option<String>,
}

/// What is answered instead, with a status of 4xx or 5xx.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// What is wrong and what to do.
    pub error: String,
}
