//! Everything that runs or waits to run in this host.
//!
//! A fixed table of slots. Registering, leaving and walking take no lock, so that an interrupt can walk the calls while
//! workers register and release them.
//!
//! Invariant: a call is in its slot from before its first admission check until its outcome is known. A walk that
//! begins after the registration meets it.

use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;
use crossbeam_queue::ArrayQueue;

use crate::call::CallState;
use crate::gate::{self, Closed};

const NEVER_NS: u64 = u64::MAX;

pub(crate) struct Inventory {
    slots: Box<[ArcSwapOption<CallState>]>,
    /// When the ticker has to look at a slot: its deadline or the end of its grace. Apart from the calls, so that a
    /// tick reads a dense array and nothing else.
    due_ns: Box<[AtomicU64]>,
    free: ArrayQueue<usize>,
    /// No slot at or above it has ever been used.
    used_end: AtomicUsize,
    live: AtomicUsize,
    /// Calls that were invoked by other calls.
    nested: AtomicUsize,
}

impl Inventory {
    pub(crate) fn new(calls_max: usize) -> Self {
        let calls_max = calls_max.max(1);
        let free = ArrayQueue::new(calls_max);
        for slot in 0..calls_max {
            // Cannot be full: it has room for every slot.
            let _ = free.push(slot);
        }
        Self {
            slots: (0..calls_max).map(|_| ArcSwapOption::empty()).collect(),
            due_ns: (0..calls_max).map(|_| AtomicU64::new(NEVER_NS)).collect(),
            free,
            used_end: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
            nested: AtomicUsize::new(0),
        }
    }

    /// Takes a free slot for a call that is about to be made, if there is one.
    pub(crate) fn reserve(&self) -> Option<usize> {
        let slot = self.free.pop()?;
        self.live.fetch_add(1, Ordering::AcqRel);
        self.used_end.fetch_max(slot + 1, Ordering::AcqRel);
        Some(slot)
    }

    /// From here on interrupts meet the call. `Closed`: one of those that invoked it is being stopped already, and
    /// whoever does that may have passed this slot, so the call has to stop itself.
    pub(crate) fn publish(&self, call: &Arc<CallState>) -> Result<(), Closed> {
        let ancestors = iter::successors(call.parent.as_deref(), |call| call.parent.as_deref());
        gate::register(
            || {
                if call.parent.is_some() {
                    self.nested.fetch_add(1, Ordering::AcqRel);
                }
                self.slots[call.slot].store(Some(Arc::clone(call)));
            },
            ancestors.map(|ancestor| &ancestor.gate),
        )
    }

    /// The call's outcome is known.
    pub(crate) fn release(&self, call: &CallState) {
        let slot = call.slot;
        if call.parent.is_some() {
            self.nested.fetch_sub(1, Ordering::AcqRel);
        }
        self.due_ns[slot].store(NEVER_NS, Ordering::Release);
        self.slots[slot].store(None);
        self.live.fetch_sub(1, Ordering::AcqRel);
        // Cannot be full: the slot was taken from it.
        let _ = self.free.push(slot);
    }

    /// Whether any call was invoked by another one.
    pub(crate) fn has_nested(&self) -> bool {
        self.nested.load(Ordering::Acquire) > 0
    }

    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::Acquire)
    }

    /// Visits every registered call; bounded by the number of slots.
    pub(crate) fn walk(&self, mut visit: impl FnMut(&Arc<CallState>)) {
        for slot in &self.slots[..self.used_end.load(Ordering::Acquire)] {
            if let Some(call) = &*slot.load() {
                visit(call);
            }
        }
    }

    /// Asks the ticker to look at a slot at a time, or earlier if it was asked before.
    pub(crate) fn look_at(&self, slot: usize, at_ns: u64) {
        // A call that was refused for want of a slot has none.
        if let Some(due_ns) = self.due_ns.get(slot) {
            due_ns.fetch_min(at_ns, Ordering::AcqRel);
        }
    }

    /// Visits the calls that are due and forgets that they were: who still needs a look asks again.
    pub(crate) fn due(&self, now_ns: u64, mut visit: impl FnMut(&Arc<CallState>)) {
        let end = self.used_end.load(Ordering::Acquire);
        for (due_ns, slot) in self.due_ns[..end].iter().zip(&self.slots[..end]) {
            let at_ns = due_ns.load(Ordering::Acquire);
            // Exchanged, not stored: a look that somebody asks for meanwhile must not be forgotten.
            let taken = at_ns <= now_ns
                && due_ns.compare_exchange(at_ns, NEVER_NS, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            if taken && let Some(call) = &*slot.load() {
                visit(call);
            }
        }
    }
}
