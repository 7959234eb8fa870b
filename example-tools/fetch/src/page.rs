//! From the bytes of a response to text.
//!
//! Invariant: bytes that are no text are refused, whatever the server says that they are.

use encoding_rs::{Encoding, UTF_8};
use estop_tool::ToolError;
use estop_tool::http::Response;
use htmd::HtmlToMarkdown;

/// Where a page of HTML may say how it is encoded: within so many bytes, as browsers look.
const MAX_META_BYTES: usize = 1024;
/// Elements inside each other. Beyond that whoever walks through them would run out of stack.
const MAX_DEPTH: usize = 256;
/// The longest title, in characters.
const MAX_TITLE_CHARS: usize = 300;

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// To be made into Markdown.
    Html,
    /// To be left as it is.
    Text,
}

/// The text of a response.
pub(crate) fn read(response: &Response) -> Result<(Kind, String), ToolError> {
    let declared = response.header("content-type").unwrap_or_default().to_ascii_lowercase();
    let media_type = declared.split(';').next().unwrap_or_default().trim();
    let bytes = response.bytes();
    let not_text = |what: &str| {
        let message = format!("{} is {what}, and not text; only text can be read", response.url());
        ToolError::failed("not-text", message)
    };
    let kind = match media_type {
        "text/html" | "application/xhtml+xml" => Kind::Html,
        "application/json" | "application/xml" | "application/javascript" | "application/yaml" | "application/toml" => {
            Kind::Text
        }
        other if other.starts_with("text/") || other.ends_with("+json") || other.ends_with("+xml") => Kind::Text,
        "" => sniffed(bytes),
        other => return Err(not_text(&format!("of the type `{other}`"))),
    };
    let named = charset(&declared).or_else(|| if kind == Kind::Html { meta_charset(bytes) } else { None });
    // A mark at the beginning decides before everything else, and then UTF-8 is what most pages are.
    let (text, _, has_errors) = named.unwrap_or(UTF_8).decode(bytes);
    // A character at the end may be cut in its middle, and a sign in the place of one is no reason to refuse all of it.
    let odd = text.chars().filter(|letter| *letter == char::REPLACEMENT_CHARACTER || is_control(*letter)).count();
    if odd > 1 + text.len() / 100 {
        return Err(not_text(if has_errors { "not in the encoding that it names" } else { "binary" }));
    }
    Ok((kind, text.into_owned()))
}

fn is_control(letter: char) -> bool {
    letter.is_control() && !matches!(letter, '\n' | '\r' | '\t' | '\u{c}' | '\u{1b}')
}

/// What a page is that does not say so.
fn sniffed(bytes: &[u8]) -> Kind {
    let begins = bytes.trim_ascii_start();
    let begins = String::from_utf8_lossy(&begins[..begins.len().min(15)]).to_ascii_lowercase();
    if begins.starts_with("<!doctype html") || begins.starts_with("<html") { Kind::Html } else { Kind::Text }
}

/// What the header says.
fn charset(declared: &str) -> Option<&'static Encoding> {
    let label = declared.split(';').skip(1).find_map(|part| part.trim().strip_prefix("charset="))?;
    Encoding::for_label(label.trim_matches(['"', '\'', ' ']).as_bytes())
}

/// What the page itself says.
fn meta_charset(bytes: &[u8]) -> Option<&'static Encoding> {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_META_BYTES)]).to_ascii_lowercase();
    let (_, after) = head.split_once("charset=")?;
    let label = after.trim_start_matches(['"', '\'', ' ']);
    let end = label.find(|letter: char| !(letter.is_ascii_alphanumeric() || "-_:.".contains(letter)));
    Encoding::for_label(label[..end.unwrap_or(label.len())].as_bytes())
}

/// The title, and the page as Markdown.
pub(crate) fn markdown(html: &str) -> Result<(Option<String>, String), ToolError> {
    if depth(html) > MAX_DEPTH {
        let message = format!("the page has more than {MAX_DEPTH} elements inside each other");
        return Err(ToolError::failed("too-deep", message));
    }
    let skipped = vec!["head", "script", "style", "noscript", "template", "svg", "iframe", "canvas"];
    let converter = HtmlToMarkdown::builder().skip_tags(skipped).build();
    let markdown = converter.convert(html).map_err(|why| ToolError::failed("not-text", format!("no HTML: {why}")))?;
    Ok((title(html), markdown))
}

/// How deep elements are inside each other at most, counted generously: what closes nothing counts as if it went on.
fn depth(html: &str) -> usize {
    const VOID: [&str; 14] =
        ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"];
    // These are closed by the next one of their kind, and pages rely on it.
    const CLOSED_BY_OTHERS: [&str; 10] = ["p", "li", "dt", "dd", "option", "tr", "td", "th", "thead", "tbody"];
    let (mut depth, mut deepest) = (0_usize, 0);
    for part in html.split('<').skip(1) {
        let is_end = part.starts_with('/');
        let name = part.trim_start_matches('/');
        if !name.starts_with(|letter: char| letter.is_ascii_alphabetic()) {
            continue;
        }
        let end = name.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-').unwrap_or(name.len());
        let name = name[..end].to_ascii_lowercase();
        if VOID.contains(&name.as_str()) || CLOSED_BY_OTHERS.contains(&name.as_str()) {
            continue;
        }
        if is_end {
            depth = depth.saturating_sub(1);
        } else {
            depth += 1;
            deepest = deepest.max(depth);
        }
    }
    deepest
}

fn title(html: &str) -> Option<String> {
    // Small letters of ASCII are as long as large ones: places are the same in both.
    let lower = html.to_ascii_lowercase();
    let begins = lower.find("<title")?;
    let inner = begins + lower[begins..].find('>')? + 1;
    let ends = inner + lower[inner..].find("</title")?;
    let converted = HtmlToMarkdown::new().convert(&format!("<p>{}</p>", &html[inner..ends])).ok()?;
    let title: String =
        converted.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_TITLE_CHARS).collect();
    (!title.is_empty()).then_some(title)
}
