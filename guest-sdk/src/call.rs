//! What a running tool says to its host, and asks it.
//!
//! Invariant: a tool that was interrupted commits nothing more, whatever it does about it.

use std::fmt::{self, Display, Formatter};

use crate::error::ToolError;
use crate::host::{self, CommitError};

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
/// - `store`: the store could not say that the commit is durable.
pub fn commit() -> Result<(), ToolError> {
    host::commit().map_err(|error| match error {
        CommitError::Interrupted => ToolError::interrupted(),
        CommitError::Conflict(message) => ToolError::failed("conflict", message).retryable(),
        CommitError::Store(message) => ToolError::failed("store", message),
    })
}
