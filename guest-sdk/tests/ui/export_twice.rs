use estop_tool::{ToolError, tool};

/// The first.
#[tool]
fn first() -> Result<(), ToolError> {
    Ok(())
}

/// The second.
#[tool(name = "first")]
fn second() -> Result<(), ToolError> {
    Ok(())
}

estop_tool::export!(first, second);

fn main() {}
