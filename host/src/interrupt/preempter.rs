//! The preempter: finishes what an interrupt began, so that the interrupt itself never has to wait.
//!
//! It wakes the tasks of calls that were suspended, and bumps the epoch until every call that was on a processor has
//! acknowledged: a single bump is lost if it falls between a guest's look at the gate and the renewal of its deadline.
//!
//! Invariant: every call that was submitted is served, also when the queue was full: then all calls are looked through.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use wasmtime::EngineWeak;

use crate::call::CallState;
use crate::heartbeat::{BEAT_EVERY, Heartbeat};
use crate::inventory::Inventory;

/// Between two bumps for a call that has not acknowledged. Shorter costs the neighbours, longer costs the stop.
const BUMP_EVERY: Duration = Duration::from_micros(50);
/// After this a call is stuck in a host function, and the ticker's pace is enough.
const BUMP_FOR: Duration = Duration::from_millis(10);

/// The submitting side.
pub(crate) struct Preempter {
    shared: Arc<Shared>,
    thread: Thread,
}

struct Shared {
    queue: ArrayQueue<Arc<CallState>>,
    overflowed: AtomicBool,
    stop: AtomicBool,
    heartbeat: Heartbeat,
}

impl Preempter {
    /// Starts the thread. `calls_max` bounds the queue.
    pub(crate) fn start(engine: EngineWeak, inventory: Arc<Inventory>, calls_max: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: ArrayQueue::new(calls_max.max(1)),
            overflowed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            heartbeat: Heartbeat::new(),
        });
        let run = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("estop-preempt".into())
            .spawn(move || run.serve(&engine, &inventory))?
            .thread()
            .clone();
        Ok(Self { shared, thread })
    }

    /// Never waits. A call that is in the queue already is served once.
    pub(crate) fn submit<'a>(&self, calls: impl Iterator<Item = &'a Arc<CallState>>) {
        let mut any = false;
        for call in calls {
            any = true;
            if call.in_preempter.swap(true, Ordering::AcqRel) {
                continue;
            }
            if self.shared.queue.push(Arc::clone(call)).is_err() {
                call.in_preempter.store(false, Ordering::Release);
                self.shared.overflowed.store(true, Ordering::Release);
            }
        }
        if any {
            self.thread.unpark();
        }
    }

    /// By the ticker: wakes the thread if it has rested for long, so that it can be seen whether it would wake.
    pub(crate) fn look_alive(&self) {
        if self.shared.heartbeat.age() > BEAT_EVERY {
            self.thread.unpark();
        }
    }

    #[cfg(feature = "control")]
    pub(crate) fn heartbeat(&self) -> &Heartbeat {
        &self.shared.heartbeat
    }
}

impl Drop for Preempter {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl Shared {
    fn serve(&self, engine: &EngineWeak, inventory: &Inventory) {
        // The default slack of 50 µs would double the pace. Failing to set it costs precision only.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        let mut on_cpu: Vec<(Arc<CallState>, Instant)> = Vec::new();
        loop {
            self.heartbeat.beat();
            while let Some(call) = self.queue.pop() {
                // Cleared before the call is looked at: whoever comes later submits it again.
                call.in_preempter.swap(false, Ordering::AcqRel);
                take_up(call, &mut on_cpu);
            }
            if self.overflowed.swap(false, Ordering::AcqRel) {
                inventory.walk(|call| {
                    if call.gate.is_flagged() {
                        take_up(Arc::clone(call), &mut on_cpu);
                    }
                });
            }
            on_cpu.retain(|(call, since)| call.gate.is_running() && since.elapsed() < BUMP_FOR);
            if !on_cpu.is_empty() {
                let Some(engine) = engine.upgrade() else {
                    return;
                };
                engine.increment_epoch();
                drop(engine);
                thread::sleep(BUMP_EVERY);
            } else if self.stop.load(Ordering::Acquire) {
                return;
            } else if self.queue.is_empty() {
                thread::park();
            }
        }
    }
}

fn take_up(call: Arc<CallState>, on_cpu: &mut Vec<(Arc<CallState>, Instant)>) {
    call.wake();
    if call.gate.is_running() && call.gate.is_interrupted() {
        on_cpu.push((call, Instant::now()));
    }
}
