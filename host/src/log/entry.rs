//! What one entry of the log says.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::call::outcome::micros;
use crate::call::{CallState, Commits, Effect, End, Outcome};
use crate::ids::{CallId, HaltId, HostId, InterruptId};
use crate::interrupt::halts::{Halt, HaltScope};
use crate::interrupt::{Cause, Delivered, Reached, Scope};
use crate::process::Containment;
use crate::shutdown::HookCut;
use crate::tools::Digest;
use crate::transaction::Size;

/// An interrupt's entry names at most this many of the calls that it reached, and counts them all.
pub(crate) const CALLS_NAMED_MAX: usize = 1000;

/// While more records than this wait to be written, an interrupt's entry counts the calls and names none.
pub(crate) const RECORDS_NAMING_MAX: usize = 1000;

/// One record of the audit log. A store adds what ties it to the others: the number of the line and the hash of the one
/// before it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// When; written as RFC 3339, UTC, microseconds.
    #[serde(with = "rfc3339_us")]
    pub at: SystemTime,
    /// The host that wrote it.
    pub host: HostId,
    /// What happened.
    #[serde(flatten)]
    pub kind: EntryKind,
}

/// What happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EntryKind {
    /// A call's guest was started; its end was not in the same batch.
    Start {
        /// Which call.
        call: CallId,
        /// On whose behalf.
        #[serde(with = "text")]
        agent: Arc<str>,
        /// Which tool.
        #[serde(with = "text")]
        tool: Arc<str>,
        /// The component's digest.
        component: Option<Digest>,
        /// The call that invoked it.
        parent: Option<CallId>,
    },
    /// A transaction became durable. Written with it, in one database transaction.
    Commit {
        /// Which call.
        call: CallId,
        /// On whose behalf.
        #[serde(with = "text")]
        agent: Arc<str>,
        /// Which tool.
        #[serde(with = "text")]
        tool: Arc<str>,
        /// Number of this commit within the call, from one.
        point: u64,
        /// How much.
        #[serde(flatten)]
        size: Size,
    },
    /// A call has ended.
    End(Box<EndEntry>),
    /// Somebody stopped something.
    Interrupt {
        /// What the ends of the calls refer to.
        interrupt: InterruptId,
        /// What was to be stopped.
        scope: Scope,
        /// Why.
        cause: Cause,
        /// Who.
        actor: String,
        /// In the words of the actor.
        reason: String,
        /// Time to tidy up (µs).
        grace_us: u64,
        /// How many calls were in the scope.
        reached: u64,
        /// Which, up to a bound, and where each stood.
        calls: Vec<(CallId, Reached)>,
        /// The halt that it is for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        halt: Option<HaltId>,
    },
    /// Something was halted: stopped, and it stays so until the halt is lifted.
    Halt {
        /// Which.
        halt: HaltId,
        /// What it covers.
        scope: HaltScope,
        /// Who.
        actor: String,
        /// In the words of the actor.
        reason: String,
        /// Since when it is in force.
        #[serde(with = "rfc3339_us")]
        since: SystemTime,
        /// Whether it is on the disk. Otherwise it is in force in this host's process only.
        latched: bool,
        /// It is never lifted: what it covers is retired.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        permanent: bool,
        /// Whether it holds for the whole machine.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        machine: bool,
    },
    /// A halt was lifted. Nothing resumes.
    Lift {
        /// Which.
        halt: HaltId,
        /// What it covered.
        scope: HaltScope,
        /// Who lifted it.
        actor: String,
        /// Why.
        reason: String,
    },
    /// A call was not allowed to start.
    Refusal {
        /// Which call.
        call: CallId,
        /// On whose behalf.
        #[serde(with = "text")]
        agent: Arc<str>,
        /// Which tool.
        #[serde(with = "text")]
        tool: Arc<str>,
        /// The call that invoked it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent: Option<CallId>,
        /// Why.
        why: String,
    },
    /// Somebody asked for what is not theirs to ask for.
    Denied {
        /// What was asked for.
        verb: Cow<'static, str>,
        /// Who asked.
        actor: String,
        /// Of whom the socket is that was asked: `operator`, `admin` or `agent`.
        role: Cow<'static, str>,
        /// Why it was not done.
        why: String,
        /// How often, if it was too often to be entered one by one.
        times: u64,
    },
    /// Refusals that were too many to be entered one by one.
    Refusals {
        /// How many.
        count: u64,
        /// Why, of the last of them.
        why: String,
    },
    /// There was no room for this many entries.
    Lost {
        /// How many.
        entries: u64,
    },
    /// A host process has opened the store.
    Opened {
        /// The process.
        pid: u32,
        /// Of estop.
        version: Cow<'static, str>,
    },
    /// A host process has closed the store, with nothing left to enter.
    Closed,
    /// A host was shut down, and not everything came to its end within its bound.
    Cut {
        /// Calls that were stopped and not released.
        unconfirmed: u64,
        /// Which, up to a bound.
        calls: Vec<CallId>,
        /// Hooks of the shutdown that were left behind.
        hooks: Vec<HookCut>,
    },
    /// A host process ended without closing the store.
    Died {
        /// Which host.
        died: HostId,
        /// Its process.
        pid: u32,
        /// Calls that ended with it, each with an entry of its own.
        calls: u64,
    },
    /// A call ended because its host's process did: whatever it had not committed is gone.
    CallDied {
        /// Which call.
        call: CallId,
        /// On whose behalf.
        #[serde(with = "text")]
        agent: Arc<str>,
        /// Which tool.
        #[serde(with = "text")]
        tool: Arc<str>,
        /// The host whose process ended.
        died: HostId,
        /// What it had committed before.
        commits: Commits,
    },
    /// Whether a commit is durable whose end nobody could tell when it was made.
    Resolved {
        /// Which call.
        call: CallId,
        /// Number of the commit within the call.
        point: u64,
        /// Whether it is.
        durable: bool,
    },
    /// A host process was killed, because it did not answer to a halt.
    Killed {
        /// The process.
        pid: u32,
        /// The halt that it did not answer to.
        halt: HaltId,
        /// Who had it killed.
        actor: String,
    },
    /// The host has tested its own emergency stop while it ran, or was asked to and did not.
    Drill(Box<super::Drilled>),
    /// An admin has taken a component away, and its calls were stopped.
    Unload {
        /// Its name.
        name: String,
        /// Its digest, if it was loaded.
        component: Option<Digest>,
        /// Who.
        actor: String,
        /// In the words of the actor.
        reason: String,
    },
    /// An admin wants the files to be looked at, and what was taken away to be put back. What is loaded then has entries of
    /// its own.
    Load {
        /// Its name; all of them, if there is none.
        name: Option<String>,
        /// Who.
        actor: String,
    },
    /// The log could not be written for a while.
    Gap {
        /// When the first write failed.
        #[serde(with = "rfc3339_us")]
        since: SystemTime,
        /// Why, of the last failure.
        why: String,
        /// Interrupts that went to the alternate sink meanwhile.
        alternate: u64,
    },
    /// What a host that died had written to its alternate sink while the log could not be written.
    Alternate {
        /// The host that wrote it.
        died: HostId,
        /// The entry as it stands there.
        entry: Value,
    },
    /// A signature over everything before this entry.
    Checkpoint(super::checkpoint::Checkpoint),
    /// From here on checkpoints are signed by another key.
    KeyRotated(super::checkpoint::Rotation),
    /// The oldest entries were removed, up to a checkpoint, after they had been exported.
    Pruned(super::checkpoint::Pruning),
    /// A file of the cache was not what this home had put there; the component was compiled anew.
    Cache {
        /// The component's digest.
        component: Digest,
        /// What was wrong with the file.
        why: String,
    },
    /// An entry of a newer version of estop.
    #[serde(other)]
    Unknown,
}

/// How a call ended. See [`Outcome`]. Most of what may be missing is missing in most entries, and is then not written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndEntry {
    /// Which call.
    pub call: CallId,
    /// On whose behalf.
    #[serde(with = "text")]
    pub agent: Arc<str>,
    /// Which tool.
    #[serde(with = "text")]
    pub tool: Arc<str>,
    /// The component's digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub component: Option<Digest>,
    /// The call that invoked it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<CallId>,
    /// The start is told by this entry: there is none of its own.
    pub with_start: bool,
    /// `completed`, `failed`, `invalid-input`, `conflict`, `stopped`, `trapped` or `refused`.
    pub status: Cow<'static, str>,
    /// The tool's code, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Why it was stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// Who stopped it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// In the words of the actor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The entry of the interrupt that stopped it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interrupt: Option<InterruptId>,
    /// What became durable.
    pub commits: Commits,
    /// What it has handed over to the call that invoked it, if that was so and it has completed: it is durable with a
    /// commit of that one, and only then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged: Option<Size>,
    /// What was written and is gone.
    pub discarded: Size,
    /// What cannot be taken back.
    pub effects: Vec<Effect>,
    /// The weakest of what the programs were contained by that it has started, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subprocesses: Option<Containment>,
    /// Consumed by the guest.
    pub fuel: u64,
    /// From the start of the guest (µs).
    pub elapsed_us: f64,
    /// From the interrupt until no guest instruction could run (µs).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub halted_us: Option<f64>,
    /// From the interrupt until the store was dropped (µs).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub released_us: Option<f64>,
}

impl Entry {
    pub(crate) fn new(at_ns: u64, host: HostId, kind: EntryKind) -> Self {
        Self { at: time(at_ns), host, kind }
    }

    /// Which commit of which call this is the entry of, if of any.
    pub(crate) fn commit_point(&self) -> Option<(CallId, u64)> {
        match &self.kind {
            EntryKind::Commit { call, point, .. } => Some((*call, *point)),
            _ => None,
        }
    }

    /// As one JSON object.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }
}

impl EntryKind {
    pub(crate) fn started(call: &CallState) -> Self {
        EntryKind::Start {
            call: call.id,
            agent: Arc::clone(&call.agent),
            tool: Arc::clone(&call.tool),
            component: call.component(),
            parent: call.parent.as_ref().map(|parent| parent.id),
        }
    }

    pub(crate) fn committed(call: &CallState) -> Self {
        EntryKind::Commit {
            call: call.id,
            agent: Arc::clone(&call.agent),
            tool: Arc::clone(&call.tool),
            point: call.commits.points() + 1,
            size: call.commits.pending(),
        }
    }

    pub(crate) fn ended(call: &CallState, outcome: &Outcome) -> Self {
        if let End::Refused(why) = &outcome.end {
            return EntryKind::Refusal {
                call: call.id,
                agent: Arc::clone(&call.agent),
                tool: Arc::clone(&call.tool),
                parent: call.parent.as_ref().map(|parent| parent.id),
                why: why.clone(),
            };
        }
        let stopped = outcome.end.stopped();
        EntryKind::End(Box::new(EndEntry {
            call: call.id,
            agent: Arc::clone(&outcome.agent),
            tool: Arc::clone(&outcome.tool),
            component: outcome.component,
            parent: call.parent.as_ref().map(|parent| parent.id),
            // The writer knows whether the start has an entry of its own.
            with_start: call.has_started(),
            status: outcome.end.status().into(),
            code: match &outcome.end {
                End::Failed(failure) => Some(failure.code.clone()),
                _ => None,
            },
            cause: stopped.map(|s| s.cause),
            actor: stopped.map(|s| s.actor.clone()),
            reason: stopped.map(|s| s.reason.clone()),
            interrupt: stopped.and(call.interrupted()).map(|delivered| delivered.id),
            commits: outcome.commits,
            merged: outcome.merged,
            discarded: outcome.discarded,
            effects: outcome.effects.clone(),
            subprocesses: outcome.subprocesses,
            fuel: outcome.fuel,
            elapsed_us: micros(outcome.elapsed),
            halted_us: stopped.map(|s| micros(s.halted)),
            released_us: stopped.map(|s| micros(s.released)),
        }))
    }

    pub(crate) fn halted(halt: &Halt, latched: bool) -> Self {
        let Halt { halt, scope, actor, reason, at, permanent, machine } = halt.clone();
        EntryKind::Halt { halt, scope, actor, reason, since: at, latched, permanent, machine }
    }

    pub(crate) fn interrupted(delivered: &Delivered, reached: usize, calls: &[(CallId, Reached)]) -> Self {
        let interrupt = &delivered.interrupt;
        EntryKind::Interrupt {
            interrupt: delivered.id,
            scope: delivered.scope.clone(),
            cause: interrupt.cause,
            actor: interrupt.actor.clone(),
            reason: interrupt.reason.clone(),
            grace_us: u64::try_from(interrupt.grace.as_micros()).unwrap_or(u64::MAX),
            reached: reached as u64,
            calls: calls.to_vec(),
            halt: interrupt.halt,
        }
    }
}

/// A time of the wall clock from what the log's queue holds.
pub(crate) fn time(at_ns: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(at_ns)
}

mod text {
    use super::{Arc, Cow, Deserialize};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
        Ok(Cow::<'de, str>::deserialize(deserializer)?.into())
    }
}

pub(crate) mod rfc3339_us {
    use super::{Cow, Deserialize, SystemTime};
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_micros(*at))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)
    }
}
