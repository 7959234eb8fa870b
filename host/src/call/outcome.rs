//! How a call ended, told completely: what it answered or why it did not, what it committed, what was discarded, and
//! what it did that nobody can take back.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::CallState;
use crate::hostcalls::bindings::estop::tool::types;
use crate::hostcalls::bindings::exports::estop::tool::tool as wit;
use crate::ids::CallId;
use crate::interrupt::{Cause, cut};
use crate::process::Containment;
use crate::tools::Digest;
use crate::transaction::Size;

/// Length of a tool's error code (bytes); the rest is cut.
const CODE_BYTES_MAX: usize = 64;
/// Length of a tool's error message (bytes); the rest is cut.
const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// How one call ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which call.
    pub call: CallId,
    /// On whose behalf.
    pub agent: Arc<str>,
    /// The tool that was asked for, whether or not it exists.
    pub tool: Arc<str>,
    /// The component's digest, if the call got as far as having one.
    pub component: Option<Digest>,
    /// What it answered, or why it did not.
    pub end: End,
    /// What became durable.
    pub commits: Commits,
    /// What a call that another one has invoked has written and handed over to that one, whose commit makes it durable;
    /// `None`, if it has not completed, or was not invoked by another call.
    pub merged: Option<Size>,
    /// What was written and is gone, with what calls that it had invoked have handed over.
    pub discarded: Size,
    /// What the call did outside its transaction.
    pub effects: Vec<Effect>,
    /// The weakest of what the programs were contained by that the call has started; `None` if it has started none.
    pub subprocesses: Option<Containment>,
    /// Consumed by the guest, and by the calls that it has invoked. Exact and repeatable for a call that ended by itself;
    /// for one that was stopped, exact to
    /// [`FUEL_INTERVAL`](crate::FUEL_INTERVAL).
    pub fuel: u64,
    /// From the start of the guest to here; waiting for room is not in it.
    pub elapsed: Duration,
    /// The newest of what the guest wrote to its standard error, cut to a bound.
    pub stderr: String,
}

/// What a call answered, or why it did not.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// The tool succeeded, and everything it wrote is committed.
    Completed(Output),
    /// The tool ran and could not do what was asked, or its commit was refused.
    Failed(Failure),
    /// The input is not JSON, does not match the tool's schema, or was rejected by the tool. Names the place.
    InvalidInput(String),
    /// Something the call had read was changed by someone else meanwhile; nothing was applied. Try again.
    Conflict(String),
    /// It was interrupted.
    Stopped(Stopped),
    /// The guest broke a rule of its machine, or a host function panicked.
    Trapped(String),
    /// It was not allowed to start.
    Refused(String),
}

/// What a tool answers when it has done its work.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// One JSON document.
    pub json: Value,
    /// Binary data beside it.
    pub attachments: Vec<Attachment>,
}

/// Binary data beside the output of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// As the tool calls it: not a path, never use it as one.
    pub name: String,
    /// RFC 6838, for example `image/png`; the tool's claim.
    pub media_type: String,
    /// The bytes.
    pub data: Vec<u8>,
}

/// Why a tool could not do what was asked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failure {
    /// Short and stable, for programs. Codes that the host itself uses: `quota`, `output`, `store`, `workspace`,
    /// `not-carried-out`, `declined`, `commit-unknown`.
    pub code: String,
    /// For people and models.
    pub message: String,
    /// Whether the same call can succeed later.
    pub retryable: bool,
    /// More for programs.
    pub data: Option<Value>,
}

/// Who stopped a call, why, and how long it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Why.
    pub cause: Cause,
    /// Who.
    pub actor: String,
    /// In the words of the actor.
    pub reason: String,
    /// From the interrupt until no guest instruction could run.
    pub halted: Duration,
    /// From the interrupt until the store was dropped.
    pub released: Duration,
}

/// What a call made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commits {
    /// Commit points, the successful end included, that read or wrote something.
    pub points: u64,
    /// Keys written or removed.
    pub writes: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Files changed, and names that were made, moved or removed in workspaces.
    #[serde(default, skip_serializing_if = "crate::transaction::is_zero")]
    pub files: u64,
    /// Bytes of changed files.
    #[serde(default, skip_serializing_if = "crate::transaction::is_zero")]
    pub file_bytes: u64,
    /// The store could not say whether the last commit is durable. It is counted neither here nor as discarded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unknown: bool,
}

/// Something that left the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effect {
    /// As the host function named it.
    pub name: String,
    /// The call that did it, if that is one which the call has invoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<CallId>,
    /// Whether it is known to have happened.
    pub state: EffectState,
}

/// What is known about an effect. There is no "rolled back".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EffectState {
    /// It happened.
    Performed,
    /// It was begun, and nobody knows how it ended.
    Unknown,
}

impl End {
    /// The word for it in JSON, in the log and on the command line.
    pub fn status(&self) -> &'static str {
        match self {
            End::Completed(_) => "completed",
            End::Failed(_) => "failed",
            End::InvalidInput(_) => "invalid-input",
            End::Conflict(_) => "conflict",
            End::Stopped(_) => "stopped",
            End::Trapped(_) => "trapped",
            End::Refused(_) => "refused",
        }
    }

    /// What went wrong, for people; `None` if nothing did or if it was stopped.
    pub fn error(&self) -> Option<&str> {
        match self {
            End::Completed(_) | End::Stopped(_) => None,
            End::Failed(failure) => Some(&failure.message),
            End::InvalidInput(m) | End::Conflict(m) | End::Trapped(m) | End::Refused(m) => Some(m),
        }
    }

    /// Who stopped it and why, if it was stopped.
    pub fn stopped(&self) -> Option<&Stopped> {
        match self {
            End::Stopped(stopped) => Some(stopped),
            _ => None,
        }
    }
}

impl Outcome {
    /// The output, if the call completed.
    pub fn output(&self) -> Option<&Value> {
        match &self.end {
            End::Completed(output) => Some(&output.json),
            _ => None,
        }
    }

    /// One JSON object with every key present, as `estop run --json` prints it. Attachments are named, not included.
    pub fn to_json(&self) -> Value {
        let stopped = self.end.stopped();
        let error = match &self.end {
            End::Failed(failure) => serde_json::to_value(failure).unwrap_or(Value::Null),
            end => end.error().map_or(Value::Null, |message| json!({ "message": message })),
        };
        json!({
            "call": self.call.to_string(),
            "agent": &*self.agent,
            "tool": &*self.tool,
            "component": self.component.map(|digest| digest.to_string()),
            "status": self.end.status(),
            "output": self.output(),
            "attachments": self.attachments(),
            "error": error,
            "cause": stopped.map(|s| s.cause.as_str()),
            "actor": stopped.map(|s| s.actor.as_str()),
            "reason": stopped.map(|s| s.reason.as_str()),
            "commits": self.commits,
            "merged": self.merged,
            "discarded": self.discarded,
            "effects": self.effects,
            "subprocesses": self.subprocesses.map(Containment::word),
            "fuel": self.fuel,
            "elapsed_us": micros(self.elapsed),
            "halted_us": stopped.map(|s| micros(s.halted)),
            "released_us": stopped.map(|s| micros(s.released)),
        })
    }

    fn attachments(&self) -> Vec<Value> {
        let End::Completed(output) = &self.end else {
            return Vec::new();
        };
        let named = |a: &Attachment| json!({ "name": a.name, "media_type": a.media_type, "bytes": a.data.len() });
        output.attachments.iter().map(named).collect()
    }
}

/// What the guest answered, as JSON; or why that cannot be.
pub(super) fn output(output: wit::Output, bytes_max: usize) -> Result<Output, End> {
    let attached = output.attachments.iter().map(|a| a.name.len() + a.media_type.len() + a.data.len());
    let bytes = output.json.len() + attached.sum::<usize>();
    if bytes > bytes_max {
        return Err(bad_output(format!("the tool's output has {bytes} bytes; the limit is {bytes_max}")));
    }
    let json = serde_json::from_str(&output.json)
        .map_err(|error| bad_output(format!("the tool's output is not one JSON document: {error}")))?;
    let attachment = |a: types::Attachment| Attachment { name: a.name, media_type: a.media_type, data: a.data };
    Ok(Output { json, attachments: output.attachments.into_iter().map(attachment).collect() })
}

fn bad_output(message: String) -> End {
    End::Failed(Failure { code: "output".into(), message, retryable: false, data: None })
}

/// Why the tool could not do what was asked. Its words are cut: they go into entries and to people.
pub(super) fn failure(failure: wit::Failure, data_bytes_max: usize) -> End {
    match failure {
        wit::Failure::InvalidInput(message) => End::InvalidInput(short(message, MESSAGE_BYTES_MAX)),
        wit::Failure::Failed(failed) if failed.data.as_ref().is_some_and(|data| data.len() > data_bytes_max) => {
            bad_output(format!("the tool failed, and its data are larger than {data_bytes_max} bytes"))
        }
        wit::Failure::Failed(failed) => End::Failed(Failure {
            code: short(failed.code, CODE_BYTES_MAX),
            message: short(failed.message, MESSAGE_BYTES_MAX),
            retryable: failed.retryable,
            // What is not JSON is told as the text that it is.
            data: failed.data.map(|data| serde_json::from_str(&data).unwrap_or(Value::String(data))),
        }),
        // Nobody had interrupted it: then the gate would have said so.
        wit::Failure::Interrupted => End::Failed(Failure {
            code: "interrupted".into(),
            message: "the tool says that it was interrupted, and nobody had".into(),
            retryable: true,
            data: None,
        }),
    }
}

fn short(mut text: String, bytes_max: usize) -> String {
    cut(&mut text, bytes_max);
    text
}

/// The guest broke a rule.
pub(super) fn trapped(error: &wasmtime::Error, stderr: &str) -> End {
    if let Some(exit) = error.downcast_ref::<wasmtime_wasi::I32Exit>() {
        return End::Trapped(format!("the tool exited with status {} instead of answering", exit.0));
    }
    // Wasmtime does not export the type of this error.
    if error.root_cause().to_string().contains("fuel allocated for hostcalls has been exhausted") {
        let message =
            "more was passed between the tool and the host at once than the call's limit for a transfer allows";
        return bad_output(message.into());
    }
    let said = stderr.trim();
    if said.is_empty() {
        End::Trapped(error.root_cause().to_string())
    } else {
        End::Trapped(format!("{}; the tool's standard error ends with: {said}", error.root_cause()))
    }
}

impl Outcome {
    /// Of a call that never had a sandbox.
    pub(super) fn unstarted(call: &CallState, end: End) -> Self {
        Self {
            call: call.id,
            agent: Arc::clone(&call.agent),
            tool: Arc::clone(&call.tool),
            component: call.component(),
            end,
            commits: Commits::default(),
            merged: None,
            discarded: Size::default(),
            effects: Vec::new(),
            subprocesses: None,
            fuel: 0,
            elapsed: Duration::ZERO,
            stderr: String::new(),
        }
    }
}

/// Microseconds to a tenth: halting a suspended call takes less than one.
pub(crate) fn micros(duration: Duration) -> f64 {
    (duration.as_nanos() as f64 / 100.0).round() / 10.0
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}
