//! Ways to end, and not to.

use std::time::Duration;

use estop_tool::{ToolError, commit, interrupted, progress};
use schemars::JsonSchema;
use serde::Deserialize;

/// Panic.
#[estop_tool::tool]
pub fn panic() -> Result<(), ToolError> {
    panic!("as asked")
}

/// Exit with status 0 instead of answering.
#[estop_tool::tool]
pub fn exit() -> Result<(), ToolError> {
    std::process::exit(0)
}

/// How long to sleep.
#[derive(Deserialize, JsonSchema)]
pub struct Sleep {
    ms: u64,
}

/// Sleep in the host.
#[estop_tool::tool]
pub fn sleep(input: Sleep) -> Result<(), ToolError> {
    std::thread::sleep(Duration::from_millis(input.ms));
    Ok(())
}

/// How much to compute.
#[derive(Deserialize, JsonSchema)]
pub struct Compute {
    rounds: u64,
}

/// Compute, say so, and sleep for an hour.
#[estop_tool::tool]
pub fn compute_and_sleep(input: Compute) -> Result<(), ToolError> {
    for round in 0..input.rounds {
        std::hint::black_box(round);
    }
    progress(1, Some(1), "computed");
    std::thread::sleep(Duration::from_secs(3600));
    Ok(())
}

/// Fail with a code, retryable, with data.
#[estop_tool::tool]
pub fn fail() -> Result<(), ToolError> {
    Err(ToolError::failed("as-asked", "this always fails").retryable().data([1, 2, 3]))
}

/// Call the input invalid, although it matches the schema.
#[estop_tool::tool]
pub fn invalid() -> Result<(), ToolError> {
    Err(ToolError::invalid_input("`nothing` is not enough"))
}

/// Recurse until the stack is used up.
#[estop_tool::tool]
pub fn stack_overflow() -> Result<u64, ToolError> {
    Ok(deeper(1))
}

/// Each frame keeps a block of its own, so that this cannot become a loop.
#[expect(unconditional_recursion, reason = "it is the purpose")]
#[inline(never)]
fn deeper(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    frame[0] + deeper(frame[63] + 1)
}

/// Swallow every error, ignore every interrupt, and commit for ever.
#[estop_tool::tool]
pub fn swallow() -> Result<(), ToolError> {
    let mut errors = 0_u64;
    loop {
        if commit().is_err() || interrupted().is_some() {
            errors = std::hint::black_box(errors.wrapping_add(1));
        }
    }
}
