//! Preparing and starting a call, and the handle on one that runs.
//!
//! Invariant: a handle that is dropped stops its call (cause `cancelled`), unless it was detached.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use super::live::Live;
use super::{CallLimits, CallState, End, Identity, Operation, Outcome, Progress, drive};
use crate::host::Core;
use crate::ids::CallId;
use crate::interrupt::{Cause, HOST_ACTOR, Interrupt, Interruption};
use crate::log::{EntryKind, Record};
use crate::tools::{Code, Component};

/// For what the host itself asks of a component, such as its tools.
const INTERNAL_DEADLINE_MAX: Duration = Duration::from_secs(10);

/// A call that has not been started. Nothing happens until [`start`](Self::start).
#[must_use = "a call does nothing until it is started"]
pub struct CallBuilder {
    core: Arc<Core>,
    agent: Arc<str>,
    tool: Arc<str>,
    request: Request,
}

/// What the driver needs beside what everybody may know.
pub(crate) struct Request {
    pub(crate) code: Arc<Code>,
    pub(crate) component: Option<Component>,
    /// Under which it was loaded.
    pub(crate) name: Arc<str>,
    pub(crate) operation: Operation,
    pub(crate) limits: CallLimits,
    pub(crate) refused: Option<String>,
}

impl CallBuilder {
    pub(crate) fn new(core: Arc<Core>, agent: Arc<str>, component: Component, tool: String, input: Value) -> Self {
        let mut tool = tool;
        crate::interrupt::cut(&mut tool, crate::interrupt::TEXT_BYTES_MAX);
        let request = Request {
            code: Arc::clone(&component.inner.code),
            name: Arc::clone(&component.inner.name),
            component: Some(component),
            operation: Operation::Call(input),
            limits: core.call_limits.clone(),
            refused: None,
        };
        let refused = reserved(&agent);
        Self { core, agent, tool: tool.into(), request: Request { refused, ..request } }
    }

    /// A call of the host's own.
    pub(crate) fn internal(core: Arc<Core>, code: Arc<Code>, name: Arc<str>, operation: Operation) -> Self {
        let mut limits = core.call_limits.clone();
        limits.deadline = limits.deadline.min(INTERNAL_DEADLINE_MAX);
        let request = Request { code, component: None, name, operation, limits, refused: None };
        Self { core, agent: HOST_ACTOR.into(), tool: "list-tools".into(), request }
    }

    /// How long the guest may run, from its start; waiting for room is not billed.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.request.limits.deadline = deadline;
        self
    }

    /// What a cooperative tool gets to tidy up after its deadline. It cannot commit then.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.request.limits.grace = grace;
        self
    }

    /// Units of fuel.
    pub fn fuel(mut self, fuel: u64) -> Self {
        self.request.limits.fuel = fuel;
        self
    }

    /// Linear memory (bytes), at most the host's [`memory_bytes_max`](crate::HostLimits::memory_bytes_max).
    pub fn memory_bytes(mut self, memory_bytes_max: usize) -> Self {
        self.request.limits.memory_bytes_max = memory_bytes_max.min(self.core.limits.memory_bytes_max);
        self
    }

    /// Registers the call and hands it to the guest workers. From here on interrupts meet it, also before its first
    /// instruction.
    pub fn start(self) -> Call {
        let Self { core, agent, tool, request } = self;
        let identity = Identity {
            agent,
            tool,
            component: Some(request.code.digest),
            parent: None,
            grace: request.limits.grace,
            live: Live::new(core.now_ns(), request.limits.fuel),
        };
        let call = match register(&core, identity) {
            Ok(call) => call,
            Err(refused) => return refused,
        };
        core.workers.spawn(drive(Arc::clone(&core), Arc::clone(&call), request));
        handle(&core, &call)
    }
}

/// Why calls on behalf of this agent are the host's own affair, if they are.
pub(super) fn reserved(agent: &str) -> Option<String> {
    (agent == HOST_ACTOR).then(|| format!("the agent's name `{HOST_ACTOR}` is the host's own"))
}

/// From here on interrupts meet the call. Without a slot it is refused.
pub(super) fn register(core: &Arc<Core>, identity: Identity) -> Result<Arc<CallState>, Call> {
    let Some(slot) = core.inventory.reserve() else {
        return Err(refuse(Arc::clone(core), identity));
    };
    let call = Arc::new(CallState::new(slot, identity));
    if core.inventory.publish(&call).is_err() {
        core.interrupt_call(&call, Interrupt::new(Cause::Parent, HOST_ACTOR));
    }
    Ok(call)
}

pub(super) fn handle(core: &Arc<Core>, call: &Arc<CallState>) -> Call {
    Call { core: Arc::clone(core), call: Arc::clone(call), detached: false }
}

/// There is no slot, so nobody can stop it: it must not start.
fn refuse(core: Arc<Core>, identity: Identity) -> Call {
    let why = format!("{} calls run or wait already; try again later", core.limits.calls_max);
    let call = Arc::new(CallState::new(usize::MAX, identity));
    // Cannot fail: nobody else knows this call yet.
    let _ = call.gate.settle();
    let outcome = Arc::new(Outcome::unstarted(&call, End::Refused(why)));
    core.log.record(Record::Ended(EntryKind::ended(&call, &outcome)));
    call.finish(outcome);
    Call { core, call, detached: false }
}

/// A handle on a call that was started. Dropping it stops the call, cause `cancelled`; see [`detach`](Self::detach).
pub struct Call {
    core: Arc<Core>,
    call: Arc<CallState>,
    detached: bool,
}

impl Call {
    /// The call's id.
    pub fn id(&self) -> CallId {
        self.call.id
    }

    /// Waits for the call to be released. Dropping this future does not stop the call; dropping the handle does.
    pub async fn outcome(&self) -> Arc<Outcome> {
        self.call.outcome().await
    }

    /// The outcome, if there is one already.
    pub fn try_outcome(&self) -> Option<Arc<Outcome>> {
        self.call.try_outcome()
    }

    /// The newest of what the tool says of its progress, to be watched. Lossy.
    pub fn progress(&self) -> watch::Receiver<Option<Progress>> {
        self.call.progress().subscribe()
    }

    /// Stops the call, at once and without a grace period.
    pub fn interrupt(&self, cause: Cause, actor: impl Into<String>) -> Interruption {
        self.interrupt_with(Interrupt::new(cause, actor))
    }

    /// Stops the call, with a reason or a grace period.
    pub fn interrupt_with(&self, interrupt: Interrupt) -> Interruption {
        self.core.interrupt_call(&self.call, interrupt)
    }

    /// Resolves once somebody has asked it to stop, with the grace that they grant.
    #[cfg(feature = "cli")]
    pub(crate) async fn asked(&self) -> Duration {
        self.call.asked().await.interrupt.grace
    }

    #[cfg(feature = "cli")]
    pub(crate) fn has_started(&self) -> bool {
        self.call.has_started()
    }

    #[cfg(feature = "cli")]
    pub(crate) fn is_running(&self) -> bool {
        self.call.gate.is_running()
    }

    /// Lets the call go on without anybody waiting for it. It can still be stopped through the host.
    pub fn detach(mut self) -> CallId {
        self.detached = true;
        self.call.id
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.detached && !self.call.is_released() {
            let dropped = Interrupt::new(Cause::Cancelled, "client").reason("the handle was dropped");
            self.core.interrupt_call(&self.call, dropped);
        }
    }
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Call").field(&self.call.id).finish()
    }
}
