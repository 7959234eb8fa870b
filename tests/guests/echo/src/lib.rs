//! The least that a call can cost.

use estop_tool::ToolError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What goes in and comes out.
#[derive(Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct Message {
    /// Any text.
    text: String,
}

/// Answer the same text.
#[estop_tool::tool(read_only, idempotent)]
pub fn echo(input: Message) -> Result<Message, ToolError> {
    Ok(input)
}

estop_tool::export!(echo);

#[cfg(test)]
mod tests {
    use estop_tool::testing::Run;

    use super::*;

    #[test]
    fn answers_the_same() {
        let ended = Run::new().call_json::<echo>(r#"{"text":"hé\u0000"}"#);
        assert_eq!(ended.result.unwrap().json, r#"{"text":"hé\u0000"}"#);
    }
}
