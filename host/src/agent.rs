//! On whose behalf calls are made.

use std::sync::Arc;

use serde_json::Value;

use crate::call::CallBuilder;
use crate::host::Core;
use crate::interrupt::{Interrupt, Interruption, Scope, TEXT_BYTES_MAX, cut};
use crate::tools::Component;

/// The agent of a call that names none.
pub const DEFAULT_AGENT: &str = "default";
/// Length of an agent's name (bytes).
pub const AGENT_BYTES_MAX: usize = 64;

/// A handle on one agent.
#[derive(Clone)]
pub struct Agent {
    core: Arc<Core>,
    name: Arc<str>,
}

impl Agent {
    pub(crate) fn new(core: Arc<Core>, mut name: String) -> Self {
        // What is too long is refused when a call starts, and is not kept whole until then.
        cut(&mut name, TEXT_BYTES_MAX);
        Self { core, name: name.into() }
    }

    /// The agent's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Prepares a call of a tool. Whether the tool exists and the input fits is found out when it is started, and told
    /// by the outcome.
    pub fn call(&self, component: &Component, tool: impl Into<String>, input: Value) -> CallBuilder {
        CallBuilder::new(Arc::clone(&self.core), Arc::clone(&self.name), component.clone(), tool.into(), input)
    }

    /// Resolves once a halt covers this agent, with what it says: so that the agent's own loop stops, and not only its
    /// tools. At once if one does already.
    pub async fn halted(&self) -> String {
        let mut changes = self.core.halts.changes();
        loop {
            changes.mark_unchanged();
            if let Some(why) = self.core.halts.on_agent(&self.name) {
                return why;
            }
            if changes.changed().await.is_err() {
                // The sender lives as long as the core.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Stops all calls of this agent.
    pub fn interrupt(&self, interrupt: Interrupt) -> Interruption {
        self.core.interrupt(Scope::Agent(self.name.to_string()), interrupt)
    }
}

/// Why a name cannot be an agent's, if it cannot.
pub(crate) fn refused_name(name: &str) -> Option<String> {
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fits = (1..=AGENT_BYTES_MAX).contains(&name.len()) && name.chars().all(letters) && !name.starts_with('.');
    if fits {
        return None;
    }
    Some(format!(
        "the agent's name {name:?} cannot be used: 1 to {AGENT_BYTES_MAX} of a-z, A-Z, 0-9, `-`, `_` and `.`, not \
         beginning with a dot"
    ))
}
