//! The gate: one atomic word per call, where the worker that polls the guest, everybody who interrupts, and the
//! committer meet.
//!
//! Invariants:
//! - A guest is polled only while `RUNNING` is set, and `RUNNING` is never set again once `INTERRUPTED` or `SETTLED` is.
//!   So an interrupt that finds the bit clear has halted the guest already, and one that finds it set knows that the
//!   worker will meet the interrupt when the poll ends.
//! - A ticket is decided only while `FLAGGED` is clear. So an interrupt withdraws a queued commit by the same atomic
//!   instruction that announces it, and one that comes after the decision cannot take it back.
//! - `SETTLED` and `FLAGGED`: the first one wins. A call either ended by itself or was stopped.
//!
//! Everything is in one word because then every pair of transitions has one order that all threads agree on, and
//! because an interrupt is a single `fetch_or`: it cannot wait, retry or fail. Each transition is a read-modify-write,
//! so acquire and release suffice: whoever sees a bit also sees what was written before it was set.
//!
//! This file depends on nothing but the atomics, so that it can be model-checked as it is.

use crate::sync::{AtomicU32, Ordering};

const RUNNING: u32 = 1;
const INTERRUPTED: u32 = 1 << 1;
const FLAGGED: u32 = 1 << 2;
const SETTLED: u32 = 1 << 3;
const TICKET_SHIFT: u32 = 4;
const TICKET_MASK: u32 = 0b111 << TICKET_SHIFT;

/// Where the commit of a call's current transaction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Ticket {
    /// Nothing is being committed.
    None = 0,
    /// The committer has it and may still be beaten by an interrupt.
    Queued = 1,
    /// Validated and promised: an interrupt comes too late for this transaction.
    Decided = 2,
    /// On disk, or whatever durable means for the store.
    Durable = 3,
    /// The store could not say that it is durable.
    Failed = 4,
}

/// What an interrupt found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// No guest instruction was running and none will: halted by this very instruction.
    Suspended,
    /// A worker is polling the guest: it is halted when the worker acknowledges.
    Running,
    /// The call had ended by itself: too late.
    Settled,
}

/// The call was interrupted, or has ended: the guest may not be polled, nothing may be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Gate {
    word: AtomicU32,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// A suspended call without a ticket.
    pub(crate) fn new() -> Self {
        Self { word: AtomicU32::new(0) }
    }

    /// Before each poll of the guest, by the worker.
    pub(crate) fn enter(&self) -> Result<(), Closed> {
        self.update(|word| (word & (INTERRUPTED | SETTLED) == 0).then_some(word | RUNNING))
    }

    /// After each poll, whatever it returned. `Closed` is the acknowledgement: the worker must never poll again.
    pub(crate) fn leave(&self) -> Result<(), Closed> {
        let before = self.word.fetch_and(!RUNNING, Ordering::AcqRel);
        if before & INTERRUPTED == 0 { Ok(()) } else { Err(Closed) }
    }

    /// Stops the call for good. Delivering again is harmless.
    pub(crate) fn interrupt(&self) -> Found {
        Self::found(self.word.fetch_or(INTERRUPTED | FLAGGED, Ordering::AcqRel))
    }

    /// Asks the call to stop: nothing more is committed, and the guest may go on until `interrupt`.
    pub(crate) fn flag(&self) -> Found {
        Self::found(self.word.fetch_or(FLAGGED, Ordering::AcqRel))
    }

    /// Whether the guest must not go on. What the epoch callback asks.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.word.load(Ordering::Acquire) & INTERRUPTED != 0
    }

    /// Whether somebody has asked the call to stop, with or without a grace period.
    pub(crate) fn is_flagged(&self) -> bool {
        self.word.load(Ordering::Acquire) & FLAGGED != 0
    }

    /// As `is_flagged`, and ordered against the flagging itself: if this says no, whoever flags afterwards sees
    /// everything that this thread wrote before it asked. That is what a child needs after it has registered and before
    /// it concludes that its parent still runs.
    pub(crate) fn was_flagged(&self) -> bool {
        self.word.fetch_or(0, Ordering::AcqRel) & FLAGGED != 0
    }

    /// Whether a worker is polling the guest.
    pub(crate) fn is_running(&self) -> bool {
        self.word.load(Ordering::Acquire) & RUNNING != 0
    }

    /// Whether the call has ended by itself, with its last commit decided or with nothing to commit.
    pub(crate) fn is_settled(&self) -> bool {
        self.word.load(Ordering::Acquire) & SETTLED != 0
    }

    /// Where the commit stands.
    pub(crate) fn ticket(&self) -> Ticket {
        ticket(self.word.load(Ordering::Acquire))
    }

    /// What whoever waits for a queued ticket finds, in one look: two looks could see a ticket that is still queued and
    /// an interrupt that came after it was decided. `None`: wait on.
    pub(crate) fn awaited(&self) -> Option<Ticket> {
        let word = self.word.load(Ordering::Acquire);
        match ticket(word) {
            // Withdrawn: with the flag set it can never be decided.
            Ticket::Queued if word & FLAGGED != 0 => Some(Ticket::Queued),
            Ticket::Queued | Ticket::Decided => None,
            resolved => Some(resolved),
        }
    }

    /// Hands the current transaction to the committer. `Closed`: the call is being stopped, the transaction is void.
    pub(crate) fn queue(&self) -> Result<(), Closed> {
        self.update(|word| (word & (FLAGGED | SETTLED) == 0).then_some(with(word, Ticket::Queued)))
    }

    /// By the committer, inside the database transaction and after validation. `last` settles the call by the same
    /// instruction. `Closed`: an interrupt has withdrawn the ticket.
    pub(crate) fn decide(&self, last: bool) -> Result<(), Closed> {
        let settled = if last { SETTLED } else { 0 };
        self.update(|word| {
            let open = word & FLAGGED == 0 && word & TICKET_MASK == bits(Ticket::Queued);
            open.then_some(with(word, Ticket::Decided) | settled)
        })
    }

    /// By the committer: how a decided ticket ended (`Durable`, `Failed`), or that a queued one did not pass (`None`).
    pub(crate) fn resolve(&self, to: Ticket) {
        // The closure always answers, so the update cannot fail.
        let _ = self.update(|word| Some(with(word, to)));
    }

    /// The call has ended by itself and has nothing (more) to commit. `Closed`: an interrupt was first.
    pub(crate) fn settle(&self) -> Result<(), Closed> {
        self.update(|word| (word & (FLAGGED | SETTLED) == 0).then_some(word | SETTLED))
    }

    fn found(before: u32) -> Found {
        if before & SETTLED != 0 {
            Found::Settled
        } else if before & RUNNING != 0 {
            Found::Running
        } else {
            Found::Suspended
        }
    }

    fn update(&self, mut step: impl FnMut(u32) -> Option<u32>) -> Result<(), Closed> {
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            let Some(next) = step(word) else {
                return Err(Closed);
            };
            match self.word.compare_exchange(word, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(()),
                Err(seen) => word = seen,
            }
        }
    }
}

/// Registers a call below those that invoked it: first `publish`, which makes it visible to whoever walks the calls,
/// then a look at every ancestor.
///
/// An interrupt closes the gates of what it names and walks the calls after that. So either its walk meets the new call,
/// or the look here meets the closed gate: `Closed` says that the call must not start.
pub(crate) fn register<'a>(
    publish: impl FnOnce(),
    mut ancestors: impl Iterator<Item = &'a Gate>,
) -> Result<(), Closed> {
    publish();
    if ancestors.any(Gate::was_flagged) { Err(Closed) } else { Ok(()) }
}

fn ticket(word: u32) -> Ticket {
    match (word & TICKET_MASK) >> TICKET_SHIFT {
        1 => Ticket::Queued,
        2 => Ticket::Decided,
        3 => Ticket::Durable,
        4 => Ticket::Failed,
        _ => Ticket::None,
    }
}

fn bits(ticket: Ticket) -> u32 {
    (ticket as u32) << TICKET_SHIFT
}

fn with(word: u32, ticket: Ticket) -> u32 {
    word & !TICKET_MASK | bits(ticket)
}
