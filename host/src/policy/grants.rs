//! `[[grants]]`: who gets what beyond its own state.

mod hosts;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use self::hosts::HostTable;
use super::secrets::Secrets;
use super::{Bytes, Count, LimitsTable, PolicyError, Time};
use crate::grants::{Grantee, Grants, Program, ProgramGrant, ProgramLimits, WorkspaceGrant, clash, contradiction};
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
    programs: Vec<Spanned<ProgramTable>>,
    #[serde(default)]
    hosts: Vec<HostTable>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    secret_environment: BTreeMap<String, String>,
    #[serde(default)]
    clock: bool,
    #[serde(default)]
    random: bool,
    limits: Option<Spanned<LimitsTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProgramTable {
    path: PathBuf,
    #[serde(default)]
    arguments: Vec<Vec<String>>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    secret_environment: BTreeMap<String, String>,
    time: Option<Time>,
    cpu: Option<Time>,
    memory: Option<Bytes>,
    processes_max: Option<u32>,
    file_bytes_max: Option<Bytes>,
    output_bytes_max: Option<Bytes>,
    #[serde(default)]
    accept_unverified: bool,
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

impl GrantTable {
    fn is_empty(&self) -> bool {
        let is_bare = self.workspaces.is_empty() && self.programs.is_empty() && self.hosts.is_empty();
        is_bare
            && self.environment.is_empty()
            && self.secret_environment.is_empty()
            && !self.clock
            && !self.random
            && self.limits.is_none()
    }
}

/// A rule, as it is in code.
pub(super) type Rule = (Grantee, Grants);

/// What the rest of the file says, and how to say what is wrong.
pub(super) struct Given<'a> {
    /// Whether the file names a component so.
    pub(super) is_component: &'a dyn Fn(&str) -> bool,
    pub(super) folder: &'a Path,
    pub(super) memory_bytes_max: usize,
    pub(super) secrets: &'a Secrets,
    pub(super) wrong: &'a dyn Fn(Range<usize>, String) -> PolicyError,
}

pub(super) fn check(tables: Vec<Spanned<GrantTable>>, given: &Given<'_>) -> Result<Vec<Rule>, PolicyError> {
    let &Given { is_component, folder, memory_bytes_max, secrets, wrong } = given;
    let mut rules = Vec::new();
    for table in tables {
        let place = table.span();
        let table = table.into_inner();
        if table.is_empty() {
            let what = "it grants nothing: add `workspaces`, `programs`, `hosts`, `environment`, `clock`, `random` or `limits`";
            return Err(wrong(place, what.into()));
        }
        let mut grantee = Grantee::everyone();
        if let Some(agent) = table.agent {
            grantee = grantee.agent(name(agent, "an agent", wrong)?);
        }
        if let Some(component) = table.component {
            if !is_component(component.get_ref()) {
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
            grants = grants.http(host.check(secrets, wrong)?);
        }
        for program in table.programs {
            let place = program.span();
            let program = program.into_inner().grant(secrets).map_err(|why| wrong(place.clone(), why))?;
            // Looked at here as well, for whoever has to find the line.
            Program::open(program.clone()).map_err(|error| wrong(place, error.to_string()))?;
            grants = grants.program(program);
        }
        grants = table.environment.into_iter().fold(grants, |grants, (name, value)| grants.environment(name, value));
        for (name, secret) in table.secret_environment {
            let secret = secrets.get(&secret).map_err(|why| wrong(place.clone(), why))?;
            grants = grants.environment(name, secret.value());
        }
        grants.check_ambient().map_err(|error| wrong(place.clone(), error.to_string()))?;
        grants = if table.clock { grants.clock() } else { grants };
        grants = if table.random { grants.random() } else { grants };
        if let Some(limits) = table.limits {
            let at = limits.span();
            let (change, state) = limits.into_inner().check(memory_bytes_max, wrong)?;
            if !state.is_empty() {
                return Err(wrong(at, "what calls keep is bounded for all of them: in [limits.state]".into()));
            }
            grants = grants.limits(change);
        }
        rules.push((grantee, grants));
        if let Some(what) = contradiction(&rules) {
            return Err(wrong(
                place,
                format!("another rule that covers the same call says something about `{what}`, too"),
            ));
        }
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

impl ProgramTable {
    fn grant(self, secrets: &Secrets) -> Result<ProgramGrant, String> {
        let none = ProgramLimits::default();
        let grant = ProgramGrant::new(self.path).limits(ProgramLimits {
            time: Time::or(self.time, none.time),
            cpu: Time::or(self.cpu, none.cpu),
            memory_bytes_max: Bytes::many_or(self.memory, none.memory_bytes_max),
            processes_max: self.processes_max.unwrap_or(none.processes_max),
            file_bytes_max: Bytes::many_or(self.file_bytes_max, none.file_bytes_max),
            output_bytes_max: Bytes::many_or(self.output_bytes_max, none.output_bytes_max),
        });
        let grant = self.arguments.into_iter().fold(grant, ProgramGrant::arguments);
        let grant = self.environment.into_iter().fold(grant, |grant, (name, value)| grant.environment(name, value));
        let grant = if self.accept_unverified { grant.accept_unverified() } else { grant };
        self.secret_environment
            .into_iter()
            .try_fold(grant, |grant, (name, secret)| Ok(grant.environment(name, secrets.get(&secret)?.value())))
    }
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
        let grant = grant.limits(WorkspaceLimits {
            bytes_max: Bytes::many_or(self.bytes_max, none.bytes_max),
            entries_max: Count::or(self.entries_max, none.entries_max),
            memory_bytes_max: Bytes::many_or(self.memory_bytes_max, none.memory_bytes_max),
        });
        let Some(at) = self.at else { return Ok(grant) };
        let place = at.span();
        let grant = grant.at(at.into_inner());
        if grant.is_at_a_path() { Ok(grant) } else { Err(wrong(place, "an absolute path, such as \"/data\"".into())) }
    }
}
