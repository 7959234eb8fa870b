//! Fetches a page of the web, as text that a model can read: HTML becomes Markdown, other text stays as it is.
//!
//! ```text
//! estop run example-tools/fetch fetch --allow-host https://example.com -i '{"url":"https://example.com/"}'
//! ```

mod page;
#[cfg(test)]
mod tests;

use estop_tool::http::{Method, Request};
use estop_tool::{ToolError, progress};
use page::Kind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is read of a page if the caller does not say, in bytes.
const DEFAULT_BYTES: u64 = 1 << 20;
/// What is read of a page at most, in bytes: what is made of it has to fit into memory and into the answer.
const MAX_BYTES: u64 = 2 << 20;
/// The longest text of one answer, in bytes.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// Redirects that are followed. Each has to be granted.
const MAX_REDIRECTS: u32 = 5;

/// Which page.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// Begins with `https://` or `http://`.
    url: String,
    /// How much of the page is read, in bytes: 1 MiB if it is left out, 2 MiB at most.
    max_bytes: Option<u64>,
}

/// What is there.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Page {
    /// Where the page was found, after all redirects.
    pub url: String,
    /// The status of the response. That of a page that was found is 200.
    pub status: u16,
    /// The title of a page of HTML.
    pub title: Option<String>,
    /// The page: HTML as Markdown, other text as it is.
    pub markdown: String,
    /// There is more than what was read or what fits into an answer.
    pub truncated: bool,
}

/// Fetch a page of the web as Markdown. Pages of HTML, text, Markdown, JSON and XML can be read; others cannot.
///
/// Redirects are followed. Fails with `denied` if the host is not granted, and with `not-text` if the page is no text. A
/// page with a status of 400 and more is an answer as well: look at `status`.
#[estop_tool::tool(read_only, open_world)]
pub fn fetch(input: Which) -> Result<Page, ToolError> {
    let max_bytes = input.max_bytes.unwrap_or(DEFAULT_BYTES);
    if !(1..=MAX_BYTES).contains(&max_bytes) {
        return Err(ToolError::invalid_input(format!("`max_bytes` is {max_bytes}; it can be from 1 to {MAX_BYTES}")));
    }
    let request = Request::new(Method::Get, &input.url)
        .header("accept", "text/markdown, text/html, text/plain;q=0.9, application/json;q=0.9, */*;q=0.1")
        .header("user-agent", concat!("estop-fetch/", env!("CARGO_PKG_VERSION")))
        .follow(MAX_REDIRECTS)
        .cut_after(max_bytes);
    let response = request.send()?;
    progress(1, Some(2), "fetched");
    let (kind, text) = page::read(&response)?;
    let (title, mut markdown) = match kind {
        Kind::Html => page::markdown(&text)?,
        Kind::Text => (None, text),
    };
    let fits = markdown.len() <= MAX_TEXT_BYTES;
    markdown.truncate(markdown.floor_char_boundary(MAX_TEXT_BYTES));
    Ok(Page {
        url: response.url().to_owned(),
        status: response.status(),
        title,
        markdown,
        truncated: response.is_cut() || !fits,
    })
}

estop_tool::export!(fetch);
