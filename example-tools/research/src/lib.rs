//! Looks for something with the tools of others, and puts together what they have found: `grep/search` for the files of a
//! workspace, `fetch/fetch` for pages, `memory/remember` for the report.
//!
//! What one of them fails with is part of the report, and the others go on. Only what is told to be remembered has to be.
//!
//! ```text
//! estop call investigate -i '{"pattern":"fn settle","path":"host/src","remember":true}'
//! ```

#[cfg(test)]
mod tests;

use estop_tool::{ToolError, checkpoint, invoke, progress};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Number of pages in one report.
const MAX_URLS: usize = 20;
/// Number of lines in one report.
const MAX_LINES: usize = 200;
/// What is kept of a page, in bytes.
const MAX_EXCERPT_BYTES: usize = 2000;
/// Lines of a report that are remembered: a note is short.
const MAX_REMEMBERED: usize = 20;
/// A note, in bytes.
const MAX_NOTE_BYTES: usize = 4000;

/// What to look for, and where.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// A regular expression, for the files of the workspace.
    pattern: String,
    /// Only in this folder, or this file.
    path: Option<String>,
    /// Pages to read as well, up to 20.
    #[serde(default)]
    urls: Vec<String>,
    /// Make a note of the report.
    #[serde(default)]
    remember: bool,
}

/// What was found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Report {
    /// Lines of files.
    lines: Vec<Line>,
    /// There are more.
    more: bool,
    pages: Vec<Page>,
    /// Where nothing could be found, and why.
    failures: Vec<Failure>,
    /// The note of the report.
    note: Option<String>,
}

/// One line of a file.
#[derive(Debug, Deserialize, PartialEq, Serialize, JsonSchema)]
pub struct Line {
    path: String,
    line: u64,
    text: String,
}

/// One page.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Page {
    url: String,
    /// How it begins.
    text: String,
}

/// Something that could not be asked.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Failure {
    /// The tool, or the page.
    source: String,
    code: String,
    message: String,
}

#[derive(Serialize)]
struct Search<'a> {
    pattern: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    limit: usize,
}

#[derive(Deserialize)]
struct Found {
    lines: Vec<Line>,
    more: bool,
}

#[derive(Serialize)]
struct Fetch<'a> {
    url: &'a str,
}

/// Of what the tool answers, only this is of use here.
#[derive(Deserialize)]
struct Fetched {
    markdown: String,
}

#[derive(Serialize)]
struct NewNote {
    text: String,
}

#[derive(Deserialize)]
struct Note {
    id: String,
}

/// Look for a pattern in the files of the workspace and read pages, with the tools `grep/search` and `fetch/fetch`. Answers
/// what was found, and what could not be asked. With `remember` the report becomes a note, by `memory/remember`.
#[estop_tool::tool]
pub fn investigate(input: Question) -> Result<Report, ToolError> {
    if input.urls.len() > MAX_URLS {
        return Err(ToolError::invalid_input(format!("urls: at most {MAX_URLS}")));
    }
    let sources = input.urls.len() as u64 + 1;
    let mut report = Report { lines: Vec::new(), more: false, pages: Vec::new(), failures: Vec::new(), note: None };
    progress(0, sources, "the workspace");
    let search = Search { pattern: &input.pattern, path: input.path.as_deref(), limit: MAX_LINES };
    match invoke::<Found>("grep/search", &search) {
        Ok(found) => (report.lines, report.more) = (found.lines, found.more),
        Err(error) => report.failures.push(failure("grep/search", error)?),
    }
    for (number, url) in input.urls.iter().enumerate() {
        checkpoint()?;
        progress(number as u64 + 1, sources, url);
        match invoke::<Fetched>("fetch/fetch", &Fetch { url }) {
            Ok(Fetched { markdown: mut text }) => {
                text.truncate(text.floor_char_boundary(MAX_EXCERPT_BYTES));
                report.pages.push(Page { url: url.clone(), text });
            }
            Err(error) => report.failures.push(failure(url, error)?),
        }
    }
    if input.remember {
        let note: Note = invoke("memory/remember", &NewNote { text: told(&input.pattern, &report) })?;
        report.note = Some(note.id);
    }
    Ok(report)
}

/// Somebody who is being stopped has nothing more to report.
fn failure(source: &str, error: ToolError) -> Result<Failure, ToolError> {
    if error.is_interrupted() {
        return Err(error);
    }
    Ok(Failure { source: source.to_owned(), code: error.code().to_owned(), message: error.message().to_owned() })
}

/// The report in the words of a note.
fn told(pattern: &str, report: &Report) -> String {
    let mut text = format!("Looked for `{pattern}`: {} lines, {} pages.", report.lines.len(), report.pages.len());
    for Line { path, line, text: found } in report.lines.iter().take(MAX_REMEMBERED) {
        text += &format!("\n{path}:{line}: {}", found.trim());
    }
    for Page { url, .. } in &report.pages {
        text += &format!("\n{url}");
    }
    text.truncate(text.floor_char_boundary(MAX_NOTE_BYTES));
    text
}

estop_tool::export!(investigate);
