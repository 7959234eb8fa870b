//! Invokes tools, its own and those of others, in every way that a child call must withstand. The bucket is `nest`.

use estop_tool::{Attachment, Output, ToolError, commit, invoke, invoke_output, kv, progress};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const BUCKET: &str = "nest";

/// What to invoke, one after the other.
#[derive(Deserialize, JsonSchema)]
pub struct Plan {
    steps: Vec<Step>,
    /// Fail at the end.
    #[serde(default)]
    fail: bool,
    /// Fail as soon as one of them does.
    #[serde(default)]
    strict: bool,
}

/// One thing to do.
#[derive(Deserialize, JsonSchema)]
pub struct Step {
    /// Invoke this tool.
    tool: Option<String>,
    #[serde(default = "nothing")]
    input: Value,
    /// So many times.
    #[serde(default = "once")]
    times: u64,
    /// Write this key of one's own.
    set: Option<String>,
    /// Commit.
    #[serde(default)]
    commit: bool,
}

fn nothing() -> Value {
    json!({})
}

fn once() -> u64 {
    1
}

/// What became of each.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Done {
    answers: Vec<Value>,
}

/// Do one thing after the other. Reports progress before each of them, with its number.
#[estop_tool::tool(destructive)]
pub fn run(input: Plan) -> Result<Done, ToolError> {
    let mut answers = Vec::new();
    for (number, step) in input.steps.iter().enumerate() {
        progress(number as u64, input.steps.len() as u64, "");
        if let Some(key) = &step.set {
            kv::open(BUCKET)?.set(key, &(number as u64))?;
        }
        for _ in 0..if step.tool.is_some() { step.times } else { 0 } {
            let tool = step.tool.as_deref().unwrap_or_default();
            answers.push(match invoke::<Value>(tool, &step.input) {
                Ok(answer) => json!({ "ok": answer }),
                Err(error) if input.strict => return Err(error),
                Err(error) => json!({
                    "code": error.code(), "message": error.message(), "retryable": error.is_retryable(),
                    "data": error.json_data(),
                }),
            });
        }
        if step.commit {
            answers.push(match commit() {
                Ok(()) => json!({ "committed": true }),
                Err(error) => json!({ "code": error.code(), "message": error.message() }),
            });
        }
    }
    if input.fail { Err(ToolError::failed("as-asked", "")) } else { Ok(Done { answers }) }
}

/// How deep to go, and what is to be at the bottom.
#[derive(Deserialize, Serialize, JsonSchema)]
pub struct Deep {
    levels: u64,
    /// Write this key at each level, with its number.
    #[serde(default)]
    set: Option<String>,
    tool: String,
    #[serde(default = "nothing")]
    input: Value,
}

/// Go so many levels down and invoke a tool there.
#[estop_tool::tool(destructive)]
pub fn deep(input: Deep) -> Result<Value, ToolError> {
    if let Some(key) = &input.set {
        kv::open(BUCKET)?.set(&format!("{key}-{}", input.levels), &input.levels)?;
    }
    match input.levels {
        0 => invoke(&input.tool, &input.input),
        levels => invoke("nest/deep", &Deep { levels: levels - 1, ..input }),
    }
}

/// Report progress 1 and never end.
#[estop_tool::tool]
pub fn spin() -> Result<(), ToolError> {
    progress(1, None, "spins");
    loop {
        std::hint::spin_loop();
    }
}

/// How many rounds.
#[derive(Deserialize, JsonSchema)]
pub struct Rounds {
    rounds: u64,
}

/// Compute for so many rounds.
#[estop_tool::tool]
pub fn burn(input: Rounds) -> Result<u64, ToolError> {
    Ok((0..input.rounds).fold(1, |sum: u64, round| std::hint::black_box(sum.rotate_left(7) ^ round)))
}

/// Write a key and fail.
#[estop_tool::tool]
pub fn write_then_fail() -> Result<(), ToolError> {
    kv::open(BUCKET)?.set("failed", &1)?;
    Err(ToolError::failed("as-asked", "nothing of this is kept").retryable().data([1, 2]))
}

/// Answer with an attachment.
#[estop_tool::tool]
pub fn attach() -> Result<Output<u64>, ToolError> {
    Ok(Output::new(7).attach("seven.bin", "application/octet-stream", vec![7; 7]))
}

/// Invoke `attach`, and answer its attachments' names and lengths.
#[estop_tool::tool]
pub fn attached() -> Result<Vec<(String, usize)>, ToolError> {
    let (_, attachments) = invoke_output::<u64>("attach", &json!({}))?.into_parts();
    Ok(attachments.into_iter().map(|Attachment { name, data, .. }| (name, data.len())).collect())
}

/// The value of a key of one's own.
#[estop_tool::tool(read_only)]
pub fn look(key: Key) -> Result<Option<u64>, ToolError> {
    kv::open(BUCKET)?.get(&key.key)
}

/// One key.
#[derive(Deserialize, JsonSchema)]
pub struct Key {
    key: String,
}

/// Every key of one's own.
#[estop_tool::tool(read_only)]
pub fn keys() -> Result<Vec<String>, ToolError> {
    kv::open(BUCKET)?.keys().collect()
}

estop_tool::export!(run, deep, spin, burn, write_then_fail, attach, attached, look, keys);
