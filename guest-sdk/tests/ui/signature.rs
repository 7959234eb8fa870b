use estop_tool::{ToolError, tool};

struct Host;

/// The host suspends it anyway.
#[tool]
async fn waiting() -> Result<(), ToolError> {
    Ok(())
}

impl Host {
    /// There is no self to call it on.
    #[tool]
    fn method(&self) -> Result<(), ToolError> {
        Ok(())
    }
}

/// One struct is the input.
#[tool]
fn two_arguments(from: String, to: String) -> Result<String, ToolError> {
    Ok(from + &to)
}

/// Which type is it?
#[tool]
fn generic<T>(input: T) -> Result<T, ToolError> {
    Ok(input)
}

/// The input belongs to the tool.
#[tool]
fn borrowed(input: &str) -> Result<usize, ToolError> {
    Ok(input.len())
}

/// Nothing is said of a failure.
#[tool]
fn no_return(input: String) {
    drop(input);
}

/// Nobody can promise anything here.
#[tool]
unsafe extern "C" fn foreign() -> Result<(), ToolError> {
    Ok(())
}

estop_tool::export!(waiting, two_arguments, no_return);

fn main() {}
