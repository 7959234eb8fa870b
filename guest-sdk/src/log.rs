//! Log lines, by `wasi:logging`. The host decides which are kept and where; they are no part of the
//! answer and survive when the call is stopped.

use std::fmt::Display;

use crate::host;

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Each step.
    Trace,
    /// What helps to find a mistake in the tool.
    Debug,
    /// What happened.
    Info,
    /// Something is odd and the tool goes on.
    Warn,
    /// Something failed.
    Error,
    /// The tool cannot work at all.
    Critical,
}

/// Writes one line. `context` says which part of the tool speaks and may be empty.
pub fn log(level: Level, context: &str, message: impl Display) {
    host::log(level, context, &message.to_string());
}

/// Writes one line at [`Level::Trace`].
pub fn trace(message: impl Display) {
    log(Level::Trace, "", message);
}

/// Writes one line at [`Level::Debug`].
pub fn debug(message: impl Display) {
    log(Level::Debug, "", message);
}

/// Writes one line at [`Level::Info`].
pub fn info(message: impl Display) {
    log(Level::Info, "", message);
}

/// Writes one line at [`Level::Warn`].
pub fn warn(message: impl Display) {
    log(Level::Warn, "", message);
}

/// Writes one line at [`Level::Error`].
pub fn error(message: impl Display) {
    log(Level::Error, "", message);
}

/// Writes one line at [`Level::Critical`].
pub fn critical(message: impl Display) {
    log(Level::Critical, "", message);
}
