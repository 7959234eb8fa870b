use estop_tool::{Output, ToolError, tool};

struct Plain;

/// It cannot fail, and cannot say so.
#[tool]
fn no_result() -> String {
    String::new()
}

/// The error is another.
#[tool]
fn other_error() -> Result<String, std::io::Error> {
    Ok(String::new())
}

/// The answer is no JSON.
#[tool]
fn opaque_output() -> Result<Output<Plain>, ToolError> {
    Ok(Output::new(Plain))
}

fn main() {}
