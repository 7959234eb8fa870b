//! What a component says of its tools.
//!
//! `list-tools` is guest code, so it runs as a call like any other: gated, limited, logged, on behalf of agent `host` and
//! without state. Invariant: a [`ToolInfo`] has passed every check here; nothing that a guest says of itself is used
//! before.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::oneshot;

use super::schema::InputSchema;
use super::{Code, LoadError};
use crate::call::{CallBuilder, CallState, End, Operation};
use crate::host::Core;
use crate::hostcalls::bindings::exports::estop::tool::tool as wit;
use crate::interrupt::Cause;

/// Length of a tool's name (bytes).
pub(crate) const TOOL_NAME_BYTES_MAX: usize = 64;
/// Length of a tool's version (bytes).
pub(crate) const VERSION_BYTES_MAX: usize = 64;
/// Length of a tool's description (bytes).
pub(crate) const DESCRIPTION_BYTES_MAX: usize = 16 << 10;

/// What a caller may assume of a tool, as in the Model Context Protocol. Claims of the tool, not promises of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hints {
    /// Changes nothing.
    pub read_only: bool,
    /// May destroy something.
    pub destructive: bool,
    /// Calling it twice is as good as once.
    pub idempotent: bool,
    /// Talks to the world outside.
    pub open_world: bool,
}

/// One tool.
#[derive(Clone, Debug, Serialize)]
pub struct ToolInfo {
    /// `[a-zA-Z0-9_-]{1,64}`, unique in its component.
    pub name: String,
    /// As the tool says.
    pub version: String,
    /// As the tool says, for people and models. Not to be trusted.
    pub description: String,
    /// JSON Schema 2020-12 of the input.
    pub input_schema: Value,
    /// JSON Schema of the output, where there is one.
    pub output_schema: Option<Value>,
    /// See [`Hints`].
    pub hints: Hints,
    #[serde(skip)]
    pub(crate) schema: Arc<InputSchema>,
    /// The length of the input schema's text.
    #[serde(skip)]
    pub(crate) schema_bytes: usize,
}

/// Begins to ask a component for its tools, in a call below `load`. It is released before it may be forgotten.
pub(crate) fn ask(load: &Arc<CallState>, core: &Arc<Core>, code: &Arc<Code>, name: &Arc<str>) -> Asked {
    let (answer, specs) = oneshot::channel();
    let (core, code, name) = (Arc::clone(core), Arc::clone(code), Arc::clone(name));
    let call = CallBuilder::internal(core, code, name, Operation::Describe(answer)).below(Arc::clone(load)).start();
    Asked { call: call.into_state(), specs }
}

/// A component that was asked for its tools.
pub(crate) struct Asked {
    pub(crate) call: Arc<CallState>,
    specs: oneshot::Receiver<Vec<wit::Spec>>,
}

impl Asked {
    /// What it says. Nothing of it has been checked.
    pub(crate) async fn answer(self) -> Result<Vec<wit::Spec>, LoadError> {
        let outcome = self.call.outcome().await;
        match &outcome.end {
            End::Completed(_) => {}
            End::Stopped(stopped) => match stopped.cause {
                // It is the component that is at fault.
                Cause::Deadline | Cause::Fuel | Cause::Memory => {
                    return Err(LoadError::Describe(format!("it was stopped (cause {})", stopped.cause)));
                }
                _ => return Err(stopped.into()),
            },
            end => {
                return Err(LoadError::Describe(end.error().unwrap_or("no reason is known").to_owned()));
            }
        }
        self.specs.await.map_err(|_| LoadError::Describe("no answer arrived".into()))
    }
}

/// The tools that it says it has. Blocks: compiling schemas takes long enough to keep a runtime's thread from its timers.
pub(crate) fn check(specs: Vec<wit::Spec>, tools_max: usize) -> Result<Vec<ToolInfo>, LoadError> {
    tools(specs, tools_max).map_err(LoadError::Tools)
}

fn tools(specs: Vec<wit::Spec>, tools_max: usize) -> Result<Vec<ToolInfo>, String> {
    if specs.is_empty() {
        return Err("it has none".into());
    }
    if specs.len() > tools_max {
        return Err(format!("it has {}; the limit is {tools_max}", specs.len()));
    }
    let mut names = HashSet::new();
    specs
        .into_iter()
        .map(|spec| {
            let tool = tool(spec)?;
            if names.insert(tool.name.clone()) { Ok(tool) } else { Err(format!("`{}` is there twice", tool.name)) }
        })
        .collect()
}

fn tool(spec: wit::Spec) -> Result<ToolInfo, String> {
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !(1..=TOOL_NAME_BYTES_MAX).contains(&spec.name.len()) || !spec.name.chars().all(letters) {
        let shown: String = spec.name.chars().take(TOOL_NAME_BYTES_MAX).collect();
        return Err(format!("the name {shown:?} is not 1 to {TOOL_NAME_BYTES_MAX} of a-z, A-Z, 0-9, `-` and `_`"));
    }
    let name = spec.name;
    short(&name, "version", &spec.version, VERSION_BYTES_MAX)?;
    short(&name, "description", &spec.description, DESCRIPTION_BYTES_MAX)?;
    let schema = InputSchema::compile(&spec.input_schema).map_err(|e| format!("the input schema of `{name}`: {e}"))?;
    let output_schema = match spec.output_schema {
        Some(text) => {
            let schema = InputSchema::compile(&text).map_err(|e| format!("the output schema of `{name}`: {e}"))?;
            Some(schema.value().clone())
        }
        None => None,
    };
    let has = |hint| spec.hints.contains(hint);
    Ok(ToolInfo {
        name,
        version: spec.version,
        description: spec.description,
        input_schema: schema.value().clone(),
        output_schema,
        hints: Hints {
            read_only: has(wit::Hints::READ_ONLY),
            destructive: has(wit::Hints::DESTRUCTIVE),
            idempotent: has(wit::Hints::IDEMPOTENT),
            open_world: has(wit::Hints::OPEN_WORLD),
        },
        schema: Arc::new(schema),
        schema_bytes: spec.input_schema.len(),
    })
}

fn short(tool: &str, what: &str, text: &str, bytes_max: usize) -> Result<(), String> {
    if text.len() <= bytes_max {
        return Ok(());
    }
    Err(format!("the {what} of `{tool}` has {} bytes; the limit is {bytes_max}", text.len()))
}
