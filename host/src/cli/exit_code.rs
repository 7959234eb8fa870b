//! Exit codes: what a script can rely on.

use std::process::ExitCode as ProcessExitCode;

use super::{printable, say};
use crate::{Cause, LoadError};

/// At the end of `estop --help`.
pub(super) const HELP: &str = "\
Exit codes:
   0 completed            10 stopped: operator      16 stopped: memory
   1 the host failed*     11 stopped: halted        17 stopped: priority
   2 usage                12 stopped: shutdown      18 stopped: cancelled
   3 the tool failed      13 stopped: parent        19 stopped: disconnected
   4 invalid input        14 stopped: deadline      20 stopped: drill
   5 trapped              15 stopped: fuel
   6 refused
   7 conflict
   8 unconfirmed: a stop was not seen to end, is not kept or reached nobody; or a drill failed
   * or a log does not verify

Environment:
   ESTOP_HOME=DIR              where state, log and keys are kept
   ESTOP_LOG=estop::log=info   every entry of the log, on standard error
   ESTOP_LOG=estop::tool=info  what tools log, on standard error";

/// How the command ended. `estop --help` lists the codes; the numbers are part of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// It did what it was asked to.
    Completed = 0,
    /// The host failed, or something around it.
    HostFailed = 1,
    /// The command line cannot be understood.
    Usage = 2,
    /// The tool ran and could not do what was asked.
    ToolFailed = 3,
    /// The input is not JSON or does not fit the tool.
    InvalidInput = 4,
    /// The guest broke a rule.
    Trapped = 5,
    /// It was not allowed to start.
    Refused = 6,
    /// Somebody else changed what the call had read.
    Conflict = 7,
    /// A stop could not be confirmed in time.
    Unconfirmed = 8,
    /// Stopped, cause `operator`.
    Operator = 10,
    /// Stopped, cause `halted`.
    Halted = 11,
    /// Stopped, cause `shutdown`.
    Shutdown = 12,
    /// Stopped, cause `parent`.
    Parent = 13,
    /// Stopped, cause `deadline`.
    Deadline = 14,
    /// Stopped, cause `fuel`.
    Fuel = 15,
    /// Stopped, cause `memory`.
    Memory = 16,
    /// Stopped, cause `priority`.
    Priority = 17,
    /// Stopped, cause `cancelled`.
    Cancelled = 18,
    /// Stopped, cause `disconnected`.
    Disconnected = 19,
    /// Stopped, cause `drill`.
    Drill = 20,
}

impl From<ExitCode> for ProcessExitCode {
    fn from(code: ExitCode) -> Self {
        ProcessExitCode::from(code as u8)
    }
}

impl From<Cause> for ExitCode {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Operator => ExitCode::Operator,
            Cause::Halted => ExitCode::Halted,
            Cause::Shutdown => ExitCode::Shutdown,
            Cause::Parent => ExitCode::Parent,
            Cause::Deadline => ExitCode::Deadline,
            Cause::Fuel => ExitCode::Fuel,
            Cause::Memory => ExitCode::Memory,
            Cause::Priority => ExitCode::Priority,
            Cause::Cancelled => ExitCode::Cancelled,
            Cause::Disconnected => ExitCode::Disconnected,
            Cause::Drill => ExitCode::Drill,
        }
    }
}

/// An error with an exit code of its own; others are failures of the host.
#[derive(Debug)]
pub(super) struct WithCode {
    pub(super) code: ExitCode,
    pub(super) message: String,
}

impl std::fmt::Display for WithCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for WithCode {}

/// An error of the command line.
pub(super) fn usage(message: impl Into<String>) -> anyhow::Error {
    WithCode { code: ExitCode::Usage, message: message.into() }.into()
}

/// Says what happened, and which code tells it.
pub(super) fn report(error: &anyhow::Error) -> ExitCode {
    say(&format!("estop: {}", printable(&format!("{error:#}"))));
    if let Some(with_code) = error.downcast_ref::<WithCode>() {
        return with_code.code;
    }
    match error.downcast_ref::<LoadError>() {
        Some(LoadError::Read { .. } | LoadError::Closing) | None => ExitCode::HostFailed,
        Some(LoadError::Stopped { cause, .. }) => (*cause).into(),
        // It is not something that may run here.
        Some(_) => ExitCode::Refused,
    }
}
