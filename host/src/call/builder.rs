//! Preparing and starting a call, and the handle on one that runs.
//!
//! Invariant: a handle that is dropped stops its call (cause `cancelled`), unless it was detached.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use super::child::{Bounds, Nest};
use super::live::Live;
use super::state::NO_SLOT;
use super::{CallLimits, CallState, End, Identity, Operation, Outcome, Progress, drive, load};
use crate::grants::{Granted, Seen};
use crate::host::Core;
use crate::ids::CallId;
use crate::interrupt::{Cause, HOST_ACTOR, Interrupt, Interruption};
use crate::log::{EntryKind, Record};
use crate::tools::{Code, Component};
use crate::trace;
use crate::workspace::{Changes, Reviewer};

/// For what the host itself asks of a component, such as its tools.
const INTERNAL_DEADLINE_MAX: Duration = Duration::from_secs(10);

/// How urgent a call is that does not say, and what the host itself asks of a component.
pub const PRIORITY_DEFAULT: u8 = 100;
/// No other call is less urgent.
#[cfg(feature = "control")]
pub(crate) const PRIORITY_MIN: u8 = 0;

/// A call that has not been started. Nothing happens until [`start`](Self::start).
#[must_use = "a call does nothing until it is started"]
pub struct CallBuilder {
    core: Arc<Core>,
    agent: Arc<str>,
    tool: Arc<str>,
    parent: Option<Arc<CallState>>,
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
    pub(crate) priority: u8,
    pub(crate) refused: Option<String>,
    pub(crate) granted: Arc<Granted>,
    pub(crate) reviewer: Option<Reviewer>,
    /// Of the call that invokes this one.
    pub(crate) nest: Option<Nest>,
    /// Places for those that it invokes.
    pub(crate) kept: u32,
}

/// What a client asks for. Left out: what it would get.
#[cfg(feature = "control")]
pub(crate) struct Lowered {
    pub(crate) deadline: Option<Duration>,
    pub(crate) grace: Option<Duration>,
    pub(crate) fuel: Option<u64>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) priority: Option<u8>,
}

impl CallBuilder {
    pub(crate) fn new(core: Arc<Core>, agent: Arc<str>, component: Component, tool: String, input: Value) -> Self {
        let mut tool = tool;
        crate::interrupt::cut(&mut tool, crate::interrupt::TEXT_BYTES_MAX);
        let granted = Arc::new(core.grants.of(&agent, &component.inner.name, &tool));
        let mut limits = core.call_limits.clone();
        granted.change(&mut limits);
        // Beyond the host's own limit `memory.grow` would answer -1, and nobody would be told why the call ended.
        limits.memory_bytes_max = limits.memory_bytes_max.min(core.limits.memory_bytes_max);
        let request = Request {
            code: Arc::clone(&component.inner.code),
            name: Arc::clone(&component.inner.name),
            granted,
            component: Some(component),
            operation: Operation::Call(input),
            priority: limits.priority,
            limits,
            refused: None,
            reviewer: None,
            nest: None,
            kept: 0,
        };
        let refused = reserved(&agent);
        Self { core, agent, tool: tool.into(), parent: None, request: Request { refused, ..request } }
    }

    /// A call of the host's own.
    pub(crate) fn internal(core: Arc<Core>, code: Arc<Code>, name: Arc<str>, operation: Operation) -> Self {
        let mut limits = core.call_limits.clone();
        limits.deadline = limits.deadline.min(INTERNAL_DEADLINE_MAX);
        let priority = PRIORITY_DEFAULT;
        let granted = Arc::default();
        let request = Request {
            code,
            component: None,
            name,
            operation,
            limits,
            priority,
            refused: None,
            granted,
            reviewer: None,
            nest: None,
            kept: 0,
        };
        Self { core, agent: HOST_ACTOR.into(), tool: "list-tools".into(), parent: None, request }
    }

    /// Stopped with the call that it is for, and as urgent.
    pub(crate) fn below(mut self, parent: Arc<CallState>) -> Self {
        self.request.priority = parent.priority;
        self.parent = Some(parent);
        self
    }

    /// Grants no more than this, and lowers the limits to it.
    pub(super) fn at_most(mut self, bounds: &Bounds<'_>) -> Self {
        let limits = &mut self.request.limits;
        limits.fuel = limits.fuel.min(bounds.fuel);
        limits.memory_bytes_max = limits.memory_bytes_max.min(bounds.memory_bytes_max);
        limits.depth_max = limits.depth_max.min(bounds.depth_max);
        limits.children_max = limits.children_max.min(bounds.children_max);
        if limits.deadline > bounds.time {
            // That of the call above stops this one with it, and is told as what it is.
            limits.deadline = Duration::MAX;
        }
        self.request.granted = Arc::new(self.request.granted.at_most(bounds.granted));
        self
    }

    pub(super) fn input_bytes_max(&self) -> usize {
        self.request.limits.input_bytes_max
    }

    /// What it is asked.
    pub(super) fn input(mut self, input: Value) -> Self {
        self.request.operation = Operation::Call(input);
        self
    }

    pub(super) fn workspaces(&self) -> &[Seen] {
        &self.request.granted.workspaces
    }

    /// Within the transaction of the call that it is for.
    pub(super) fn nested(mut self, nest: Nest) -> Self {
        self.request.nest = Some(nest);
        self
    }

    /// A call of the host's own of a component that it has made itself. No other one is less urgent.
    #[cfg(feature = "control")]
    pub(crate) fn own(core: Arc<Core>, component: Component, tool: &str, input: Value) -> Self {
        let mut call = Self::new(core, HOST_ACTOR.into(), component, tool.into(), input).priority(PRIORITY_MIN);
        call.request.refused = None;
        call.request.limits.deadline = call.request.limits.deadline.min(INTERNAL_DEADLINE_MAX);
        call
    }

    /// How long the guest may run, from its start; waiting for room is not billed.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.request.limits.deadline = deadline;
        self
    }

    /// Less of what it would get; more is not given.
    #[cfg(feature = "control")]
    pub(crate) fn lower(mut self, asked: &Lowered) -> Self {
        let limits = &mut self.request.limits;
        limits.deadline = asked.deadline.map_or(limits.deadline, |asked| asked.min(limits.deadline));
        limits.grace = asked.grace.map_or(limits.grace, |asked| asked.min(limits.grace));
        limits.fuel = asked.fuel.map_or(limits.fuel, |asked| asked.min(limits.fuel));
        let memory = asked.memory_bytes.and_then(|bytes| usize::try_from(bytes).ok());
        limits.memory_bytes_max = memory.map_or(limits.memory_bytes_max, |asked| asked.min(limits.memory_bytes_max));
        let priority = self.request.priority;
        self.request.priority = asked.priority.map_or(priority, |asked| asked.min(priority));
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

    /// How urgent it is: higher is more urgent. If nothing is said, what the host's
    /// [`CallLimits`](crate::CallLimits) say, [`PRIORITY_DEFAULT`] if they were not changed.
    ///
    /// Calls that wait for room are let in by priority, and in the order in which they came among equals. When there is no
    /// room, a call stops the least urgent of those that run, and of equals the one that came last, if that one is less
    /// urgent than itself: cause `priority`, and a reason that names it. It never stops one that is as urgent, and no more
    /// than it needs. What was stopped is not started again.
    pub fn priority(mut self, priority: u8) -> Self {
        self.request.priority = priority;
        self
    }

    /// Keeps this many places of the host's [`sandboxes_max`](crate::HostLimits::sandboxes_max) for the calls that this one
    /// invokes, and those that these invoke, from when it is let in until it has ended. A component takes as many as it has
    /// memories, nearly always one. Without it, or beyond it, a call that is invoked gets a place that is free at that moment,
    /// or none: `no-room`.
    pub fn places_for_children(mut self, places: u32) -> Self {
        self.request.kept = places;
        self
    }

    /// Is asked before a call that was granted a workspace commits anything, at commit points as at the end. If it does not
    /// agree, nothing of the transaction is committed, and the call ends as `failed`, code `declined`. What the call has read
    /// is looked at again after that. The time that it takes is not billed to the deadline, and a stop ends it.
    pub fn review<F>(mut self, reviewer: impl Fn(Changes) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = bool> + Send + 'static,
    {
        self.request.reviewer = Some(Arc::new(move |changes| Box::pin(reviewer(changes))));
        self
    }

    /// Registers the call and hands it to the guest workers. From here on interrupts meet it, also before its first
    /// instruction.
    pub fn start(self) -> Call {
        let Self { core, agent, tool, parent, request } = self;
        let account = core.budgets.of(&agent);
        let identity = Identity {
            agent,
            tool,
            component: Some(request.code.digest),
            parent,
            grace: request.limits.grace,
            priority: request.priority,
            live: Live::new(core.now_ns(), request.limits.fuel).granted(request.granted.in_words()).charged(account),
        };
        register(core, identity, |core, call| {
            core.workers.spawn(drive(Arc::clone(core), Arc::clone(call), request, trace::call(call)));
        })
    }
}

impl Call {
    /// Loads a component. No guest runs in it, so it does not run on the guest workers: it can be stopped also while these
    /// are stuck.
    pub(super) fn load(core: Arc<Core>, order: load::Order, priority: u8) -> Self {
        let identity = Identity {
            agent: HOST_ACTOR.into(),
            tool: load::TOOL.into(),
            component: None,
            parent: None,
            grace: Duration::ZERO,
            priority,
            live: Live::new(core.now_ns(), 0),
        };
        register(core, identity, |core, call| {
            drop(core.io.handle.spawn(load::drive(Arc::clone(core), Arc::clone(call), order, trace::call(call))));
        })
    }
}

/// Why calls on behalf of this agent are the host's own affair, if they are.
pub(super) fn reserved(agent: &str) -> Option<String> {
    (agent == HOST_ACTOR).then(|| format!("the agent's name `{HOST_ACTOR}` is the host's own"))
}

/// From here on interrupts meet the call; then it is started. Without a slot it is refused.
pub(super) fn register(core: Arc<Core>, identity: Identity, start: impl FnOnce(&Arc<Core>, &Arc<CallState>)) -> Call {
    let Some(slot) = core.inventory.reserve() else {
        return refuse(core, identity);
    };
    let call = Arc::new(CallState::new(slot, identity));
    if core.inventory.publish(&call).is_err() {
        core.stop_late(&call);
    }
    start(&core, &call);
    Call { core, call, detached: false }
}

/// There is no slot, so nobody can stop it: it must not start.
fn refuse(core: Arc<Core>, identity: Identity) -> Call {
    let why = format!("{} calls run or wait already; try again later", core.limits.calls_max);
    let call = Arc::new(CallState::new(NO_SLOT, identity));
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

    #[cfg(feature = "control")]
    pub(crate) fn has_started(&self) -> bool {
        self.call.has_started()
    }

    #[cfg(feature = "control")]
    pub(crate) fn is_running(&self) -> bool {
        self.call.gate.is_running()
    }

    /// As `detach`, for whoever sees to the call by other means.
    pub(crate) fn into_state(mut self) -> Arc<CallState> {
        self.detached = true;
        Arc::clone(&self.call)
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
