//! What is granted on the command line.

use std::path::Path;

use crate::{ProgramGrant, WorkspaceGrant};

/// `DIR[:ro][=PATH]`
pub(super) fn workspace(text: &str) -> Result<WorkspaceGrant, String> {
    let (folder, at) = match text.rsplit_once('=') {
        Some((_, at)) if at.starts_with('/') && at.ends_with(":ro") => {
            return Err("`:ro` stands before the `=`: DIR:ro=PATH".into());
        }
        Some((folder, at)) if at.starts_with('/') => (folder, Some(at)),
        Some((_, at)) if !Path::new(text.strip_suffix(":ro").unwrap_or(text)).exists() => {
            return Err(format!("it is seen at an absolute path, not at `{at}`: DIR[:ro]=/PATH"));
        }
        _ => (text, None),
    };
    let grant = match folder.strip_suffix(":ro") {
        Some("") | None if folder.is_empty() || folder == ":ro" => return Err("name a folder".into()),
        Some(folder) => WorkspaceGrant::read_only(folder),
        None => WorkspaceGrant::new(folder),
    };
    Ok(at.map_or(grant.clone(), |at| grant.at(at)))
}

/// A program's path, or its name, which is looked for in `PATH`.
pub(super) fn program(text: &str) -> Result<ProgramGrant, String> {
    if text.contains('/') {
        let path = std::path::absolute(text).map_err(|error| error.to_string())?;
        return Ok(ProgramGrant::new(path));
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&folders).map(|folder| folder.join(text));
    // What is found there and cannot be executed is said when it is granted.
    let found = found.find(|path| path.is_absolute() && path.is_file());
    found.map(ProgramGrant::new).ok_or_else(|| format!("there is no program `{text}` in PATH"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_and_where_it_is_seen() {
        assert_eq!(workspace("."), Ok(WorkspaceGrant::new(".")));
        assert_eq!(workspace("a/b:ro"), Ok(WorkspaceGrant::read_only("a/b")));
        assert_eq!(workspace("a=/data"), Ok(WorkspaceGrant::new("a").at("/data")));
        assert_eq!(workspace("a=b:ro=/data"), Ok(WorkspaceGrant::read_only("a=b").at("/data")));
        for nothing in ["", ":ro", "=/data", ":ro=/data", "a=/data:ro", "a=b", "a=b:ro"] {
            assert!(workspace(nothing).is_err(), "{nothing}");
        }
    }
}
