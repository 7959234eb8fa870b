//! Why a tool gives no answer.

use std::error::Error;
use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::call::Interrupted;

/// The longest code, in bytes.
const MAX_CODE_BYTES: usize = 64;

/// Why a tool gives no answer. Whatever the tool has written since the last commit point is discarded.
///
/// Every [`std::error::Error`] becomes one by `?`, with the code `error`. For that to be possible a
/// `ToolError` is itself no `std::error::Error`.
///
/// ```
/// use estop_tool::ToolError;
///
/// fn age(text: &str) -> Result<u8, ToolError> {
///     let age: u8 = text.trim().parse()?;
///     if age < 18 {
///         return Err(ToolError::failed("too-young", format!("{age} is under 18")));
///     }
///     Ok(age)
/// }
///
/// assert_eq!(age("x").unwrap_err().code(), "error");
/// assert_eq!(age("17").unwrap_err().code(), "too-young");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ToolError(Reason);

/// As `failure` in the contract.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reason {
    InvalidInput(String),
    Failed {
        code: String,
        message: String,
        retryable: bool,
        /// One JSON document.
        data: Option<String>,
    },
    Interrupted,
}

impl ToolError {
    /// The tool ran and could not do what was asked.
    ///
    /// `code` is short and stable, for programs: up to 64 of `a-z`, `0-9` and `-`. Anything else in it
    /// is changed to fit (`Not Found` becomes `not-found`). `message` is for people and models: what
    /// happened, to what, and what to do.
    pub fn failed(code: impl AsRef<str>, message: impl Display) -> Self {
        Self(Reason::Failed {
            code: fitting_code(code.as_ref()),
            message: message.to_string(),
            retryable: false,
            data: None,
        })
    }

    /// The input cannot be used, although it matches the schema. `message` says which part and why.
    pub fn invalid_input(message: impl Display) -> Self {
        Self(Reason::InvalidInput(message.to_string()))
    }

    /// The same call can succeed later. Changes nothing unless the tool [failed](Self::failed).
    #[must_use]
    pub fn retryable(mut self) -> Self {
        if let Reason::Failed { retryable, .. } = &mut self.0 {
            *retryable = true;
        }
        self
    }

    /// Adds something for programs. Changes nothing unless the tool [failed](Self::failed).
    ///
    /// What cannot be written as JSON is replaced by a string that says why.
    #[must_use]
    pub fn data(mut self, value: impl Serialize) -> Self {
        if let Reason::Failed { data, .. } = &mut self.0 {
            let json = serde_json::to_string(&value)
                .unwrap_or_else(|why| serde_json::Value::from(format!("no JSON: {why}")).to_string());
            *data = Some(json);
        }
        self
    }

    /// The code, `invalid-input` or `interrupted`.
    pub fn code(&self) -> &str {
        match &self.0 {
            Reason::Failed { code, .. } => code,
            Reason::InvalidInput(_) => "invalid-input",
            Reason::Interrupted => "interrupted",
        }
    }

    /// What is told to people and models.
    pub fn message(&self) -> &str {
        match &self.0 {
            Reason::Failed { message, .. } | Reason::InvalidInput(message) => message,
            Reason::Interrupted => "the call was interrupted",
        }
    }

    /// Whether the same call can succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self.0, Reason::Failed { retryable: true, .. })
    }

    /// Whether the tool ended because the call was interrupted.
    pub fn is_interrupted(&self) -> bool {
        self.0 == Reason::Interrupted
    }

    /// What [`data`](Self::data) added: one JSON document.
    pub fn json_data(&self) -> Option<&str> {
        match &self.0 {
            Reason::Failed { data, .. } => data.as_deref(),
            Reason::InvalidInput(_) | Reason::Interrupted => None,
        }
    }

    pub(crate) fn interrupted() -> Self {
        Self(Reason::Interrupted)
    }

    /// What a tool that was invoked has failed with.
    #[cfg(target_arch = "wasm32")]
    pub(crate) fn told(reason: Reason) -> Self {
        Self(reason)
    }

    /// What crosses to the host.
    #[cfg(target_arch = "wasm32")]
    pub(crate) fn into_reason(self) -> Reason {
        self.0
    }
}

/// `code: message`, as in a log line.
impl Display for ToolError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code(), self.message())
    }
}

impl From<Interrupted> for ToolError {
    fn from(_: Interrupted) -> Self {
        Self::interrupted()
    }
}

/// The message is that of the error and of all its sources, the code is `error`.
impl<E: Error> From<E> for ToolError {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::failed("error", message)
    }
}

/// The contract allows `[a-z0-9-]{1,64}` only.
fn fitting_code(wanted: &str) -> String {
    let code: String = wanted
        .bytes()
        .take(MAX_CODE_BYTES)
        .map(|byte| match byte.to_ascii_lowercase() {
            byte @ (b'a'..=b'z' | b'0'..=b'9') => char::from(byte),
            _ => '-',
        })
        .collect();
    if code.is_empty() { "error".to_owned() } else { code }
}

#[cfg(test)]
mod tests {
    use std::num::ParseIntError;

    use super::*;

    #[derive(Debug)]
    struct BadPage(ParseIntError);

    impl Display for BadPage {
        fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
            f.write_str("bad page")
        }
    }

    impl Error for BadPage {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn an_error_keeps_the_messages_of_its_sources() {
        let error = ToolError::from(BadPage("x".parse::<u8>().unwrap_err()));
        assert_eq!(error.to_string(), "error: bad page: invalid digit found in string");
        assert!(!error.is_retryable());
    }

    #[test]
    fn a_code_is_made_to_fit() {
        assert_eq!(ToolError::failed("no-such-key", "").code(), "no-such-key");
        assert_eq!(ToolError::failed("Not Found!", "").code(), "not-found-");
        assert_eq!(ToolError::failed("", "").code(), "error");
        assert_eq!(ToolError::failed("ä".repeat(100), "").code(), "-".repeat(MAX_CODE_BYTES));
    }

    #[test]
    fn retryable_and_data_belong_to_failures_only() {
        let failed = ToolError::failed("busy", "later").retryable().data([1, 2]);
        assert!(failed.is_retryable());
        assert_eq!(failed.json_data(), Some("[1,2]"));
        let invalid = ToolError::invalid_input("`page` is 0").retryable().data([1, 2]);
        assert!(!invalid.is_retryable());
        assert_eq!(invalid.json_data(), None);
    }

    #[test]
    fn data_that_is_no_json_says_why() {
        let no_json = std::collections::BTreeMap::from([((1, 2), 3)]);
        let error = ToolError::failed("x", "").data(no_json);
        assert_eq!(error.json_data(), Some(r#""no JSON: key must be a string""#));
    }
}
