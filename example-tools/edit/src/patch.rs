//! Unified diffs, of one file or of many, as `diff -u` and `git diff` write them.

use std::fs;

use diffy::Patch;
use estop_tool::{ToolError, checkpoint, progress};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::files::{failed, inside};
use crate::{make_parent, text};

/// Number of files in one diff.
const MAX_FILES: usize = 10_000;

/// A diff to be applied.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Diff {
    /// Of one file or of many. Paths begin at the top of the workspace, with or without `a/` and `b/`; `/dev/null` stands
    /// for a file that is not there.
    diff: String,
}

/// What was done.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Applied {
    changed: Vec<String>,
    created: Vec<String>,
    removed: Vec<String>,
}

/// Apply a unified diff. Every hunk has to fit, or nothing is changed.
#[estop_tool::tool(destructive)]
pub fn apply_diff(input: Diff) -> Result<Applied, ToolError> {
    let files = split(&input.diff)?;
    let mut done = Applied { changed: Vec::new(), created: Vec::new(), removed: Vec::new() };
    let total = files.len() as u64;
    for (number, file) in files.into_iter().enumerate() {
        checkpoint()?;
        progress(number as u64, total, file.old.as_deref().or(file.new.as_deref()).unwrap_or_default());
        apply(&file, &mut done)?;
    }
    Ok(done)
}

/// The part of a diff that is about one file. `None`: there is none, before or after.
struct File<'a> {
    old: Option<String>,
    new: Option<String>,
    text: &'a str,
}

/// Each from its `---` line to the end of its last hunk: what stands between files is nobody's.
fn split(diff: &str) -> Result<Vec<File<'_>>, ToolError> {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    let (mut at, mut left) = (0, (0, 0));
    let mut lines = diff.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        let mut is_part = true;
        if left == (0, 0) {
            if line.starts_with("--- ") && lines.peek().is_some_and(|next| next.starts_with("+++ ")) {
                parts.push((at, at));
            } else if line.starts_with("@@ ") {
                left = counts(line).ok_or_else(|| invalid(&format!("`{}` is no head of a hunk", line.trim_end())))?;
            } else {
                is_part = line.starts_with("+++ ") || line.starts_with('\\');
            }
        } else {
            // Within a hunk, where a line that was removed may look like a head.
            match line.as_bytes().first() {
                Some(b'-') => left.0 = left.0.saturating_sub(1),
                Some(b'+') => left.1 = left.1.saturating_sub(1),
                Some(b'\\') => {}
                _ => left = (left.0.saturating_sub(1), left.1.saturating_sub(1)),
            }
        }
        at += line.len();
        if let Some((_, end)) = parts.last_mut().filter(|_| is_part) {
            *end = at;
        }
    }
    if parts.is_empty() {
        return Err(invalid("there is no `---` line followed by a `+++` line"));
    }
    if parts.len() > MAX_FILES {
        return Err(invalid(&format!("more than {MAX_FILES} files")));
    }
    parts.into_iter().map(|(begin, end)| file(&diff[begin..end])).collect()
}

/// How many lines of the old and of the new file a hunk has: `@@ -1,3 +1,4 @@`.
fn counts(head: &str) -> Option<(u64, u64)> {
    let mut ranges = head.split(' ').skip(1);
    let mut count = |sign: char| {
        let range = ranges.next()?.strip_prefix(sign)?;
        range.split_once(',').map_or(Some(1), |(_, count)| count.parse().ok())
    };
    Some((count('-')?, count('+')?))
}

fn file(text: &str) -> Result<File<'_>, ToolError> {
    let mut heads = text.lines();
    let mut name = |marker: &str, side: &str| {
        // Behind a tab there is the time.
        let line = heads.next().and_then(|line| line.strip_prefix(marker)).unwrap_or_default();
        let path = line.split('\t').next().unwrap_or_default().trim();
        match path {
            "/dev/null" => Ok(None),
            path => inside(path.strip_prefix(side).unwrap_or(path)).map(Some),
        }
    };
    let (old, new) = (name("--- ", "a/")?, name("+++ ", "b/")?);
    Ok(File { old, new, text })
}

fn apply(file: &File<'_>, done: &mut Applied) -> Result<(), ToolError> {
    let shown = file.new.as_ref().or(file.old.as_ref()).ok_or_else(|| invalid("a file that is nowhere"))?;
    let patch = Patch::from_str(file.text).map_err(|error| invalid(&format!("`{shown}`: {error}")))?;
    let before = match &file.old {
        None => String::new(),
        Some(old) => text(old)?.ok_or_else(|| ToolError::failed("binary", format!("`{old}` is no text")))?,
    };
    let after = diffy::apply(&before, &patch).map_err(|error| {
        let why = format!("the diff does not fit `{shown}`: {error}; read the file again and make a new one");
        ToolError::failed("does-not-fit", why)
    })?;
    match (&file.old, &file.new) {
        (Some(old), None) => {
            fs::remove_file(old).map_err(|error| failed("remove", old, &error))?;
            done.removed.push(old.clone());
        }
        (old, Some(new)) => {
            if old.is_none() && fs::symlink_metadata(new).is_ok() {
                return Err(ToolError::failed("exists", format!("`{new}` is to be created, and is there already")));
            }
            make_parent(new)?;
            fs::write(new, after).map_err(|error| failed("write", new, &error))?;
            match old {
                Some(old) if old != new => {
                    fs::remove_file(old).map_err(|error| failed("remove", old, &error))?;
                    done.removed.push(old.clone());
                    done.created.push(new.clone());
                }
                Some(_) => done.changed.push(new.clone()),
                None => done.created.push(new.clone()),
            }
        }
        (None, None) => {}
    }
    Ok(())
}

fn invalid(why: &str) -> ToolError {
    ToolError::invalid_input(format!("diff: {why}"))
}
