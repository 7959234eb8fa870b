//! What is said over the sockets: the same words as in the log and on the command line.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::HostKind;
use crate::call::{Commits, Effect};
use crate::ids::{CallId, HaltId, HostId};
use crate::interrupt::halts::{Halt, HaltScope};
use crate::interrupt::{Cause, Reached};
use crate::log::rfc3339_us;
use crate::tools::Digest;
use crate::transaction::Size;

/// What a socket is for. Whoever may connect to it has the role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// List, look, stop and halt; nothing else.
    Operator,
    /// Lift.
    Admin,
}

impl Role {
    /// The socket's name.
    pub fn socket(self) -> &'static str {
        match self {
            Role::Operator => "operator.sock",
            Role::Admin => "admin.sock",
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
    /// Where it stands.
    pub state: CallPhase,
    /// Since it was registered (µs).
    pub age_us: u64,
    /// Until its deadline, once it has started (µs).
    pub time_left_us: Option<u64>,
    /// What it was granted. How much of it is used is known when the call has ended: until then it is in a register of
    /// the processor.
    pub fuel_granted: u64,
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
    /// The halt that is in force now, if one was asked for.
    pub halt: Option<Halt>,
    /// Why the halt will not outlive the host's process, if it will not.
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

/// What is answered instead, with a status of 4xx or 5xx.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// What is wrong and what to do.
    pub error: String,
}
