//! What a running tool says to its host, and asks it.
//!
//! Invariant: a tool that was interrupted commits nothing more, whatever it does about it.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::ToolError;
use crate::host::{self, CommitError};
use crate::output::Output;

/// Why a call is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// A person pulled the switch.
    Operator,
    /// A halt that is in force covers the call.
    Halted,
    /// The host is shutting down.
    Shutdown,
    /// The call that invoked this one was stopped.
    Parent,
    /// The time granted to the call is over.
    Deadline,
    /// The fuel granted to the call is used up.
    Fuel,
    /// The memory granted to the call is used up.
    Memory,
    /// Something more urgent needs the room.
    Priority,
    /// The client said so, or dropped its handle.
    Cancelled,
    /// The client's connection is gone.
    Disconnected,
    /// The host is testing its own emergency stop.
    Drill,
}

/// The word that the host's log and command line use.
impl Display for Cause {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Operator => "operator",
            Self::Halted => "halted",
            Self::Shutdown => "shutdown",
            Self::Parent => "parent",
            Self::Deadline => "deadline",
            Self::Fuel => "fuel",
            Self::Memory => "memory",
            Self::Priority => "priority",
            Self::Cancelled => "cancelled",
            Self::Disconnected => "disconnected",
            Self::Drill => "drill",
        })
    }
}

/// The call is being stopped. By `?` it becomes a [`ToolError`] that says so to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted(Cause);

impl Interrupted {
    /// Why the call is being stopped.
    pub fn cause(self) -> Cause {
        self.0
    }
}

impl Display for Interrupted {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "the call was interrupted: {}", self.0)
    }
}

/// Ends the tool in good order when it was interrupted: `checkpoint()?`.
///
/// It makes nothing durable; that is [`commit()`]. A tool that never calls it can be stopped all the same.
///
/// # Errors
///
/// When the call is being stopped. What is left of the grace period is for tidying up.
pub fn checkpoint() -> Result<(), Interrupted> {
    interrupted().map_or(Ok(()), |cause| Err(Interrupted(cause)))
}

/// The cause, once somebody has asked the call to stop.
pub fn interrupted() -> Option<Cause> {
    host::interrupted()
}

/// Tells how far the work is, for people who watch. Lossy: only the newest is kept.
///
/// `done` and `total` count in whatever unit the tool works in.
pub fn progress(done: u64, total: impl Into<Option<u64>>, message: impl Display) {
    host::progress(done, total.into(), &message.to_string());
}

/// Makes everything written so far durable, all at once, and begins a new transaction.
///
/// Not needed at the end: a tool that returns `Ok` commits.
///
/// # Errors
///
/// Nothing was made durable, and the code says why:
/// - `interrupted`: the call is being stopped;
/// - `conflict` (retryable): a key that the call has read was changed meanwhile. No later commit of
///   this call succeeds either: give the error back, and the caller starts over;
/// - `store`: the store could not say that the commit is durable; or the call was invoked by another
///   tool, whose commit makes durable what this one has written.
pub fn commit() -> Result<(), ToolError> {
    host::commit().map_err(|error| match error {
        CommitError::Interrupted => ToolError::interrupted(),
        CommitError::Conflict(message) => ToolError::failed("conflict", message).retryable(),
        CommitError::Store(message) => ToolError::failed("store", message),
    })
}

/// Runs another tool and waits for its answer: `component/tool`, or the tool's name alone where that says
/// which.
///
/// It runs for the same agent, with what it is granted itself and at most what this call was granted and
/// has left. It sees what this call has written; what it writes becomes a part of this call's transaction
/// when it succeeds, and is gone otherwise. It is stopped with this call.
///
/// ```
/// use estop_tool::testing::Run;
/// use estop_tool::{ToolError, invoke};
///
/// /// Tell how long the first line of a note is.
/// #[estop_tool::tool(read_only)]
/// fn first_line_bytes() -> Result<usize, ToolError> {
///     let note: String = invoke("memory/recall", &"todo")?;
///     Ok(note.lines().next().unwrap_or_default().len())
/// }
///
/// let run = Run::new().tool("memory/recall", |title: String| Ok(format!("# {title}\nmilk")));
/// assert_eq!(run.call(first_line_bytes).result, Ok(6));
/// ```
///
/// # Errors
///
/// What the tool fails with, with its code; `invalid-input`, if it does not take this input; and why it
/// could not be run or has not answered: `no-such-tool`, `ambiguous-tool`, `refused`, `no-room`
/// (retryable), `too-deep`, `stopped`, `trapped`, `conflict`. `interrupted`, if this call is being stopped.
/// `bad-answer`: the answer is not a `T`.
pub fn invoke<T: DeserializeOwned>(tool: &str, input: &(impl Serialize + ?Sized)) -> Result<T, ToolError> {
    invoke_output(tool, input).map(|output| output.into_parts().0)
}

/// As [`invoke()`], with what is attached to the answer.
///
/// # Errors
///
/// As [`invoke()`].
pub fn invoke_output<T: DeserializeOwned>(
    tool: &str,
    input: &(impl Serialize + ?Sized),
) -> Result<Output<T>, ToolError> {
    let input = serde_json::to_string(input)
        .map_err(|why| ToolError::invalid_input(format!("the input for `{tool}` cannot be written as JSON: {why}")))?;
    let answer = host::invoke(tool, &input)?;
    let value = serde_json::from_str(&answer.json)
        .map_err(|why| ToolError::failed("bad-answer", format!("`{tool}` answered something unexpected: {why}")))?;
    Ok(Output::of_parts(value, answer.attachments))
}
