//! What tools may use beyond their own state, in code. Nothing, if nothing is said.
//!
//! Invariant: a call gets what every rule that names it gives, and nothing else; and everything that a rule names was there
//! when the host was built.

mod ambient;
pub(crate) mod http;
mod program;
mod secret;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use self::ambient::Ambient;
use self::http::HttpRule;
pub use self::http::{HttpGrant, HttpLimits};
pub(crate) use self::program::Program;
pub use self::program::{ProgramGrant, ProgramLimits};
pub use self::secret::Secret;
use crate::call::{CallLimits, LimitsChange};
use crate::store::Store;
use crate::workspace::{Workspace, WorkspaceError, WorkspaceLimits};

/// To whom something is granted. What is left open covers all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grantee {
    agent: Option<String>,
    component: Option<String>,
    tool: Option<String>,
}

impl Grantee {
    /// Every call of every agent.
    pub fn everyone() -> Self {
        Self::default()
    }

    /// Only what this agent calls.
    #[must_use]
    pub fn agent(mut self, name: impl Into<String>) -> Self {
        self.agent = Some(name.into());
        self
    }

    /// Only tools of the component that was loaded under this name.
    #[must_use]
    pub fn component(mut self, name: impl Into<String>) -> Self {
        self.component = Some(name.into());
        self
    }

    /// Only tools of this name.
    #[must_use]
    pub fn tool(mut self, name: impl Into<String>) -> Self {
        self.tool = Some(name.into());
        self
    }

    /// Agent, component and tool, where they are named.
    #[cfg(feature = "cli")]
    pub(crate) fn names(&self) -> (Option<&str>, Option<&str>, Option<&str>) {
        (self.agent.as_deref(), self.component.as_deref(), self.tool.as_deref())
    }

    /// Whether there can be a call that both cover.
    fn meets(&self, other: &Self) -> bool {
        let meets = |one: &Option<String>, other: &Option<String>| {
            one.as_ref().zip(other.as_ref()).is_none_or(|(one, other)| one == other)
        };
        meets(&self.agent, &other.agent) && meets(&self.component, &other.component) && meets(&self.tool, &other.tool)
    }

    fn covers(&self, agent: &str, component: &str, tool: &str) -> bool {
        let covers = |named: &Option<String>, name: &str| named.as_ref().is_none_or(|named| named == name);
        covers(&self.agent, agent) && covers(&self.component, component) && covers(&self.tool, tool)
    }
}

/// What is granted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    workspaces: Vec<WorkspaceGrant>,
    programs: Vec<ProgramGrant>,
    ambient: Ambient,
    limits: LimitsChange,
    http: Vec<HttpGrant>,
}

impl Grants {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Files of a folder.
    #[must_use]
    pub fn workspace(mut self, workspace: WorkspaceGrant) -> Self {
        self.workspaces.push(workspace);
        self
    }

    /// Requests to a host. If several cover a request, the first one decides about addresses, limits and secrets.
    #[must_use]
    pub fn http(mut self, http: HttpGrant) -> Self {
        self.http.push(http);
        self
    }

    /// A variable of the guest's environment, which is otherwise empty.
    #[must_use]
    pub fn environment(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.ambient.environment.insert(name.into(), value.into());
        self
    }

    /// The host's clocks as they are. They are coarse otherwise: one millisecond.
    #[must_use]
    pub fn clock(mut self) -> Self {
        self.ambient.clock = true;
        self
    }

    /// Real randomness. It is the same for each call otherwise, so that the same input uses the same fuel.
    #[must_use]
    pub fn random(mut self) -> Self {
        self.ambient.random = true;
        self
    }

    /// Other limits than those of every call. A call may still ask for less or more of some of them.
    #[must_use]
    pub fn limits(mut self, limits: LimitsChange) -> Self {
        self.limits = limits;
        self
    }

    /// A program of the machine.
    #[must_use]
    pub fn program(mut self, program: ProgramGrant) -> Self {
        self.programs.push(program);
        self
    }
}

impl Grants {
    pub(crate) fn check_ambient(&self) -> Result<(), GrantError> {
        self.ambient.check()
    }
}

/// Files of a folder, for a guest that uses `wasi:filesystem`. What it changes is part of the call's transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceGrant {
    path: PathBuf,
    at: String,
    is_read_only: bool,
    limits: WorkspaceLimits,
}

impl WorkspaceGrant {
    /// To read and to change.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), at: "/".into(), is_read_only: false, limits: WorkspaceLimits::default() }
    }

    /// To read only.
    pub fn read_only(path: impl Into<PathBuf>) -> Self {
        Self { is_read_only: true, ..Self::new(path) }
    }

    /// Where the guest sees it: an absolute path, `/` if nothing is said.
    #[must_use]
    pub fn at(mut self, path: impl Into<String>) -> Self {
        self.at = path.into();
        self
    }

    /// How much one call may keep of it.
    #[must_use]
    pub fn limits(mut self, limits: WorkspaceLimits) -> Self {
        self.limits = limits;
        self
    }
}

impl WorkspaceGrant {
    pub(crate) fn is_at_a_path(&self) -> bool {
        self.at.starts_with('/') && !self.at.split('/').any(|name| name == "..")
    }
}

/// A grant cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// The folder cannot be a workspace.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// Requests cannot be granted like this.
    #[error("cannot grant requests to `{host}`: {why}")]
    Host {
        /// As it was written.
        host: String,
        /// What is wrong with it.
        why: String,
    },
    /// A guest could not find it there.
    #[error("a workspace is seen at an absolute path such as `/` or `/data`, not at `{0}`")]
    At(String),
    /// A tool could change what decides about tools.
    #[error(
        "the workspace `{}` has `{}` in it, which no tool may change: grant a folder without that, or to read only",
        workspace.display(), kept.display()
    )]
    Kept {
        /// Which one.
        workspace: PathBuf,
        /// The configuration, a component or a granted program.
        kept: PathBuf,
    },
    /// A program cannot be granted.
    #[error("the program `{}`: {why}", path.display())]
    Program {
        /// By its path.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A variable cannot be granted.
    #[error("`{0}` is no variable of an environment: a name without `=`, and no null byte in name or value")]
    Variable(String),
    /// Two rules that cover the same call say different things.
    #[error("two rules that cover the same call both say something about `{0}`: say it once")]
    Contradiction(String),
    /// A guest would see only one of them.
    #[error(
        "two workspaces would be seen at `{0}` by the same call: give one of them another place (`at`, or `=PATH`)"
    )]
    Twice(String),
    /// What a call changes in one of them it would not see in the other.
    #[error("the same call would see the workspace `{}` twice: grant it once", .0.display())]
    Again(PathBuf),
    /// What one call commits would be another folder's affair, too.
    #[error("the workspaces `{}` and `{}` overlap: grant one of them", .0.display(), .1.display())]
    Nested(PathBuf, PathBuf),
}

/// A workspace that a call gets, and where it sees it.
pub(crate) type Seen = (String, Arc<Workspace>);

/// What one call gets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Granted {
    pub(crate) workspaces: Vec<Seen>,
    pub(crate) programs: Vec<Arc<Program>>,
    pub(crate) ambient: Ambient,
    limits: Vec<LimitsChange>,
    pub(crate) http: Vec<Arc<HttpRule>>,
}

impl Granted {
    /// In words, one for each grant.
    pub(crate) fn in_words(&self) -> Vec<String> {
        let workspaces = self.workspaces.iter().map(|(at, workspace)| workspace.in_words(at));
        let programs = self.programs.iter().map(|program| program.in_words());
        let http = self.http.iter().map(|rule| rule.in_words());
        let limits =
            self.limits.iter().filter_map(LimitsChange::in_words).map(|limits| format!("other limits: {limits}"));
        workspaces.chain(programs).chain(http).chain(self.ambient.in_words()).chain(limits).collect()
    }

    /// Replaces what holds for every call.
    pub(crate) fn change(&self, limits: &mut CallLimits) {
        self.limits.iter().for_each(|change| change.apply(limits));
    }

    /// What a call gets of this that is invoked by one that was granted that.
    pub(crate) fn at_most(&self, invoker: &Self) -> Self {
        let each = self.workspaces.iter().filter_map(|(at, own)| {
            let (_, theirs) = invoker.workspaces.iter().find(|(_, theirs)| theirs.path() == own.path())?;
            let narrower = if theirs.is_read_only() { theirs } else { own };
            Some((at.clone(), Arc::clone(narrower)))
        });
        // The same words: of two that say different things neither is sure to be the narrower one.
        let programs = self.programs.iter().filter(|own| invoker.programs.iter().any(|theirs| theirs.is_same(own)));
        let http = self.http.iter().filter(|own| invoker.http.contains(own));
        Self {
            workspaces: each.collect(),
            programs: programs.cloned().collect(),
            http: http.cloned().collect(),
            ambient: self.ambient.at_most(&invoker.ambient),
            limits: self.limits.clone(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.workspaces.extend_from_slice(&other.workspaces);
        self.programs.extend_from_slice(&other.programs);
        self.ambient.add(&other.ambient);
        self.limits.extend_from_slice(&other.limits);
        self.http.extend_from_slice(&other.http);
    }
}

/// Everything that a host grants.
#[derive(Debug, Default)]
pub(crate) struct GrantTable {
    rules: Vec<(Grantee, Granted)>,
}

impl GrantTable {
    /// `kept`: files that no tool may change.
    pub(crate) fn open(rules: Vec<(Grantee, Grants)>, store: &dyn Store, kept: &[PathBuf]) -> Result<Self, GrantError> {
        if let Some(at) = clash(&rules) {
            return Err(GrantError::Twice(at.to_owned()));
        }
        if let Some(what) = contradiction(&rules) {
            return Err(GrantError::Contradiction(what));
        }
        let own: Vec<PathBuf> = store.home().map(|home| home.path().to_owned()).into_iter().chain(machine()).collect();
        let mut opened: Vec<(Grantee, Granted)> = Vec::new();
        for (grantee, grants) in rules {
            let mut granted = Granted::default();
            grants.check_ambient()?;
            for grant in grants.workspaces {
                if !grant.is_at_a_path() {
                    return Err(GrantError::At(grant.at));
                }
                let workspace = Workspace::open(&grant.path, grant.is_read_only, grant.limits, &own, store)?;
                granted.workspaces.push((grant.at, Arc::new(workspace)));
            }
            granted.ambient = grants.ambient;
            if grants.limits != LimitsChange::default() {
                granted.limits.push(grants.limits);
            }
            for grant in grants.programs {
                granted.programs.push(Arc::new(Program::open(grant)?));
            }
            for grant in grants.http {
                granted.http.push(Arc::new(grant.open()?));
            }
            opened.push((grantee, granted));
        }
        let programs = opened.iter().flat_map(|(_, all)| all.programs.iter().map(|program| program.path().to_owned()));
        for kept in programs.chain(kept.iter().cloned()) {
            // What is not there yet is compared by its name.
            let real = kept.canonicalize().unwrap_or(kept);
            let all = || opened.iter().flat_map(|(_, all)| all.workspaces.iter().map(|(_, workspace)| workspace));
            if let Some(workspace) = all().find(|found| !found.is_read_only() && real.starts_with(found.path())) {
                return Err(GrantError::Kept { workspace: workspace.path().to_owned(), kept: real });
            }
        }
        let each = || opened.iter().flat_map(|(_, all)| all.workspaces.iter().map(|(_, workspace)| workspace.path()));
        for (number, path) in each().enumerate() {
            let nested = |other: &&Path| path != *other && (path.starts_with(other) || other.starts_with(path));
            if let Some(other) = each().skip(number + 1).find(nested) {
                return Err(GrantError::Nested(path.to_owned(), other.to_owned()));
            }
        }
        let each = || {
            let each = opened.iter().flat_map(|(who, all)| all.workspaces.iter().map(move |seen| (who, seen)));
            each.map(|(who, (_, workspace))| (who, workspace.path()))
        };
        for (number, (who, path)) in each().enumerate() {
            if each().skip(number + 1).any(|(other, same)| path == same && who.meets(other)) {
                return Err(GrantError::Again(path.to_owned()));
            }
        }
        Ok(Self { rules: opened })
    }

    /// Every rule.
    #[cfg(feature = "cli")]
    pub(crate) fn rules(&self) -> &[(Grantee, Granted)] {
        &self.rules
    }

    /// What a call gets.
    pub(crate) fn of(&self, agent: &str, component: &str, tool: &str) -> Granted {
        let rules = self.rules.iter().filter(|(grantee, _)| grantee.covers(agent, component, tool));
        let mut granted = Granted::default();
        rules.for_each(|(_, given)| granted.add(given));
        granted
    }
}

/// Where a call could see two workspaces, if one could.
pub(crate) fn clash(rules: &[(Grantee, Grants)]) -> Option<&str> {
    let each = || rules.iter().flat_map(|(who, grants)| grants.workspaces.iter().map(move |grant| (who, &grant.at)));
    each().enumerate().find_map(|(number, (who, at))| {
        let twice = each().skip(number + 1).any(|(other, there)| at == there && who.meets(other));
        twice.then_some(at.as_str())
    })
}

/// What two rules both say something about that can cover the same call.
pub(crate) fn contradiction(rules: &[(Grantee, Grants)]) -> Option<String> {
    rules.iter().enumerate().find_map(|(number, (who, what))| {
        let mut others = rules[number + 1..].iter().filter(|(other, _)| who.meets(other));
        others.find_map(|(_, other)| {
            let limit = what.limits.clash(&other.limits).map(str::to_owned);
            limit.or_else(|| what.ambient.clash(&other.ambient))
        })
    })
}

/// Where the halts of the machine are, and the sockets of hosts.
fn machine() -> impl Iterator<Item = PathBuf> {
    let fixed = ["/var/lib/estop", "/run/estop"].into_iter().map(|path| Path::new(path).to_owned());
    #[cfg(feature = "control")]
    let fixed = fixed.chain([crate::control::place::own_root()]);
    fixed
}
