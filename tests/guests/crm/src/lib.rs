//! A tool that cannot decide alone: it asks a person, through an interface that its embedder grants.

use estop_tool::ToolError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[cfg(target_arch = "wasm32")]
mod embedder {
    wit_bindgen::generate!({ world: "tool", path: "wit", generate_all });
    pub use example::crm::people::ask_human;
}

#[cfg(not(target_arch = "wasm32"))]
mod embedder {
    pub fn ask_human(_question: &str) -> String {
        "yes".into()
    }
}

/// What is to be refunded.
#[derive(Deserialize, JsonSchema)]
pub struct Refund {
    /// The number of the order.
    pub order: u64,
}

/// What became of it.
#[derive(Serialize, JsonSchema)]
pub struct Decision {
    /// In the words of the person who decided.
    pub answer: String,
}

/// Refund an order, once a person has agreed.
#[estop_tool::tool(destructive, open_world)]
pub fn refund(input: Refund) -> Result<Decision, ToolError> {
    let answer = embedder::ask_human(&format!("May order {} be refunded?", input.order));
    Ok(Decision { answer })
}

estop_tool::export!(refund);
