use estop_tool::{ToolError, tool};

/// Hints have underscores.
#[tool(read_only, readonly)]
fn unknown_hint() -> Result<(), ToolError> {
    Ok(())
}

/// A hint is there or not.
#[tool(destructive = true)]
fn hint_with_value() -> Result<(), ToolError> {
    Ok(())
}

/// Once is enough.
#[tool(idempotent, open_world, idempotent)]
fn hint_twice() -> Result<(), ToolError> {
    Ok(())
}

/// It cannot be both.
#[tool(read_only, destructive)]
fn contradiction() -> Result<(), ToolError> {
    Ok(())
}

/// Which name?
#[tool(name)]
fn name_without_value() -> Result<(), ToolError> {
    Ok(())
}

/// A name is text.
#[tool(name = 5)]
fn name_is_no_text() -> Result<(), ToolError> {
    Ok(())
}

/// A name has no spaces.
#[tool(name = "send mail")]
fn name_with_space() -> Result<(), ToolError> {
    Ok(())
}

/// A name is not that long.
#[tool(name = "0123456789012345678901234567890123456789012345678901234567890123x")]
fn name_too_long() -> Result<(), ToolError> {
    Ok(())
}

/// A function's name may be none of a tool.
#[tool]
fn größe() -> Result<(), ToolError> {
    Ok(())
}

/// A version is something.
#[tool(version = "")]
fn empty_version() -> Result<(), ToolError> {
    Ok(())
}

estop_tool::export!(unknown_hint, größe);

fn main() {}
