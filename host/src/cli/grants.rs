//! What is granted on the command line.

use std::path::Path;

use crate::grants::http::HostPattern;
use crate::hostcalls::http::is_public;
use crate::policy::secrets::of_variable;
use crate::{HttpGrant, ProgramGrant, Secret, WorkspaceGrant};

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

/// `[METHOD[,METHOD…] ][SCHEME://]HOST[:PORT]`. Whoever writes a private address, or `localhost`, means it: then private
/// addresses are granted for that host.
pub(super) fn host(text: &str) -> Result<HttpGrant, String> {
    let (methods, host) = text.trim().rsplit_once(' ').map_or((None, text.trim()), |(all, host)| (Some(all), host));
    let mut grant = HttpGrant::new(host);
    if let Some(methods) = methods {
        grant = grant.methods(methods.trim().split(',').map(str::trim));
    }
    let is_private = match grant.open().map_err(|error| error.to_string())?.host {
        HostPattern::Address(address) => !is_public(address),
        HostPattern::Name(name) => name == "localhost",
        HostPattern::Any | HostPattern::Under(_) => false,
    };
    Ok(grant.private_addresses(is_private))
}

/// A variable of this process's environment.
pub(super) fn secret(name: &str) -> Result<Secret, String> {
    of_variable(name).map(|value| Secret::new(name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_and_what_may_be_asked_of_it() {
        assert_eq!(host("https://example.com"), Ok(HttpGrant::new("https://example.com")));
        assert_eq!(host("POST, PUT a.test"), Ok(HttpGrant::new("a.test").methods(["POST", "PUT"])));
        for private in ["http://127.0.0.1:8080", "http://localhost:8080", "https://[::1]", "10.0.0.1"] {
            assert_eq!(host(private), Ok(HttpGrant::new(private).private_addresses(true)));
        }
        for public in ["http://1.1.1.1", "localhost.test", "*", "*.localhost"] {
            assert_eq!(host(public), Ok(HttpGrant::new(public)));
        }
        for nothing in ["", "GET GET,", "get a.test", "GET ftp://a", ", a.test"] {
            assert!(host(nothing).is_err(), "{nothing}");
        }
    }

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
