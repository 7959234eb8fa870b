//! More output than anyone asked for.

use std::io::Write;

use estop_tool::{Output, ToolError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much.
#[derive(Deserialize, JsonSchema)]
pub struct Bytes {
    bytes: usize,
}

/// How often.
#[derive(Deserialize, JsonSchema)]
pub struct Steps {
    steps: u64,
}

/// Some text.
#[derive(Serialize, JsonSchema)]
pub struct Text {
    text: String,
}

/// Answer with one attachment `data.bin` of `bytes` bytes, counting 0 to 255.
#[estop_tool::tool(read_only)]
pub fn attach(input: Bytes) -> Result<Output<Text>, ToolError> {
    let data: Vec<u8> = (0..=u8::MAX).cycle().take(input.bytes).collect();
    let text = "see the attachment".to_owned();
    Ok(Output::new(Text { text }).attach("data.bin", "application/octet-stream", data))
}

/// Answer with a text of `bytes` bytes.
#[estop_tool::tool(read_only)]
pub fn big_output(input: Bytes) -> Result<Text, ToolError> {
    Ok(Text { text: "x".repeat(input.bytes) })
}

/// Write one log line at each level, and `steps` more.
#[estop_tool::tool(read_only)]
pub fn log(input: Steps) -> Result<(), ToolError> {
    use estop_tool::log;

    log::trace("trace");
    log::debug("debug");
    log::info("info");
    log::warn("warn");
    log::error("error");
    log::critical("critical");
    for step in 0..input.steps {
        log::log(log::Level::Info, "steps", format_args!("step {step}"));
    }
    Ok(())
}

/// Report progress `steps` times.
#[estop_tool::tool(read_only)]
pub fn progress(input: Steps) -> Result<(), ToolError> {
    for step in 1..=input.steps {
        estop_tool::progress(step, input.steps, format_args!("step {step}"));
    }
    Ok(())
}

/// Write `bytes` bytes to stdout and to stderr. Answers how many were taken.
#[estop_tool::tool(read_only)]
pub fn stdout_flood(input: Bytes) -> Result<u64, ToolError> {
    const CHUNK: [u8; 4096] = [b'x'; 4096];
    let mut taken = 0;
    let mut left = input.bytes;
    while left > 0 {
        let chunk = &CHUNK[..left.min(CHUNK.len())];
        left -= chunk.len();
        for is_taken in [std::io::stdout().write_all(chunk), std::io::stderr().write_all(chunk)] {
            taken += u64::from(is_taken.is_ok());
        }
    }
    Ok(taken)
}
