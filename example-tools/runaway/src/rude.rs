//! Tools that have to be stopped.

use std::hint::black_box;

use estop_tool::{ToolError, interrupted, kv, progress};
use schemars::JsonSchema;
use serde::Deserialize;

const MIB: usize = 1 << 20;

/// Compute for ever, without a single call of the host.
#[estop_tool::tool]
pub fn spin() -> Result<(), ToolError> {
    let mut turns = 0_u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

/// Recurse until the stack is used up.
#[estop_tool::tool]
pub fn recurse() -> Result<u64, ToolError> {
    Ok(deeper(1))
}

/// Each frame keeps a block of its own, so that this cannot become a loop.
#[expect(unconditional_recursion, reason = "it is the purpose")]
#[inline(never)]
fn deeper(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    frame[0] + deeper(frame[63] + 1)
}

/// Allocate memory, and use it, until the limit.
#[estop_tool::tool]
pub fn allocate() -> Result<(), ToolError> {
    let mut kept = Vec::new();
    loop {
        kept.push(black_box(vec![1_u8; MIB]));
    }
}

/// What to write before spinning.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Amount {
    /// Number of keys.
    keys: u64,
    /// Bytes of each value.
    value_bytes: usize,
}

/// Write keys, and then compute for ever: nothing of it must remain.
#[estop_tool::tool]
pub fn write_then_spin(input: Amount) -> Result<(), ToolError> {
    let bucket = kv::open("runaway")?;
    let value = vec![b'x'; input.value_bytes];
    for index in 0..input.keys {
        bucket.set_bytes(&format!("key-{index}"), &value)?;
    }
    progress(input.keys, input.keys, "written");
    spin()
}

/// Look again and again whether someone wants it to stop, and go on.
#[estop_tool::tool]
pub fn ignore() -> Result<(), ToolError> {
    let mut requests = 0_u64;
    loop {
        if interrupted().is_some() {
            requests = black_box(requests.wrapping_add(1));
        }
    }
}
