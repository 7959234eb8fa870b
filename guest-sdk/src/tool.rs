//! What a tool is to the component that exports it.
//!
//! Invariant: an input reaches a tool's function only after it was parsed completely, and an answer
//! leaves only when it is one JSON document.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::ToolError;
use crate::output::{Answer, Output};

/// One operation that an agent can call. [`macro@crate::tool`] implements it.
#[diagnostic::on_unimplemented(
    message = "this is not a tool",
    label = "not a tool",
    note = "put `#[estop_tool::tool]` on the function, and name the function here"
)]
pub trait Tool {
    /// `[a-zA-Z0-9_-]{1,64}`, unique in the component.
    const NAME: &'static str;
    /// By default that of the crate.
    const VERSION: &'static str;
    /// What the model reads to choose the tool.
    const DESCRIPTION: &'static str;
    /// What a caller may assume.
    const HINTS: Hints;
    /// What the function takes.
    type Input: DeserializeOwned + JsonSchema;
    /// What the function returns.
    type Returned: Returned;

    /// Calls the function.
    fn run(input: Self::Input) -> Self::Returned;
}

/// What a caller may assume of a tool, as in the Model Context Protocol. Nothing is assumed by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// It changes nothing.
    pub read_only: bool,
    /// What it changes may be lost; otherwise it only adds.
    pub destructive: bool,
    /// Calling it again with the same input changes nothing more.
    pub idempotent: bool,
    /// It deals with things outside its own state, such as the web.
    pub open_world: bool,
}

/// What a tool's function may return: `Result<T, ToolError>`, or `Result<Output<T>, ToolError>` where
/// it has attachments.
#[diagnostic::on_unimplemented(
    message = "a tool cannot return `{Self}`",
    label = "not what a tool returns",
    note = "a tool returns `Result<T, ToolError>` or `Result<Output<T>, ToolError>`",
    note = "`T` needs `#[derive(serde::Serialize, schemars::JsonSchema)]`"
)]
pub trait Returned {
    /// What the JSON output is made of.
    type Value: Serialize + JsonSchema;

    /// The value and its attachments.
    ///
    /// # Errors
    ///
    /// What the function gave.
    fn into_output(self) -> Result<Output<Self::Value>, ToolError>;
}

impl<T: Serialize + JsonSchema> Returned for Result<T, ToolError> {
    type Value = T;

    fn into_output(self) -> Result<Output<T>, ToolError> {
        self.map(Output::new)
    }
}

impl<T: Serialize + JsonSchema> Returned for Result<Output<T>, ToolError> {
    type Value = T;

    fn into_output(self) -> Self {
        self
    }
}

/// The input of a tool whose function takes no argument: `{}`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(description = "No input.")]
pub struct NoInput {}

/// A type that stands for all tools of a component.
pub trait ToolSet {
    /// In the order in which they are listed. No name occurs twice.
    const TOOLS: &'static [Entry];
}

/// One tool, without its types.
pub struct Entry {
    /// Of the tool.
    pub name: &'static str,
    /// Everything a caller learns of it.
    pub describe: fn() -> Description,
    /// Calls it with JSON.
    pub call: fn(&str) -> Result<Answer, ToolError>,
}

impl Entry {
    /// The entry of the tool `T`.
    pub const fn of<T: Tool>() -> Self {
        Self { name: T::NAME, describe: describe::<T>, call: call_json::<T> }
    }
}

/// Everything a caller learns of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// `[a-zA-Z0-9_-]{1,64}`, unique in the component.
    pub name: &'static str,
    /// Of the tool.
    pub version: &'static str,
    /// What the model reads to choose the tool.
    pub description: &'static str,
    /// What a caller may assume.
    pub hints: Hints,
    /// JSON Schema 2020-12, as one JSON document.
    pub input_schema: String,
    /// JSON Schema 2020-12, as one JSON document.
    pub output_schema: String,
}

pub(crate) fn describe<T: Tool>() -> Description {
    let settings = SchemaSettings::draft2020_12();
    let input = settings.clone().for_deserialize().into_generator();
    let output = settings.for_serialize().into_generator();
    Description {
        name: T::NAME,
        version: T::VERSION,
        description: T::DESCRIPTION,
        hints: T::HINTS,
        input_schema: input.into_root_schema_for::<T::Input>().as_value().to_string(),
        output_schema: output.into_root_schema_for::<<T::Returned as Returned>::Value>().as_value().to_string(),
    }
}

/// Calls the tool `name` as the host does.
pub fn call_by_name(tools: &[Entry], name: &str, input: &str) -> Result<Answer, ToolError> {
    let Some(entry) = tools.iter().find(|entry| entry.name == name) else {
        let names: Vec<_> = tools.iter().map(|entry| entry.name).collect();
        let known = names.join(", ");
        return Err(ToolError::invalid_input(format!("no tool `{name}` here, only: {known}")));
    };
    (entry.call)(input)
}

/// Calls one tool with JSON.
pub(crate) fn call_json<T: Tool>(input: &str) -> Result<Answer, ToolError> {
    let (value, attachments) = T::run(parse(input)?).into_output()?.into_parts();
    let json = serde_json::to_string(&value)
        .map_err(|why| ToolError::failed("bad-output", format!("the answer cannot be written as JSON: {why}")))?;
    Ok(Answer { json, attachments })
}

/// Parses all of `json`; the error names the place by its path, line and column.
fn parse<T: DeserializeOwned>(json: &str) -> Result<T, ToolError> {
    let mut parser = serde_json::Deserializer::from_str(json);
    let value = serde_path_to_error::deserialize(&mut parser).map_err(|error| {
        let path = error.path().to_string();
        let why = error.into_inner();
        match path.as_str() {
            "." => ToolError::invalid_input(why),
            path => ToolError::invalid_input(format!("`{path}`: {why}")),
        }
    })?;
    parser.end().map_err(ToolError::invalid_input)?;
    Ok(value)
}

/// Whether an earlier tool has the name of the one at `index`. The macros ask while they compile.
pub const fn is_name_repeated(tools: &[Entry], index: usize) -> bool {
    let mut earlier = 0;
    while earlier < index {
        if is_same(tools[earlier].name.as_bytes(), tools[index].name.as_bytes()) {
            return true;
        }
        earlier += 1;
    }
    false
}

const fn is_same(left: &[u8], right: &[u8]) -> bool {
    if left.len() != right.len() {
        return false;
    }
    let mut at = 0;
    while at < left.len() {
        if left[at] != right[at] {
            return false;
        }
        at += 1;
    }
    true
}
