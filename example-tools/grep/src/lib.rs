//! Searches the files of a workspace, as `rg` does: what `.gitignore` leaves out is left out, and so is what is no text.
//!
//! ```text
//! estop run example-tools/grep search --workspace .:ro -i '{"pattern":"fn settle"}'
//! ```

mod found;
#[cfg(test)]
mod tests;

use std::path::{Component, Path};

use estop_tool::{ToolError, checkpoint, progress};
use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{BinaryDetection, SearcherBuilder};
use ignore::overrides::{Override, OverrideBuilder};
use ignore::{DirEntry, WalkBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use found::Found;

/// The longest pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 4096;
/// Memory of a compiled pattern, in bytes.
const MAX_REGEX_BYTES: usize = 4 << 20;
/// Number of patterns for paths.
const MAX_GLOBS: usize = 100;
/// Number of lines in one answer if the caller does not say.
const DEFAULT_LIMIT: usize = 100;
/// Number of lines in one answer at most.
const MAX_LIMIT: usize = 2000;
/// Lines before and after each that matches, at most.
const MAX_CONTEXT: usize = 20;
/// Memory for the lines of a file, in bytes: one with longer lines is no text for people, and is left out.
const MAX_HEAP_BYTES: usize = 8 << 20;
/// Files between two reports of progress.
const REPORT_EVERY: u64 = 64;

/// What to search for.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// A regular expression, within one line.
    pattern: String,
    /// `pattern` is searched for as it stands.
    #[serde(default)]
    literal: bool,
    #[serde(default)]
    ignore_case: bool,
    /// Only where it stands as a word of its own.
    #[serde(default)]
    word: bool,
    /// Only in this folder, or this file. Everywhere if it is left out.
    path: Option<String>,
    /// `*.rs` for files of that name only, `!vendor/**` for what is left out.
    #[serde(default)]
    globs: Vec<String>,
    /// Also what `.gitignore` leaves out, and names that begin with a dot.
    #[serde(default)]
    hidden: bool,
    /// Number of lines before and after each that matches, up to 20.
    #[serde(default)]
    context: usize,
    /// Number of lines that match to answer, up to 2000; 100 if it is left out.
    limit: Option<usize>,
}

/// Lines that match.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Answer {
    lines: Vec<Line>,
    /// Number of files with such lines.
    files: u64,
    /// Number of files that were searched.
    searched: u64,
    /// There are more. Ask for a smaller part of the workspace, or for more lines.
    more: bool,
}

/// One line.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Line {
    path: String,
    line: u64,
    /// Cut, where it is very long.
    text: String,
    /// It only stands beside one that matches.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    context: bool,
}

/// Search the files of the workspace for lines that match a regular expression. What `.gitignore` leaves out is left out.
#[estop_tool::tool(read_only)]
pub fn search(input: Query) -> Result<Answer, ToolError> {
    let matcher = matcher(&input)?;
    let limit = input.limit.unwrap_or(DEFAULT_LIMIT);
    if limit == 0 || limit > MAX_LIMIT {
        return Err(ToolError::invalid_input(format!("limit: from 1 to {MAX_LIMIT}")));
    }
    if input.context > MAX_CONTEXT {
        return Err(ToolError::invalid_input(format!("context: at most {MAX_CONTEXT}")));
    }
    let start = input.path.as_deref().map_or(Ok(".".to_owned()), inside)?;
    if !Path::new(&start).exists() {
        let hint = if start == "." { "; no folder is granted at `/`: `--workspace DIR`" } else { "" };
        return Err(ToolError::failed("not-found", format!("there is no `{start}`{hint}")));
    }
    let mut searcher = SearcherBuilder::new()
        .binary_detection(BinaryDetection::quit(0))
        .heap_limit(Some(MAX_HEAP_BYTES))
        .before_context(input.context)
        .after_context(input.context)
        .build();
    let mut found = Found::new(limit);
    let mut searched = 0;
    let (wanted, unwanted): (Vec<_>, Vec<_>) = input.globs.iter().partition(|glob| !glob.starts_with('!'));
    // Apart: given to the walk, what is wanted would also be found where `.gitignore` leaves it out.
    let (wanted, unwanted) = (globs(&wanted)?, globs(&unwanted)?);
    for entry in walk(&start, unwanted, input.hidden) {
        checkpoint()?;
        // Something that cannot be read hides nothing of the rest.
        let Ok(entry) = entry else { continue };
        let is_wanted = wanted.is_empty() || wanted.matched(entry.path(), false).is_whitelist();
        if !is_wanted || !entry.file_type().is_some_and(|kind| kind.is_file()) {
            continue;
        }
        if searched % REPORT_EVERY == 0 {
            progress(searched, None, entry.path().display());
        }
        searched += 1;
        let path = shown(&entry);
        let _ = searcher.search_path(&matcher, entry.path(), found.of(&path));
        if found.is_full() {
            break;
        }
    }
    let more = found.is_full();
    let (lines, files) = found.end();
    Ok(Answer { lines, files, searched, more })
}

fn matcher(input: &Query) -> Result<RegexMatcher, ToolError> {
    if input.pattern.len() > MAX_PATTERN_BYTES {
        return Err(ToolError::invalid_input(format!("pattern: longer than {MAX_PATTERN_BYTES} bytes")));
    }
    let mut builder = RegexMatcherBuilder::new();
    builder.case_insensitive(input.ignore_case).word(input.word).fixed_strings(input.literal);
    builder.line_terminator(Some(b'\n')).size_limit(MAX_REGEX_BYTES);
    builder.build(&input.pattern).map_err(|error| ToolError::invalid_input(format!("pattern: {error}")))
}

fn walk(start: &str, unwanted: Override, hidden: bool) -> ignore::Walk {
    let mut walk = WalkBuilder::new(start);
    walk.standard_filters(!hidden).require_git(false).parents(false).git_global(false).overrides(unwanted);
    walk.sort_by_file_name(Ord::cmp).filter_entry(|entry| entry.file_name() != ".git");
    walk.build()
}

fn globs(globs: &[&String]) -> Result<Override, ToolError> {
    let invalid = |error: &dyn std::fmt::Display| ToolError::invalid_input(format!("globs: {error}"));
    if globs.len() > MAX_GLOBS {
        return Err(invalid(&format!("more than {MAX_GLOBS}")));
    }
    let mut builder = OverrideBuilder::new(".");
    for glob in globs {
        builder.add(glob).map_err(|error| invalid(&error))?;
    }
    builder.build().map_err(|error| invalid(&error))
}

/// From the top of the workspace.
fn shown(entry: &DirEntry) -> String {
    let path = entry.path();
    path.strip_prefix(".").unwrap_or(path).to_string_lossy().into_owned()
}

fn inside(path: &str) -> Result<String, ToolError> {
    let goes_down = |component: Component<'_>| matches!(component, Component::Normal(_) | Component::CurDir);
    if path.is_empty() || !Path::new(path).components().all(goes_down) {
        let why = format!("path: `{path}` does not go down from the top of the workspace, without `..`");
        return Err(ToolError::invalid_input(why));
    }
    Ok(path.to_owned())
}

estop_tool::export!(search);
