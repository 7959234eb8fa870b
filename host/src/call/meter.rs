//! How much fuel a guest has used, for whoever looks on while it runs.
//!
//! A running guest keeps its fuel in a register, and its store is borrowed by the future that runs it. But it gives way
//! after each [`FUEL_INTERVAL`], and that can be seen from outside: the future is pending and has woken its own task.
//!
//! Invariant: what a guest that only computes is said to have used is at most two intervals less than what it has, and not
//! more. Nothing is done for a call that is never pending.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use super::live::Live;
use crate::engine::FUEL_INTERVAL;

/// See the module's documentation.
pub(super) struct Meter {
    metered: Arc<Metered>,
    waker: Waker,
}

struct Metered {
    task: Waker,
    woken: AtomicBool,
}

impl Wake for Metered {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Relaxed);
        self.task.wake_by_ref();
    }
}

impl Meter {
    fn new(task: &Waker) -> Self {
        let metered = Arc::new(Metered { task: task.clone(), woken: AtomicBool::new(false) });
        Self { waker: Waker::from(Arc::clone(&metered)), metered }
    }

    /// One that wakes this task.
    pub(super) fn of(self, task: &Waker) -> Self {
        if self.metered.task.will_wake(task) { self } else { Self::new(task) }
    }

    /// With what the guest is polled, from now on.
    pub(super) fn waker(&self) -> &Waker {
        self.metered.woken.store(false, Ordering::Relaxed);
        &self.waker
    }

    /// The guest is pending, and the next poll is with the answer.
    pub(super) fn pending(meter: Option<Self>, task: &Waker, live: &Live) -> Self {
        // A guest that has given way because its turn was over has not used up an interval.
        let is_over = live.has_given_way();
        let Some(meter) = meter else { return Self::new(task) };
        if meter.metered.woken.load(Ordering::Relaxed) && !is_over {
            live.used_fuel(FUEL_INTERVAL);
        }
        meter
    }
}
