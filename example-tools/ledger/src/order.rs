//! What a transfer is asked to be.
//!
//! Invariant: a [`Name`], an [`Amount`] or a [`Memo`] that exists is within its bounds. What is not is
//! refused with the input and by its place in it, before anything is read.

use std::fmt::{self, Display, Formatter};

use estop_tool::ToolError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest name of an account or a batch, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 64;
/// The longest memo, in bytes.
const MAX_MEMO_BYTES: usize = 256;

/// A name of 1 to 64 of the characters `a-z`, `A-Z`, `0-9`, `.`, `_`, `:` and `-`.
// No `/`: keys are made of names and numbers with a slash between.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(format!("a name of {} bytes; it can have from 1 to {MAX_NAME_BYTES}", name.len()));
        }
        let is_allowed = |char: &char| char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | ':' | '-');
        match name.chars().find(|char| !is_allowed(char)) {
            Some(char) => Err(format!("{char:?} in the name {name:?}; use a-z, A-Z, 0-9, `.`, `_`, `:` and `-`")),
            None => Ok(Self(name)),
        }
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl Display for Name {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How much is moved, in cents: 1 or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "i64", into = "i64")]
pub struct Amount(i64);

impl Amount {
    pub(crate) fn cents(self) -> i64 {
        self.0
    }
}

impl TryFrom<i64> for Amount {
    type Error = String;

    fn try_from(cents: i64) -> Result<Self, String> {
        if cents < 1 { Err(format!("{cents} cents; a transfer moves 1 or more")) } else { Ok(Self(cents)) }
    }
}

impl From<Amount> for i64 {
    fn from(amount: Amount) -> Self {
        amount.0
    }
}

/// What the transfer is for, in up to 256 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Memo(String);

impl TryFrom<String> for Memo {
    type Error = String;

    fn try_from(memo: String) -> Result<Self, String> {
        if memo.len() > MAX_MEMO_BYTES {
            return Err(format!("a memo of {} bytes; it can have up to {MAX_MEMO_BYTES}", memo.len()));
        }
        Ok(Self(memo))
    }
}

impl From<Memo> for String {
    fn from(memo: Memo) -> Self {
        memo.0
    }
}

/// A transfer to be made.
// It is the journal's entry as well, and a batch's digest is made of its JSON: a change of the fields
// or of their order is a change of what is stored.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// The account that pays.
    pub(crate) from: Name,
    /// The account that is paid.
    pub(crate) to: Name,
    pub(crate) cents: Amount,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memo: Option<Memo>,
}

impl Order {
    /// What can be told without a look at the accounts.
    pub(crate) fn check(&self) -> Result<(), ToolError> {
        if self.from == self.to {
            let message = format!("`{}` cannot transfer to itself; `from` and `to` must be two accounts", self.from);
            return Err(ToolError::failed("same-account", message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(json: &str) -> Result<Order, String> {
        serde_json::from_str(json).map_err(|why| why.to_string())
    }

    #[test]
    fn an_order_is_the_json_it_came_from() {
        for json in [
            r#"{"from":"ada","to":"bob","cents":1}"#,
            r#"{"from":"cash:main.2","to":"bob_x-1","cents":9223372036854775807,"memo":"größe 🛑"}"#,
        ] {
            assert_eq!(serde_json::to_string(&order(json).unwrap()).unwrap(), json);
        }
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        let memo = "x".repeat(MAX_MEMO_BYTES + 1);
        for (json, why) in [
            (r#"{"from":"","to":"b","cents":1}"#.to_owned(), "a name of 0 bytes; it can have from 1 to 64"),
            (format!(r#"{{"from":"{long}","to":"b","cents":1}}"#), "a name of 65 bytes; it can have from 1 to 64"),
            (r#"{"from":"a/1","to":"b","cents":1}"#.to_owned(), "'/' in the name \"a/1\"; use a-z"),
            (r#"{"from":"a","to":"b","cents":0}"#.to_owned(), "0 cents; a transfer moves 1 or more"),
            (r#"{"from":"a","to":"b","cents":-5}"#.to_owned(), "-5 cents; a transfer moves 1 or more"),
            (format!(r#"{{"from":"a","to":"b","cents":1,"memo":"{memo}"}}"#), "a memo of 257 bytes"),
        ] {
            let error = order(&json).unwrap_err();
            assert!(error.starts_with(why), "{error}");
        }
    }
}
