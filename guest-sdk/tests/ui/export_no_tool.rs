use estop_tool::{ToolError, tool};

/// This one is fine.
#[tool]
fn fine() -> Result<(), ToolError> {
    Ok(())
}

fn helper() -> Result<(), ToolError> {
    Ok(())
}

struct Type;

estop_tool::export!(fine, helper, Type);

fn main() {
    let _ = (helper(), Type);
}
