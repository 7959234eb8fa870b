//! A tool for an AI agent is a Rust function. Its doc comment is what the model reads, its types are
//! the schemas, and estop can stop it at any moment.
//!
//! ```
//! use estop_tool::{ToolError, kv};
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Deserialize, JsonSchema)]
//! struct Deposit {
//!     /// Whose account.
//!     account: String,
//!     cents: u64,
//! }
//!
//! #[derive(Debug, PartialEq, Serialize, JsonSchema)]
//! struct Receipt {
//!     balance_cents: u64,
//! }
//!
//! /// Put money on an account.
//! #[estop_tool::tool]
//! fn deposit(input: Deposit) -> Result<Receipt, ToolError> {
//!     let balance_cents = kv::open("accounts")?.update(&input.account, |before: Option<u64>| {
//!         before
//!             .unwrap_or(0)
//!             .checked_add(input.cents)
//!             .ok_or_else(|| ToolError::failed("too-rich", "no account can hold that much"))
//!     })?;
//!     Ok(Receipt { balance_cents })
//! }
//!
//! estop_tool::export!(deposit);
//!
//! // The same function runs under plain `cargo test`:
//! # fn main() {
//! use estop_tool::testing::Run;
//!
//! let ended = Run::new()
//!     .state("accounts", "ada", &40)
//!     .call(|| deposit(Deposit { account: "ada".into(), cents: 2 }));
//! assert_eq!(ended.result, Ok(Receipt { balance_cents: 42 }));
//! assert_eq!(ended.state("accounts", "ada"), Some(42));
//! # }
//! ```
//!
//! # What a tool is promised
//!
//! - What it writes ([`kv`]) is one transaction. It becomes durable when the tool returns `Ok`, or at
//!   [`commit()`]; after an error, a panic or a stop it never happened.
//! - It can be stopped at every instruction, and need not do anything for it. A tool that wants to end
//!   in good order when there is time for that asks with [`checkpoint()`].
//! - The host has checked the input against the schema of the input type.
//!
//! # Where things are
//!
//! [`macro@tool`] and [`export!`] make a function a tool of the component, [`Tool`] is what they
//! implement. [`ToolError`] is why a tool gives no answer, [`Output`] is an answer with attachments.
//! [`checkpoint()`], [`interrupted()`], [`progress()`] and [`commit()`] talk to the host, [`invoke()`] runs
//! other tools, [`kv`] keeps state, [`process`] runs programs, [`http`] asks hosts, [`log`] writes log
//! lines, and `testing` runs tools natively.

mod call;
mod error;
mod host;
pub mod http;
pub mod kv;
pub mod log;
mod output;
pub mod process;
mod tool;

#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod bindings;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use call::{Cause, Interrupted, checkpoint, commit, interrupted, invoke, invoke_output, progress};
pub use error::ToolError;
pub use estop_tool_macros::{export, tool};
pub use output::{Answer, Attachment, Output};
pub use tool::{Description, Hints, NoInput, Returned, Tool};

/// What the macros' code needs. No part of the crate's interface: it changes without notice.
#[doc(hidden)]
pub mod __private {
    #[cfg(target_arch = "wasm32")]
    pub use crate::bindings;
    pub use crate::tool::{Entry, ToolSet, call_by_name, is_name_repeated};
}
