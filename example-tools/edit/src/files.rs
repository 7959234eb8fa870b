//! Which files a call works on.

use std::fs;
use std::path::{Component, Path};

use estop_tool::{ToolError, checkpoint};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use schemars::JsonSchema;
use serde::Deserialize;

/// Number of files that one call works on.
const MAX_FILES: usize = 100_000;
/// Number of patterns for paths.
const MAX_GLOBS: usize = 100;

/// Some of the files of the workspace.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// Only in this folder, or this file. Everywhere if it is left out.
    #[serde(default)]
    pub path: Option<String>,
    /// Only files whose path from the top matches one of these, such as `src/**/*.rs` or `*.md`.
    #[serde(default)]
    pub include: Vec<String>,
    /// But none whose path, or that of a folder that it is in, matches one of these. Folders named `.git`, `node_modules`
    /// and `target` are left out if nothing is said.
    #[serde(default)]
    pub exclude: Option<Vec<String>>,
}

impl Selection {
    /// Regular files, in order. Symbolic links are not followed: what they lead to is found where it is.
    pub fn find(&self) -> Result<Vec<String>, ToolError> {
        let include = if self.include.is_empty() { None } else { Some(globs("include", &self.include)?) };
        let left_out: Vec<String> = [".git", "node_modules", "target"].map(String::from).to_vec();
        let exclude = globs("exclude", self.exclude.as_ref().unwrap_or(&left_out))?;
        let start = self.path.as_deref().map_or(Ok(".".to_owned()), inside)?;
        let mut found = Vec::new();
        let mut left = vec![start];
        while let Some(here) = left.pop() {
            checkpoint()?;
            let kind = fs::symlink_metadata(&here).map_err(|error| failed("look at", &here, &error))?;
            if kind.is_file() {
                found.push(here);
                continue;
            }
            if !kind.is_dir() {
                continue;
            }
            for entry in fs::read_dir(&here).map_err(|error| failed("list", &here, &error))? {
                // A name that is no text cannot be said, so nothing is asked about it.
                let Ok(entry) = entry else { continue };
                let Ok(name) = entry.file_name().into_string() else { continue };
                let path = if here == "." { name } else { format!("{here}/{name}") };
                let kind = entry.file_type().map_err(|error| failed("look at", &path, &error))?;
                if exclude.is_match(&path) {
                    continue;
                }
                if kind.is_dir() {
                    left.push(path);
                } else if kind.is_file() && include.as_ref().is_none_or(|include| include.is_match(&path)) {
                    found.push(path);
                }
                if found.len() + left.len() > MAX_FILES {
                    let why = format!("more than {MAX_FILES} files; name a folder, or patterns");
                    return Err(ToolError::failed("too-many-files", why));
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}

/// A pattern without a slash is one for names, wherever they are.
fn globs(what: &str, patterns: &[String]) -> Result<GlobSet, ToolError> {
    let invalid = |error: &dyn std::fmt::Display| ToolError::invalid_input(format!("{what}: {error}"));
    if patterns.len() > MAX_GLOBS {
        return Err(invalid(&format!("more than {MAX_GLOBS} patterns")));
    }
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let anywhere = if pattern.contains('/') { pattern.clone() } else { format!("**/{pattern}") };
        set.add(GlobBuilder::new(&anywhere).literal_separator(true).build().map_err(|error| invalid(&error))?);
    }
    set.build().map_err(|error| invalid(&error))
}

/// A path from the top of the workspace.
pub fn inside(path: &str) -> Result<String, ToolError> {
    let mut names = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => names.push(name.to_string_lossy()),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                let why = format!("`{path}`: a path goes down from the top of the workspace, without `..`");
                return Err(ToolError::invalid_input(why));
            }
        }
    }
    if names.is_empty() {
        return Err(ToolError::invalid_input(format!("`{path}` names nothing")));
    }
    Ok(names.join("/"))
}

pub fn failed(what: &str, path: &str, error: &std::io::Error) -> ToolError {
    let code = match error.kind() {
        std::io::ErrorKind::NotFound => "not-found",
        std::io::ErrorKind::QuotaExceeded | std::io::ErrorKind::OutOfMemory => "quota",
        _ => "io",
    };
    let hint = if path == "." { "; no folder is granted at `/`: `--workspace DIR`" } else { "" };
    ToolError::failed(code, format!("cannot {what} `{path}`: {error}{hint}"))
}
