//! Promises 3, 6 and 8, and row 21 of the failure modes: the gate, model-checked.
//!
//! The gate's own source file is compiled here against loom's atomics, and every interleaving that the memory model
//! allows is tried. Nothing of Wasmtime is rebuilt for it.

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU32, Ordering};
}

#[path = "../../host/src/gate.rs"]
#[allow(dead_code, reason = "each model uses a part of it")]
mod gate;

use gate::{Closed, Found, Gate, Ticket, register};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

/// Stands for the guest: says that it may not run once somebody was told that it is halted.
struct Guest {
    gate: Gate,
    halted: AtomicBool,
    acknowledged: AtomicBool,
}

impl Guest {
    fn new() -> Arc<Self> {
        Arc::new(Self { gate: Gate::new(), halted: AtomicBool::new(false), acknowledged: AtomicBool::new(false) })
    }

    /// One poll, as the gated future does it. `Err`: acknowledged, never to be polled again.
    fn poll(&self, guest: impl FnOnce()) -> Result<(), Closed> {
        self.gate.enter()?;
        assert!(!self.halted.load(Ordering::Acquire), "a guest instruction after the call was halted");
        guest();
        assert!(!self.halted.load(Ordering::Acquire), "halted while a guest instruction runs");
        self.gate.leave().inspect_err(|_| self.acknowledged.store(true, Ordering::Release))
    }

    fn interrupt(&self) -> Found {
        let found = self.gate.interrupt();
        if found == Found::Suspended {
            self.halted.store(true, Ordering::Release);
        }
        found
    }
}

#[test]
fn an_interrupted_call_is_never_polled_again() {
    loom::model(|| {
        let guest = Guest::new();
        let worker = {
            let guest = Arc::clone(&guest);
            thread::spawn(move || (0..3).map(|_| guest.poll(|| {})).filter(Result::is_ok).count())
        };
        let found = guest.interrupt();
        let polls = worker.join().unwrap();
        assert_ne!(found, Found::Settled);
        // Whoever was running, and nobody else, has acknowledged; and the gate stays closed.
        assert_eq!(guest.acknowledged.load(Ordering::Acquire), found == Found::Running);
        assert!(!guest.gate.is_running());
        assert_eq!(guest.gate.enter(), Err(Closed));
        assert!(polls <= 3);
    });
}

#[test]
fn a_warning_and_an_interrupt_at_once_are_as_good_as_one_interrupt() {
    loom::model(|| {
        let guest = Guest::new();
        let others: Vec<_> = [true, false]
            .into_iter()
            .map(|hard| {
                let guest = Arc::clone(&guest);
                thread::spawn(move || if hard { guest.interrupt() } else { guest.gate.flag() })
            })
            .collect();
        let _ = guest.poll(|| {});
        let found: Vec<_> = others.into_iter().map(|other| other.join().unwrap()).collect();
        assert!(!found.contains(&Found::Settled));
        assert_eq!(guest.gate.enter(), Err(Closed));
        assert_eq!(guest.gate.settle(), Err(Closed));
        assert_eq!(guest.gate.queue(), Err(Closed));
    });
}

#[test]
fn a_call_ends_by_itself_or_is_stopped_and_never_both() {
    loom::model(|| {
        let guest = Guest::new();
        let worker = {
            let guest = Arc::clone(&guest);
            thread::spawn(move || guest.poll(|| {}).and_then(|()| guest.gate.settle()))
        };
        let found = guest.interrupt();
        let settled = worker.join().unwrap().is_ok();
        assert_eq!(settled, found == Found::Settled);
        assert_eq!(settled, guest.gate.is_settled());
    });
}

/// The committer's side, as the writer does it. Says whether the transaction was applied.
fn commit(gate: &Gate, last: bool) -> bool {
    while gate.ticket() != Ticket::Queued {
        thread::yield_now();
    }
    let decided = gate.decide(last).is_ok();
    gate.resolve(if decided { Ticket::Durable } else { Ticket::None });
    decided
}

fn committer(guest: &Arc<Guest>, last: bool) -> thread::JoinHandle<bool> {
    let guest = Arc::clone(guest);
    thread::spawn(move || commit(&guest.gate, last))
}

#[test]
fn a_commit_is_applied_or_withdrawn_and_both_sides_know_which() {
    for last in [false, true] {
        loom::model(move || {
            let guest = Guest::new();
            guest.gate.queue().unwrap();
            let committer = committer(&guest, last);
            let found = guest.interrupt();
            let seen = guest.gate.ticket();
            let applied = committer.join().unwrap();
            if last {
                assert_eq!(applied, found == Found::Settled, "told too late, or told stopped and committed");
            }
            // Once the interrupt is back, a ticket that is not decided never will be.
            if !matches!(seen, Ticket::Decided | Ticket::Durable) {
                assert!(!applied, "committed after the interrupt had returned");
            }
            assert_eq!(guest.gate.ticket(), if applied { Ticket::Durable } else { Ticket::None });
        });
    }
}

#[test]
fn whoever_waits_for_a_ticket_is_told_what_became_of_it() {
    for last in [false, true] {
        loom::model(move || {
            let guest = Guest::new();
            guest.gate.queue().unwrap();
            let committer = committer(&guest, last);
            let interrupter = {
                let guest = Arc::clone(&guest);
                thread::spawn(move || guest.interrupt())
            };
            let told = loop {
                match guest.gate.awaited() {
                    Some(ticket) => break ticket,
                    None => thread::yield_now(),
                }
            };
            let applied = committer.join().unwrap();
            interrupter.join().unwrap();
            assert_eq!(applied, told == Ticket::Durable, "told {told:?}");
        });
    }
}

#[test]
fn a_warned_call_cannot_commit() {
    loom::model(|| {
        let guest = Guest::new();
        let worker = {
            let guest = Arc::clone(&guest);
            thread::spawn(move || guest.gate.queue().is_ok() && commit(&guest.gate, false))
        };
        guest.gate.flag();
        let after = guest.gate.ticket();
        let applied = worker.join().unwrap();
        if after == Ticket::None || after == Ticket::Queued {
            assert!(!applied);
        }
        assert_eq!(guest.gate.queue(), Err(Closed));
    });
}

#[test]
fn a_child_that_registers_late_does_not_escape() {
    loom::model(|| {
        let parent = Guest::new();
        let child = Guest::new();
        let published = Arc::new(AtomicBool::new(false));
        let worker = {
            let (parent, child, published) = (Arc::clone(&parent), Arc::clone(&child), Arc::clone(&published));
            thread::spawn(move || {
                let registered = register(|| published.store(true, Ordering::Release), [&parent.gate].into_iter());
                if registered.is_err() {
                    child.interrupt();
                }
            })
        };
        // As an interrupt does it: close what is named, then walk.
        parent.interrupt();
        if published.load(Ordering::Acquire) {
            child.interrupt();
        }
        worker.join().unwrap();
        assert!(child.gate.is_interrupted(), "the child runs on");
    });
}

#[test]
fn a_grandchild_does_not_escape_through_a_child_that_is_not_closed_yet() {
    loom::model(|| {
        let (parent, child, grandchild) = (Guest::new(), Guest::new(), Guest::new());
        let published = Arc::new(AtomicBool::new(false));
        let worker = {
            let (parent, child, grandchild) = (Arc::clone(&parent), Arc::clone(&child), Arc::clone(&grandchild));
            let published = Arc::clone(&published);
            thread::spawn(move || {
                let ancestors = [&child.gate, &parent.gate].into_iter();
                if register(|| published.store(true, Ordering::Release), ancestors).is_err() {
                    grandchild.interrupt();
                }
            })
        };
        parent.interrupt();
        // The walk meets the grandchild's slot before the child's.
        if published.load(Ordering::Acquire) {
            grandchild.interrupt();
        }
        child.interrupt();
        worker.join().unwrap();
        assert!(grandchild.gate.is_interrupted());
    });
}

/// Everything at once: polls, a child, a commit point and the end, against an interrupt.
#[test]
fn poll_commit_and_child_registration_against_an_interrupt() {
    loom::model(|| {
        let call = Guest::new();
        let child = Guest::new();
        let published = Arc::new(AtomicBool::new(false));
        let worker = {
            let (call, child, published) = (Arc::clone(&call), Arc::clone(&child), Arc::clone(&published));
            thread::spawn(move || {
                let registered = call.poll(|| {
                    if register(|| published.store(true, Ordering::Release), [&call.gate].into_iter()).is_err() {
                        child.interrupt();
                    }
                });
                registered.and_then(|()| call.poll(|| {})).and_then(|()| call.gate.queue()).is_ok()
            })
        };
        let committer = {
            let call = Arc::clone(&call);
            thread::spawn(move || {
                // The ticket may never come: then there is nothing to decide.
                let decided = call.gate.decide(true).is_ok();
                if decided {
                    call.gate.resolve(Ticket::Durable);
                }
                decided
            })
        };
        let found = call.interrupt();
        if published.load(Ordering::Acquire) {
            child.interrupt();
        }
        let queued = worker.join().unwrap();
        let applied = committer.join().unwrap();
        assert_eq!(applied, found == Found::Settled);
        assert!(queued || !applied);
        assert!(!call.gate.is_running());
        if published.load(Ordering::Acquire) {
            assert!(child.gate.is_interrupted());
        }
    });
}
