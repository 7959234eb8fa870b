//! What everybody may know about one call while it runs.
//!
//! Invariant: nothing in here is behind a lock that an interrupt needs. The worker, the interrupters, the preempter, the
//! ticker and the committer all share it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::sync::{Notify, watch};

use super::child::{Kept, ancestors};
use super::live::Live;
use super::{Commits, Outcome, Progress};
use crate::gate::Gate;
use crate::ids::CallId;
use crate::interrupt::Delivered;
use crate::store::Verdict;
use crate::tools::Digest;
use crate::transaction::Size;

const UNSET_NS: u64 = u64::MAX;
/// The deadline of a call that has started and has none.
pub(crate) const NO_DEADLINE_NS: u64 = u64::MAX - 1;

/// The place in the inventory of a call that was refused for want of one.
pub(super) const NO_SLOT: usize = usize::MAX;

/// What an interrupt touches comes first and in this order, so that with the counts of its `Arc` it fills one cache line:
/// fetching memory is most of what stopping a thousand calls costs.
#[repr(C)]
pub(crate) struct CallState {
    /// The first interrupt: its cause is the call's cause. Interrupts only ever try this lock, and nobody else takes it
    /// before the gate is flagged: see `publish`.
    interrupt: Mutex<Option<Arc<Delivered>>>,
    halted_ns: AtomicU64,
    pub(crate) gate: Gate,
    pub(crate) in_preempter: AtomicBool,
    /// Higher is more urgent. It stands where there was a gap.
    pub(crate) priority: u8,
    pub(crate) agent: Arc<str>,
    pub(crate) id: CallId,
    pub(crate) tool: Arc<str>,
    /// Of a load it is known when the component has been read.
    component: OnceLock<Digest>,
    pub(crate) parent: Option<Arc<CallState>>,
    /// Its place in the inventory.
    pub(crate) slot: usize,
    pub(crate) grace_until_ns: AtomicU64,
    /// What the deadline grants to tidy up.
    pub(crate) grace: Duration,
    /// Set when the guest starts: waiting in a queue is not billed to it.
    pub(crate) deadline_ns: AtomicU64,
    /// The task that polls the guest.
    pub(crate) waker: AtomicWaker,
    /// Host functions that wait for an interrupt in tasks of their own.
    pub(crate) warned: Notify,
    pub(crate) commits: CommitCounts,
    pub(crate) live: Arc<Live>,
    /// For the calls that it invokes.
    pub(super) kept: Kept,
    /// Why the committer did not pass the ticket. Read by the worker once the ticket is resolved.
    verdict: Mutex<Option<Verdict>>,
    /// Made when somebody reports or watches.
    progress: OnceLock<watch::Sender<Option<Progress>>>,
    outcome: OnceLock<Arc<Outcome>>,
    done: Notify,
}

/// What became durable, counted by the committer; and what it is working on.
#[derive(Default)]
pub(crate) struct CommitCounts {
    points: AtomicU64,
    durable: Counted,
    pending: Counted,
}

/// A [`Size`] that is counted by several.
#[derive(Default)]
struct Counted {
    writes: AtomicU64,
    bytes: AtomicU64,
    files: AtomicU64,
    file_bytes: AtomicU64,
}

impl Counted {
    fn set(&self, size: Size) {
        self.writes.store(size.writes, Ordering::Release);
        self.bytes.store(size.bytes, Ordering::Release);
        self.files.store(size.files, Ordering::Release);
        self.file_bytes.store(size.file_bytes, Ordering::Release);
    }

    fn get(&self) -> Size {
        Size {
            writes: self.writes.load(Ordering::Acquire),
            bytes: self.bytes.load(Ordering::Acquire),
            files: self.files.load(Ordering::Acquire),
            file_bytes: self.file_bytes.load(Ordering::Acquire),
        }
    }
}

impl CommitCounts {
    pub(crate) fn begin(&self, size: Size) {
        self.pending.set(size);
    }

    /// Called before the ticket says that it is durable.
    pub(crate) fn durable(&self) {
        self.points.fetch_add(1, Ordering::AcqRel);
        // By the committer alone, and one commit of a call at a time.
        self.durable.set(self.durable.get() + self.pending.get());
        self.pending.set(Size::default());
    }

    /// What was handed to the committer and did not become durable.
    pub(crate) fn pending(&self) -> Size {
        self.pending.get()
    }

    pub(crate) fn points(&self) -> u64 {
        self.points.load(Ordering::Acquire)
    }

    /// What there is to tell of it.
    pub(crate) fn durable_so_far(&self) -> Commits {
        let Size { writes, bytes, files, file_bytes } = self.durable.get();
        Commits { points: self.points(), writes, bytes, files, file_bytes, unknown: false }
    }
}

/// What a call is known by.
pub(crate) struct Identity {
    pub(crate) agent: Arc<str>,
    pub(crate) tool: Arc<str>,
    pub(crate) component: Option<Digest>,
    pub(crate) parent: Option<Arc<CallState>>,
    pub(crate) grace: Duration,
    pub(crate) priority: u8,
    pub(crate) live: Live,
}

impl CallState {
    pub(crate) fn new(slot: usize, identity: Identity) -> Self {
        let Identity { agent, tool, component, parent, grace, priority, live } = identity;
        Self {
            id: CallId::generate(),
            slot,
            agent,
            tool,
            component: component.map(OnceLock::from).unwrap_or_default(),
            parent,
            gate: Gate::new(),
            waker: AtomicWaker::new(),
            warned: Notify::new(),
            in_preempter: AtomicBool::new(false),
            priority,
            interrupt: Mutex::new(None),
            grace_until_ns: AtomicU64::new(UNSET_NS),
            grace,
            deadline_ns: AtomicU64::new(UNSET_NS),
            halted_ns: AtomicU64::new(UNSET_NS),
            commits: CommitCounts::default(),
            live: Arc::new(live),
            kept: Kept::default(),
            verdict: Mutex::new(None),
            progress: OnceLock::new(),
            outcome: OnceLock::new(),
            done: Notify::new(),
        }
    }

    /// The component that it is about.
    pub(crate) fn component(&self) -> Option<Digest> {
        self.component.get().copied()
    }

    /// From here on interrupts of this component meet the call. Whoever says so has to look for halts afterwards.
    pub(crate) fn is_about(&self, component: Digest) {
        // A load says so once.
        let _ = self.component.set(component);
    }

    /// It has been given room, and its deadline runs.
    pub(crate) fn has_started(&self) -> bool {
        self.deadline_ns.load(Ordering::Acquire) != UNSET_NS
    }

    /// The first interrupt is the one whose cause counts.
    pub(crate) fn publish(&self, delivered: &Arc<Delivered>) {
        // Never waits. If the lock is taken before the gate is flagged, it is by another interrupt that is publishing its
        // cause, and that one is first; if it is taken afterwards, there is a first one already.
        if let Ok(mut first) = self.interrupt.try_lock() {
            first.get_or_insert_with(|| Arc::clone(delivered));
        }
    }

    /// Whoever finds the gate flagged finds this; before that there is nothing.
    pub(crate) fn interrupted(&self) -> Option<Arc<Delivered>> {
        // Not before it is flagged: an interrupt that finds the lock taken by a reader would not publish its cause.
        if !self.gate.is_flagged() {
            return None;
        }
        self.interrupt.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Resolves once somebody has asked the call to stop.
    pub(crate) async fn asked(&self) -> Arc<Delivered> {
        loop {
            // Enlisted before the look, so that an interrupt between the two is not missed.
            let warned = self.warned.notified();
            if let Some(delivered) = self.interrupted() {
                return delivered;
            }
            warned.await;
        }
    }

    /// No guest instruction runs, and none will. The first time counts.
    pub(crate) fn halted(&self, now_ns: u64) {
        let _ = self.halted_ns.compare_exchange(UNSET_NS, now_ns, Ordering::AcqRel, Ordering::Acquire);
    }

    pub(crate) fn halted_after(&self, delivered: &Delivered) -> Option<Duration> {
        let halted_ns = self.halted_ns.load(Ordering::Acquire);
        (halted_ns != UNSET_NS).then(|| Duration::from_nanos(halted_ns.saturating_sub(delivered.at_ns)))
    }

    /// Lets the call's own task, and host functions in tasks of theirs, see what happened at the gate.
    pub(crate) fn wake(&self) {
        self.waker.wake();
        // Wakers of other executors: one that panics may not take the thread with it that stops calls.
        if catch_unwind(AssertUnwindSafe(|| self.warned.notify_waiters())).is_err() {
            tracing::error!(call = %self.id, "a waker of a host function panicked");
        }
    }

    pub(crate) fn progress(&self) -> &watch::Sender<Option<Progress>> {
        self.progress.get_or_init(|| watch::Sender::new(None))
    }

    pub(crate) fn set_verdict(&self, verdict: Verdict) {
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
    }

    pub(crate) fn take_verdict(&self) -> Option<Verdict> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn finish(&self, outcome: Arc<Outcome>) {
        // Only the call's own task finishes it, once.
        let _ = self.outcome.set(outcome);
        self.done.notify_waiters();
    }

    /// It was refused, because there are too many calls.
    pub(super) fn is_without_slot(&self) -> bool {
        self.slot == NO_SLOT
    }

    /// Something is about to leave the sandbox, unless there has been too much already: of this call, or of one that has
    /// invoked it, which tells it as well.
    pub(crate) fn add_effect(&self, name: &str, effects_max: usize) -> Option<Arc<AtomicBool>> {
        let performed = Arc::new(AtomicBool::new(false));
        let mut all: Vec<_> = ancestors(self).map(|call| (&call.live, Some(self.id))).collect();
        // The first one has those of all, so if there is room with it, there is room with each.
        all.reverse();
        all.push((&self.live, None));
        for (live, by) in all {
            if !live.add_effect_of(by, name.to_owned(), Arc::clone(&performed), effects_max) {
                return None;
            }
        }
        Some(performed)
    }

    pub(crate) fn is_released(&self) -> bool {
        self.outcome.get().is_some()
    }

    pub(crate) fn try_outcome(&self) -> Option<Arc<Outcome>> {
        self.outcome.get().cloned()
    }

    pub(crate) async fn outcome(&self) -> Arc<Outcome> {
        loop {
            // Enlisted before the look, so that an outcome between the two is not missed.
            let done = self.done.notified();
            if let Some(outcome) = self.outcome.get() {
                return Arc::clone(outcome);
            }
            done.await;
        }
    }
}

impl std::fmt::Debug for CallState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallState").field("id", &self.id).field("gate", &self.gate).finish_non_exhaustive()
    }
}
