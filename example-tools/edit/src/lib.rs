//! Changes the files of a workspace.
//!
//! Invariant: nothing here undoes anything. What a call has changed becomes visible when it ends well, all at once; a call
//! that fails, is stopped or dies has changed nothing.
//!
//! ```text
//! estop run example-tools/edit replace --workspace . -i '{"find":"colour","replace":"color","word":true}'
//! ```

mod files;
mod patch;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;

use estop_tool::{ToolError, checkpoint, progress};
use regex::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use files::{Selection, failed, inside};

/// The longest pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 4096;
/// A larger file is not searched, in bytes.
const MAX_FILE_BYTES: u64 = 8 << 20;
/// Number of files that are named in an answer; the others are counted.
const MAX_NAMED: usize = 1000;
/// Memory of a compiled pattern, in bytes.
const MAX_REGEX_BYTES: usize = 4 << 20;

/// What to search for, and what to put in its place.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Replace {
    /// The text to search for, or a regular expression if `regex` is set.
    find: String,
    /// What is put in its place. With `regex`, `$1` or `${name}` stands for what a group has matched.
    replace: String,
    /// `find` is a regular expression.
    #[serde(default)]
    regex: bool,
    /// Only where it stands as a word of its own, as the name of something in a program does.
    #[serde(default)]
    word: bool,
    /// Which files. All text files, if it is left out.
    #[serde(default)]
    files: Selection,
}

/// What was replaced.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Replaced {
    /// Number of files that were changed.
    files: usize,
    /// Number of places where something was replaced.
    places: usize,
    /// The files, up to 1000 of them.
    changed: Vec<Changed>,
    /// Number of files that are no text, or too large.
    skipped: usize,
}

/// A file that was changed.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Changed {
    path: String,
    places: usize,
}

/// Replace a text, or whatever a regular expression matches, in the files of the workspace. Binary files are left alone.
#[estop_tool::tool(destructive)]
pub fn replace(input: Replace) -> Result<Replaced, ToolError> {
    let pattern = pattern(&input)?;
    let found = input.files.find()?;
    let mut done = Replaced { files: 0, places: 0, changed: Vec::new(), skipped: 0 };
    let total = found.len() as u64;
    for (number, path) in found.iter().enumerate() {
        checkpoint()?;
        progress(number as u64, total, path);
        let Some(text) = text(path)? else {
            done.skipped += 1;
            continue;
        };
        let places = pattern.find_iter(&text).count();
        if places == 0 {
            continue;
        }
        let changed = match input.regex {
            true => pattern.replace_all(&text, input.replace.as_str()),
            false => pattern.replace_all(&text, regex::NoExpand(&input.replace)),
        };
        fs::write(path, &*changed).map_err(|error| failed("write", path, &error))?;
        done.files += 1;
        done.places += places;
        if done.changed.len() < MAX_NAMED {
            done.changed.push(Changed { path: path.clone(), places });
        }
    }
    progress(total, total, "done");
    Ok(done)
}

fn pattern(input: &Replace) -> Result<Regex, ToolError> {
    if input.find.is_empty() {
        return Err(ToolError::invalid_input("find: there is nothing to search for"));
    }
    if input.find.len() > MAX_PATTERN_BYTES {
        return Err(ToolError::invalid_input(format!("find: longer than {MAX_PATTERN_BYTES} bytes")));
    }
    let plain = if input.regex { input.find.clone() } else { regex::escape(&input.find) };
    let whole = if input.word { format!(r"\b(?:{plain})\b") } else { plain };
    let built = RegexBuilder::new(&whole).size_limit(MAX_REGEX_BYTES).multi_line(true).build();
    built.map_err(|error| ToolError::invalid_input(format!("find: {error}")))
}

/// What a file holds, if it is text that is not too large.
fn text(path: &str) -> Result<Option<String>, ToolError> {
    let found = fs::metadata(path).map_err(|error| failed("look at", path, &error))?;
    if found.len() > MAX_FILE_BYTES {
        return Ok(None);
    }
    let bytes = fs::read(path).map_err(|error| failed("read", path, &error))?;
    Ok(String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')))
}

/// A file to be made.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// From the top of the workspace. Folders on the way are made.
    path: String,
    content: String,
    /// Replace a file that is there.
    #[serde(default)]
    overwrite: bool,
}

/// A file that was made.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Created {
    path: String,
    bytes: usize,
    /// There was one before.
    replaced: bool,
}

/// Make a file with this content.
#[estop_tool::tool(destructive)]
pub fn create(input: Create) -> Result<Created, ToolError> {
    let path = inside(&input.path)?;
    let replaced = fs::symlink_metadata(&path).is_ok();
    if replaced && !input.overwrite {
        let why = format!("`{path}` is there already; set `overwrite` to replace it");
        return Err(ToolError::failed("exists", why));
    }
    make_parent(&path)?;
    fs::write(&path, &input.content).map_err(|error| failed("write", &path, &error))?;
    Ok(Created { path, bytes: input.content.len(), replaced })
}

/// What to move, and where to.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// A file or a folder, from the top of the workspace.
    from: String,
    /// Its new path. Folders on the way are made.
    to: String,
    /// Replace a file that is there.
    #[serde(default)]
    overwrite: bool,
}

/// What was moved.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Moved {
    from: String,
    to: String,
}

/// Move a file or a folder.
#[estop_tool::tool(destructive)]
pub fn r#move(input: Move) -> Result<Moved, ToolError> {
    let (from, to) = (inside(&input.from)?, inside(&input.to)?);
    if fs::symlink_metadata(&to).is_ok() && !input.overwrite {
        let why = format!("`{to}` is there already; set `overwrite` to replace it");
        return Err(ToolError::failed("exists", why));
    }
    make_parent(&to)?;
    fs::rename(&from, &to).map_err(|error| failed("move", &from, &error))?;
    Ok(Moved { from, to })
}

pub(crate) fn make_parent(path: &str) -> Result<(), ToolError> {
    match Path::new(path).parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            let shown = parent.display().to_string();
            fs::create_dir_all(parent).map_err(|error| failed("make the folder", &shown, &error))
        }
        _ => Ok(()),
    }
}

pub use patch::apply_diff;

estop_tool::export!(replace, create, r#move, apply_diff);
