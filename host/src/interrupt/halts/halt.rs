//! What a halt is, and what it says.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::ids::{HaltId, HostId};
use crate::interrupt::{Scope, TEXT_BYTES_MAX, cut};
use crate::log::rfc3339_us;
use crate::tools::Digest;

/// What a halt covers, always with the children of what it names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HaltScope {
    /// Everything that runs where the halt is in force: in a home, or on the machine.
    All,
    /// Every call on behalf of this agent, and the agent's own program.
    Agent(String),
    /// Every call of a tool of this name, in whatever component.
    Tool(String),
    /// Every call of this component.
    Component(Digest),
    /// Every call of this host process.
    Host(HostId),
}

impl HaltScope {
    /// What to stop in this host, if anything.
    pub(super) fn in_host(&self, host: HostId) -> Option<Scope> {
        Some(match self {
            HaltScope::All => Scope::Everything,
            HaltScope::Agent(agent) => Scope::Agent(agent.clone()),
            HaltScope::Tool(tool) => Scope::Tool(tool.clone()),
            HaltScope::Component(digest) => Scope::Component(*digest),
            HaltScope::Host(halted) => return (*halted == host).then_some(Scope::Host),
        })
    }

    /// Whether this agent's own program may not go on.
    pub fn covers_agent(&self, agent: &str) -> bool {
        match self {
            HaltScope::All => true,
            HaltScope::Agent(halted) => halted == agent,
            HaltScope::Tool(_) | HaltScope::Component(_) | HaltScope::Host(_) => false,
        }
    }
}

impl std::fmt::Display for HaltScope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HaltScope::All => f.write_str("everything"),
            HaltScope::Agent(agent) => write!(f, "agent {agent}"),
            HaltScope::Tool(tool) => write!(f, "tool {tool}"),
            HaltScope::Component(digest) => write!(f, "component {digest}"),
            HaltScope::Host(host) => write!(f, "{host}"),
        }
    }
}

/// One halt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halt {
    /// What it is called, to lift it.
    pub halt: HaltId,
    /// What it covers.
    pub scope: HaltScope,
    /// Who.
    pub actor: String,
    /// In the words of the actor; may be empty.
    #[serde(default)]
    pub reason: String,
    /// Since when.
    #[serde(with = "rfc3339_us")]
    pub at: SystemTime,
    /// It is never lifted: what it covers is retired, and what it has left is kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub permanent: bool,
    /// It holds for every host of the machine, whatever its home and user.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub machine: bool,
}

impl Halt {
    /// From now on, not in force yet. An actor, reason or name of more than a kilobyte is cut: no agent and no tool has so
    /// long a name, so it covers nothing then.
    pub fn new(mut scope: HaltScope, actor: impl Into<String>, reason: impl Into<String>) -> Self {
        let (mut actor, mut reason) = (actor.into(), reason.into());
        if let HaltScope::Agent(name) | HaltScope::Tool(name) = &mut scope {
            cut(name, TEXT_BYTES_MAX);
        }
        cut(&mut actor, TEXT_BYTES_MAX);
        cut(&mut reason, TEXT_BYTES_MAX);
        Self { halt: HaltId::generate(), scope, actor, reason, at: SystemTime::now(), permanent: false, machine: false }
    }

    /// Never to be lifted.
    #[must_use]
    pub fn permanent(self) -> Self {
        Self { permanent: true, ..self }
    }

    /// Whether both are the same halt. A name alone does not make it so: whoever asks chooses that.
    pub(super) fn is(&self, other: &Halt) -> bool {
        self.halt == other.halt && self.scope == other.scope
    }

    /// For whoever is refused because of it: by whom, when and why.
    pub fn says(&self) -> String {
        let at = humantime::format_rfc3339_seconds(self.at);
        let why = if self.reason.is_empty() { "without a reason".into() } else { format!("“{}”", self.reason) };
        let Self { halt, scope, actor, .. } = self;
        let what = if self.permanent { "retired for good" } else { "halted" };
        let place = if self.machine { " on this machine" } else { "" };
        let how = if self.permanent { "nothing lifts it".into() } else { format!("`estop lift {halt}` lifts it") };
        format!("{scope} was {what}{place} by {actor} at {at}, {why} ({halt}; {how})")
    }

    pub(crate) fn may_be_lifted(&self) -> Result<(), HaltError> {
        if self.permanent { Err(HaltError::Retired { halt: self.halt, says: self.says() }) } else { Ok(()) }
    }

    /// Before what it says.
    pub(super) fn word(&self) -> &'static str {
        if self.permanent { "retired" } else { "halted" }
    }
}

/// A halt could not be put on the disk, or taken from it.
#[derive(Debug, thiserror::Error)]
pub enum HaltError {
    /// Its file could not be written: it is in force in this process only, and ends with it.
    #[error("`{path}` cannot be written, so the halt would not outlive this process: {error}")]
    NotOnDisk {
        /// Which file or folder.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// It could not be lifted, and is still in force.
    #[error("{halt} is still in force: {why}")]
    StillInForce {
        /// Which.
        halt: HaltId,
        /// Why.
        why: String,
    },
    /// It is not a stop that ends: what it covers is retired.
    #[error(
        "{halt} is never lifted: {says}; only whoever may write in the home can still take its file out of `halts/latched` \
         by hand, and the log keeps that it was there"
    )]
    Retired {
        /// Which.
        halt: HaltId,
        /// What it says.
        says: String,
    },
    /// There is no room for another one. What it covers was stopped, and may start again.
    #[error(
        "{in_force} halts are in force, and there is no room for another: what runs was stopped, and may start again; halt \
         everything (`estop halt --all`), or lift some (`estop halts` lists them)"
    )]
    TooMany {
        /// How many.
        in_force: usize,
    },
    /// Nothing of this name is in force.
    #[error("no halt {0} is in force; `estop halts` lists those that are")]
    Unknown(HaltId),
}
