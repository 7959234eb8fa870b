//! `[[grants]]`: who gets what beyond its own state.

mod hosts;

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use self::hosts::HostTable;
use super::{Bytes, Count, PolicyError};
use crate::grants::{Grantee, Grants, WorkspaceGrant, clash};
use crate::workspace::WorkspaceLimits;

/// One rule.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GrantTable {
    agent: Option<Spanned<String>>,
    component: Option<Spanned<String>>,
    tool: Option<Spanned<String>>,
    #[serde(default)]
    workspaces: Vec<Spanned<WorkspaceTable>>,
    #[serde(default)]
    hosts: Vec<HostTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkspaceTable {
    path: Spanned<PathBuf>,
    #[serde(default)]
    write: bool,
    at: Option<Spanned<String>>,
    bytes_max: Option<Bytes>,
    entries_max: Option<Count>,
    memory_bytes_max: Option<Bytes>,
}

/// A rule, as it is in code.
pub(super) type Rule = (Grantee, Grants);

/// `components`: those that the file names.
pub(super) fn check(
    tables: Vec<Spanned<GrantTable>>,
    components: &dyn Fn(&str) -> bool,
    folder: &Path,
    wrong: &dyn Fn(Range<usize>, String) -> PolicyError,
) -> Result<Vec<Rule>, PolicyError> {
    let mut rules = Vec::new();
    for table in tables {
        let place = table.span();
        let table = table.into_inner();
        if table.workspaces.is_empty() && table.hosts.is_empty() {
            return Err(wrong(place, "it grants nothing: add `workspaces` or `hosts`".into()));
        }
        let mut grantee = Grantee::everyone();
        if let Some(agent) = table.agent {
            grantee = grantee.agent(name(agent, "an agent", wrong)?);
        }
        if let Some(component) = table.component {
            if !components(component.get_ref()) {
                let why = format!("there is no [tools.{}] in this file", component.get_ref());
                return Err(wrong(component.span(), why));
            }
            grantee = grantee.component(component.into_inner());
        }
        if let Some(tool) = table.tool {
            grantee = grantee.tool(name(tool, "a tool", wrong)?);
        }
        let mut grants = Grants::new();
        for workspace in table.workspaces {
            let place = workspace.span();
            grants = grants.workspace(workspace.into_inner().check(folder, wrong)?);
            rules.push((grantee.clone(), grants.clone()));
            if let Some(at) = clash(&rules) {
                return Err(wrong(place, format!("the same call would see another workspace at `{at}`, too")));
            }
            rules.pop();
        }
        for host in table.hosts {
            grants = grants.http(host.check(wrong)?);
        }
        rules.push((grantee, grants));
    }
    Ok(rules)
}

fn name(
    given: Spanned<String>,
    what: &str,
    wrong: &dyn Fn(Range<usize>, String) -> PolicyError,
) -> Result<String, PolicyError> {
    let place = given.span();
    let name = given.into_inner();
    if name.is_empty() { Err(wrong(place, format!("the name of {what} is not empty"))) } else { Ok(name) }
}

impl WorkspaceTable {
    fn check(
        self,
        folder: &Path,
        wrong: &dyn Fn(Range<usize>, String) -> PolicyError,
    ) -> Result<WorkspaceGrant, PolicyError> {
        let place = self.path.span();
        // A relative path is one from the file, wherever the command is started.
        let path = folder.join(self.path.into_inner());
        if !path.is_dir() {
            return Err(wrong(place, format!("`{}` is no folder", path.display())));
        }
        let grant = if self.write { WorkspaceGrant::new(path) } else { WorkspaceGrant::read_only(path) };
        let none = WorkspaceLimits::default();
        let bytes = |given: Option<Bytes>, default| given.map_or(default, |Bytes(bytes)| bytes as u64);
        let grant = grant.limits(WorkspaceLimits {
            bytes_max: bytes(self.bytes_max, none.bytes_max),
            entries_max: self.entries_max.map_or(none.entries_max, |Count(count)| count),
            memory_bytes_max: bytes(self.memory_bytes_max, none.memory_bytes_max),
        });
        let Some(at) = self.at else { return Ok(grant) };
        let place = at.span();
        let grant = grant.at(at.into_inner());
        if grant.is_at_a_path() { Ok(grant) } else { Err(wrong(place, "an absolute path, such as \"/data\"".into())) }
    }
}
