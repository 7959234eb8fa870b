//! The one way to stop anything: [`Host::interrupt`](crate::Host::interrupt).
//!
//! Invariants:
//! - An interrupt takes no lock and does no I/O. For each call in its scope it publishes the cause, closes the gate by one
//!   read-modify-write, and bumps the epoch if the call was on a processor; the rest is left to the preempter.
//! - The cause is published before the gate is closed, so whoever sees a closed gate finds its cause. The first wins.
//! - A call is registered before it looks whether the host is closing or its parent is being stopped, and an interrupt
//!   closes those before it walks the calls: nobody slips through between.

pub(crate) mod halts;
pub(crate) mod preempter;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::{fmt, iter};

use serde::{Deserialize, Serialize};

use crate::call::{CallState, Outcome};
use crate::clock::nanos;
use crate::gate::Found;
use crate::host::Core;
use crate::ids::{CallId, HaltId, InterruptId};
use crate::tools::Digest;

/// The actor of what the host does by itself, and the agent of its own calls.
pub(crate) const HOST_ACTOR: &str = "host";
/// Words that come from outside and go into entries are cut to this (bytes).
pub(crate) const TEXT_BYTES_MAX: usize = 1024;

/// Calls that share one look at the clock, which costs as much as stopping one. Their times are late by that, never
/// early.
const STAMP_EVERY: usize = 32;

/// Why a call was stopped. Not ranked: the first one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A person pulled the switch.
    Operator,
    /// A halt that is in force covers the call.
    Halted,
    /// The host is shutting down.
    Shutdown,
    /// The call that invoked this one was stopped.
    Parent,
    /// The time granted to the call is over.
    Deadline,
    /// The fuel granted to the call is used up.
    Fuel,
    /// The memory granted to the call is used up.
    Memory,
    /// Something more urgent needs the room.
    Priority,
    /// The client said so, or dropped its handle.
    Cancelled,
    /// The client's connection is gone.
    Disconnected,
    /// The host is testing its own emergency stop.
    Drill,
}

impl Cause {
    /// Every cause there is, in order.
    pub(crate) const ALL: [Cause; 11] = [
        Cause::Operator,
        Cause::Halted,
        Cause::Shutdown,
        Cause::Parent,
        Cause::Deadline,
        Cause::Fuel,
        Cause::Memory,
        Cause::Priority,
        Cause::Cancelled,
        Cause::Disconnected,
        Cause::Drill,
    ];

    /// The word in the log, in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Operator => "operator",
            Cause::Halted => "halted",
            Cause::Shutdown => "shutdown",
            Cause::Parent => "parent",
            Cause::Deadline => "deadline",
            Cause::Fuel => "fuel",
            Cause::Memory => "memory",
            Cause::Priority => "priority",
            Cause::Cancelled => "cancelled",
            Cause::Disconnected => "disconnected",
            Cause::Drill => "drill",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is stopped, always with the children of what it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// One call.
    Call(CallId),
    /// Every call made on behalf of this agent.
    Agent(String),
    /// Every call of a tool of this name, in whatever component.
    Tool(String),
    /// Every call of this component.
    Component(Digest),
    /// Every call of this host.
    Host,
    /// Every call that this interrupt can reach. From inside one host that is the host.
    Everything,
}

impl Scope {
    fn names(&self, call: &CallState) -> bool {
        match self {
            Scope::Call(id) => call.id == *id,
            Scope::Agent(agent) => *call.agent == **agent,
            Scope::Tool(tool) => *call.tool == **tool,
            Scope::Component(digest) => call.component() == Some(*digest),
            Scope::Host | Scope::Everything => true,
        }
    }

    /// Whether the call, or one of those that invoked it, is named. The chain is as long as calls may be nested.
    fn covers(&self, call: &CallState) -> bool {
        let mut next = Some(call);
        while let Some(call) = next {
            if self.names(call) {
                return true;
            }
            next = call.parent.as_deref();
        }
        false
    }
}

/// Who stops, why, and how much time is left to tidy up.
#[derive(Clone, Debug)]
pub struct Interrupt {
    /// Why.
    pub cause: Cause,
    /// Who: the authenticated user, the client, or the host itself.
    pub actor: String,
    /// In the words of the actor; may be empty.
    pub reason: String,
    /// How long a cooperative tool may go on. It cannot commit any more. Zero by default.
    pub grace: Duration,
    /// The halt that it is for.
    pub(crate) halt: Option<HaltId>,
}

impl Interrupt {
    /// At once and without a reason. An actor or reason of more than a kilobyte is cut.
    pub fn new(cause: Cause, actor: impl Into<String>) -> Self {
        Self { cause, actor: actor.into(), reason: String::new(), grace: Duration::ZERO, halt: None }
    }

    /// In the words of the actor.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// Time for a cooperative tool to tidy up. A later interrupt can only shorten it.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }
}

/// Cuts a text to a number of bytes, between characters.
pub(crate) fn cut(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max));
    }
}

/// An interrupt as it was delivered: what the entries of the calls that it stopped point at.
#[derive(Clone, Debug)]
pub(crate) struct Delivered {
    pub(crate) id: InterruptId,
    pub(crate) scope: Scope,
    pub(crate) interrupt: Interrupt,
    /// On the host's monotonic clock.
    pub(crate) at_ns: u64,
}

impl Delivered {
    /// As it is told to a call: one that is stopped because the one that invoked it is stopped is told so.
    fn to(self: &Arc<Self>, call: &CallState) -> Arc<Self> {
        let Some(parent) = call.parent.as_deref().filter(|parent| self.scope.covers(parent)) else {
            return Arc::clone(self);
        };
        let Interrupt { cause, actor, reason, grace, halt } = self.interrupt.clone();
        let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        let mut reason = format!("{}, which invoked it, was stopped by {actor} ({cause}){because}", parent.id);
        cut(&mut reason, TEXT_BYTES_MAX);
        let interrupt = Interrupt { cause: Cause::Parent, actor, reason, grace, halt };
        Arc::new(Self { id: self.id, scope: self.scope.clone(), interrupt, at_ns: self.at_ns })
    }
}

/// Where a call stood when the interrupt met it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reached {
    /// No guest instruction was running, and none will.
    Halted,
    /// On a processor: it stops at its next epoch check.
    Running,
    /// It has a grace period to tidy up.
    Warned,
    /// It had ended by itself.
    TooLate,
}

/// What an interrupt reached. It has done its work when you hold this; waiting is optional.
#[derive(Debug, Default)]
pub struct Interruption {
    calls: Vec<(Arc<CallState>, Reached)>,
}

impl Interruption {
    /// The calls in the scope and where each stood.
    pub fn reached(&self) -> impl Iterator<Item = (CallId, Reached)> {
        self.calls.iter().map(|(call, reached)| (call.id, *reached))
    }

    pub(crate) fn calls(&self) -> impl Iterator<Item = (&Arc<CallState>, Reached)> {
        self.calls.iter().map(|(call, reached)| (call, *reached))
    }

    /// How many calls were in the scope.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Nobody was in the scope.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Waits until every call that was reached is *released*: its store dropped, its outcome known. Without a bound of
    /// its own: wrap it in a time-out and take what is not back by then as unconfirmed.
    pub async fn released(self) -> Vec<Arc<Outcome>> {
        let mut outcomes = Vec::with_capacity(self.calls.len());
        for (call, _) in self.calls {
            outcomes.push(call.outcome().await);
        }
        outcomes
    }

    /// The calls that are not released yet.
    pub fn unconfirmed(&self) -> impl Iterator<Item = CallId> {
        self.calls.iter().filter(|(call, _)| !call.is_released()).map(|(call, _)| call.id)
    }
}

impl Core {
    /// See [`Host::interrupt`](crate::Host::interrupt).
    pub(crate) fn interrupt(&self, scope: Scope, interrupt: Interrupt) -> Interruption {
        let delivered = self.delivery(scope, interrupt);
        // Room for all beforehand: growing while calls are stopped would keep the rest waiting.
        let mut reach = Reach { calls: Vec::with_capacity(self.inventory.live()), ..Reach::default() };
        self.inventory.walk(|call| {
            if delivered.scope.names(call) {
                reach.add(call, self.deliver(call, &delivered.to(call)));
                if reach.calls.len() - reach.stamped >= STAMP_EVERY {
                    reach.stamp(self.now_ns());
                }
            }
        });
        self.finish(delivered, reach)
    }

    /// As `interrupt` with the scope of one call that is at hand.
    pub(crate) fn interrupt_call(&self, call: &Arc<CallState>, interrupt: Interrupt) -> Interruption {
        let delivered = self.delivery(Scope::Call(call.id), interrupt);
        let mut reach = Reach::default();
        reach.add(call, self.deliver(call, &delivered));
        self.finish(delivered, reach)
    }

    /// A call that has registered below one that is being stopped already, so that it starts stopped: by the same interrupt,
    /// which may have passed it. Without its grace: that is for whoever has something to tidy up.
    pub(crate) fn stop_late(&self, call: &Arc<CallState>) {
        let above = iter::successors(call.parent.as_deref(), |call| call.parent.as_deref());
        // The outermost one has it as it was given. There is one: the cause is published before the gate is closed.
        let Some(delivered) = above.filter_map(CallState::interrupted).last() else { return };
        let mut late = Delivered::clone(&*delivered.to(call));
        late.interrupt.grace = Duration::ZERO;
        let mut reach = Reach::default();
        reach.add(call, self.deliver(call, &Arc::new(late)));
        reach.stamp(self.now_ns());
        self.preempter.submit(iter::once(call));
    }

    /// What is named is closed; now what it has invoked. A child that registered before its parent was closed is met by
    /// this walk, one that comes later finds the parent closed.
    fn finish(&self, delivered: Arc<Delivered>, mut reach: Reach) -> Interruption {
        if self.inventory.has_nested() {
            self.inventory.walk(|call| {
                if !delivered.scope.names(call) && delivered.scope.covers(call) {
                    reach.add(call, self.deliver(call, &delivered.to(call)));
                }
            });
        }
        reach.stamp(self.now_ns());
        self.preempter.submit(reach.calls.iter().map(|(call, _)| call));
        let calls =
            reach.calls.iter().take(self.log.calls_named_max()).map(|(call, reached)| (call.id, *reached)).collect();
        self.log.record_stop(delivered, reach.calls.len(), calls);
        Interruption { calls: reach.calls }
    }

    fn delivery(&self, scope: Scope, mut interrupt: Interrupt) -> Arc<Delivered> {
        cut(&mut interrupt.actor, TEXT_BYTES_MAX);
        cut(&mut interrupt.reason, TEXT_BYTES_MAX);
        Arc::new(Delivered { id: InterruptId::generate(), scope, interrupt, at_ns: self.now_ns() })
    }

    /// Meets one call. The part that promise 2 is about.
    fn deliver(&self, call: &Arc<CallState>, delivered: &Arc<Delivered>) -> Reached {
        call.publish(delivered);
        let grace = nanos(delivered.interrupt.grace);
        if grace > 0 && !call.gate.is_interrupted() {
            let until = delivered.at_ns.saturating_add(grace);
            // The shortest counts, so the ticker has to look at the end of that one.
            let until = call.grace_until_ns.fetch_min(until, Ordering::AcqRel).min(until);
            self.inventory.look_at(call.slot, until);
            return match call.gate.flag() {
                Found::Settled => Reached::TooLate,
                Found::Suspended | Found::Running => Reached::Warned,
            };
        }
        match call.gate.interrupt() {
            Found::Settled => Reached::TooLate,
            Found::Running => {
                self.engine.increment_epoch();
                Reached::Running
            }
            Found::Suspended => Reached::Halted,
        }
    }

    /// The time to tidy up is over. Not an interrupt of its own: it was announced by the one that granted the time.
    pub(crate) fn end_grace(&self, call: &Arc<CallState>) {
        match call.gate.interrupt() {
            Found::Settled => return,
            Found::Running => self.engine.increment_epoch(),
            Found::Suspended => call.halted(self.now_ns()),
        }
        self.preempter.submit(iter::once(call));
    }
}

#[derive(Default)]
struct Reach {
    calls: Vec<(Arc<CallState>, Reached)>,
    /// The calls before this one have the time of their halting.
    stamped: usize,
}

impl Reach {
    fn add(&mut self, call: &Arc<CallState>, reached: Reached) {
        self.calls.push((Arc::clone(call), reached));
    }

    /// The calls since the last stamp were halted by now, if they were found suspended.
    fn stamp(&mut self, now_ns: u64) {
        for (call, reached) in &self.calls[self.stamped..] {
            if *reached == Reached::Halted {
                call.halted(now_ns);
            }
        }
        self.stamped = self.calls.len();
    }
}
