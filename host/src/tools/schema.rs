//! A tool's JSON Schema, compiled and checked under bounds.
//!
//! Invariant: for every schema that compiled and every input, [`InputSchema::check`] ends after at most
//! [`STEPS_MAX`] steps, in about a second at worst, with at most [`EVALUATION_LEVELS_MAX`] levels on the stack. It
//! runs on a thread of the host, which no epoch interrupts, and both the schema (a tool from anywhere) and the input
//! (an agent's) may be hostile.
//!
//! # How the work is bounded
//! JSON Schema is exponential where a subschema applies others to the same place: `anyOf` of two references to the
//! same thing, 40 times in a row, or a recursive type with two variants that share a property (an expression with
//! `left` in several variants, which is quite ordinary). To refuse all that could be exponential would refuse
//! ordinary recursive enums, and the `jsonschema` crate can neither be counted nor stopped. So the work is divided:
//!
//! - What a keyword says of one value (`type`, `enum`, `pattern`, `minimum`, `required`, …) is checked by
//!   `jsonschema`, one small validator for each subschema. That is linear, with two exceptions: `uniqueItems`, whose
//!   hashes can be made to collide, is checked by `unique.rs`, and a `pattern`, which can cost 30 µs a byte, is charged
//!   by the size of its program.
//! - What a keyword says of other schemas and places (`$ref`, `anyOf`, `properties`, `items`, …) is walked by `walk.rs`;
//!   `explain.rs` then says why something does not match. The result for a shared subschema at a place is remembered,
//!   which makes the walk polynomial, and each step is counted, which bounds it: an input that needs more steps is
//!   refused like an invalid one.
//!
//! # What is not supported
//! References must stay in the document and be JSON pointers (`#/$defs/name`); nothing is ever fetched. Drafts 6, 7,
//! 2019-09 and 2020-12 are known, the last where `$schema` is missing. `format` and `content…` are annotations and
//! check nothing. Patterns have no look-around and no back-references.

mod compile;
mod explain;
mod graph;
#[cfg(test)]
mod tests;
mod unique;
mod walk;

use std::fmt;

use serde_json::Value;
use thiserror::Error;

/// The largest schema that compiles.
pub(crate) const SCHEMA_BYTES_MAX: usize = 64 << 10;
/// Levels of arrays and objects in a schema: what `serde_json` reads at most.
pub(crate) const SCHEMA_LEVELS_MAX: usize = 128;
/// Subschemas in a schema.
pub(crate) const SUBSCHEMAS_MAX: usize = 4_096;
/// The compiled program of one regular expression: `.{0,1000}` is close to it, since a character is four bytes.
pub(crate) const PATTERN_BYTES_MAX: usize = 1 << 20;
/// The compiled programs of all regular expressions of a schema.
pub(crate) const PATTERNS_BYTES_MAX: usize = 4 << 20;
/// What checking one input may cost. A step is one subschema at one place, or as much work: at most about 100 ns.
pub(crate) const STEPS_MAX: u64 = 10_000_000;
/// Subschemas that are being evaluated inside each other, in place or further down the input.
pub(crate) const EVALUATION_LEVELS_MAX: usize = 1_024;
/// Violations that are reported for one input.
pub(crate) const VIOLATIONS_MAX: usize = 8;

const MESSAGE_CHARS_MAX: usize = 240;
const PATH_CHARS_MAX: usize = 240;

/// A schema that inputs can be checked against.
#[derive(Debug)]
pub(crate) struct InputSchema {
    value: Value,
    graph: graph::Graph,
}

/// Why a schema is refused. Places are JSON pointers into the schema.
#[derive(Debug, Error)]
pub(crate) enum SchemaError {
    #[error("the schema has {bytes} bytes, at most {max} are allowed: shorten its descriptions or split the tool")]
    TooLarge { bytes: usize, max: usize },
    #[error("the schema is not JSON with at most {SCHEMA_LEVELS_MAX} levels: {0}")]
    NotJson(String),
    #[error(
        "the schema names `{uri}` as its `$schema`, which is unknown: leave it out, or use draft 6, 7, 2019-09 or 2020-12"
    )]
    UnknownDraft { uri: String },
    #[error("the schema refers to `{reference}` at {place}, which is outside of it: copy that into its `$defs`")]
    OutsideReference { place: String, reference: String },
    #[error("the schema refers to `{reference}` at {place}, which it does not have")]
    MissingReference { place: String, reference: String },
    #[error("the schema uses `{keyword}` at {place}, which is not supported: use `$ref` with `#/$defs/…`")]
    Unsupported { place: String, keyword: &'static str },
    #[error("the schema is not valid at {place}: {message}")]
    Invalid { place: String, message: String },
    #[error(
        "the schema has the pattern `{pattern}` at {place}, which is too large or not a regular expression without look-around and back-references"
    )]
    Pattern { place: String, pattern: String },
    #[error("the schema has {found} {what}, at most {max} are allowed: simplify it")]
    TooMany { what: &'static str, found: usize, max: usize },
    #[error("the schema refers to itself at {place} without going on to a part of the input")]
    Endless { place: String },
}

/// What is wrong with an input, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// A JSON pointer into the input, empty for all of it; shortened where it is very long.
    pub(crate) path: String,
    pub(crate) message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "input" } else { &self.path };
        write!(formatter, "{path}: {}", self.message)
    }
}

impl InputSchema {
    /// Compiles the JSON text of a schema.
    pub(crate) fn compile(text: &str) -> Result<Self, SchemaError> {
        if text.len() > SCHEMA_BYTES_MAX {
            return Err(SchemaError::TooLarge { bytes: text.len(), max: SCHEMA_BYTES_MAX });
        }
        let value: Value = serde_json::from_str(text).map_err(|error| SchemaError::NotJson(error.to_string()))?;
        let graph = compile::compile(&value)?;
        Ok(InputSchema { value, graph })
    }

    /// Checks an input. There is at least one violation, and at most [`VIOLATIONS_MAX`], if it does not match or if
    /// that takes too many steps to find out.
    pub(crate) fn check(&self, input: &Value) -> Result<(), Vec<Violation>> {
        explain::check(&self.graph, input)
    }

    /// The schema as it was given.
    pub(crate) fn value(&self) -> &Value {
        &self.value
    }
}

/// `text`, which can come from a schema or an input, made fit for a line in a terminal, a log, or a model's context.
fn bounded(text: &str, chars_max: usize) -> String {
    let escape = |character: char| {
        let escaped = character.is_control().then(|| character.escape_default());
        let plain = escaped.is_none().then_some(character);
        plain.into_iter().chain(escaped.into_iter().flatten())
    };
    let mut shown: String = text.chars().take(chars_max).flat_map(escape).collect();
    if text.chars().nth(chars_max).is_some() {
        shown.push('…');
    }
    shown
}
