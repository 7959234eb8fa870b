//! The macros of `estop-tool`, which re-exports them. Do not depend on this crate directly.
//!
//! Invariant: a mistake in a tool's declaration is an error of the compiler at the place of the
//! mistake, and causes no others.

mod export;
mod function;
mod options;

use proc_macro::TokenStream;

/// Makes a function a tool, for [`export!`] to name. The function stays as it is.
///
/// ```text
/// /// Move an amount from one account to another.
/// #[estop_tool::tool(destructive)]
/// fn transfer(input: Transfer) -> Result<Receipt, ToolError> { … }
/// ```
///
/// - The **doc comment** is the description that the model reads to choose the tool: it is required,
///   and at most 4096 bytes.
/// - The **argument** is the input: `serde::Deserialize` and `schemars::JsonSchema`, an object in JSON.
///   A tool may have none. Doc comments on the fields are read by the model as well;
///   `#[serde(deny_unknown_fields)]` refuses what it makes up.
/// - It **returns** `Result<T, ToolError>`, or `Result<Output<T>, ToolError>` where it has attachments;
///   `T` is `serde::Serialize` and `schemars::JsonSchema`.
/// - The **name** is the function's, or `name = "…"`: `[a-zA-Z0-9_-]{1,64}`.
/// - The **version** is the crate's, or `version = "…"`: at most 64 printable ASCII characters.
/// - **Hints** tell the caller what to expect, as in the Model Context Protocol: `read_only`,
///   `destructive`, `idempotent`, `open_world` (see `Hints`).
#[proc_macro_attribute]
pub fn tool(options: TokenStream, item: TokenStream) -> TokenStream {
    function::expand(options.into(), item.into()).into()
}

/// Makes tools the exports of the component: `estop_tool::export!(transfer, balance);`, once in a crate
/// that is a `cdylib`, and not inside a function. Natively it only checks.
///
/// A tool in a module is named by its path: `export!(accounts::transfer)`.
#[proc_macro]
pub fn export(tools: TokenStream) -> TokenStream {
    export::expand(tools.into()).into()
}
