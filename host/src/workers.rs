//! The guest workers: the only threads that ever poll a guest.
//!
//! They run at lowered priority, so that on a machine full of spinning guests the threads that stop them still get a
//! processor at once. A worker that runs out of work looks for more for a short while before it parks, because waking a
//! parked thread costs more than a whole call.
//!
//! Invariant: a task that is scheduled is run. Who schedules pushes first and then looks whether anybody searches; a
//! worker that stops searching says so first and then looks at the queue once more.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use async_task::Runnable;
use crossbeam_queue::{ArrayQueue, SegQueue};
use tokio::runtime::Handle;

/// How long a worker looks for work before it parks.
const SEARCH_FOR: Duration = Duration::from_micros(50);
/// Added to the nice value of a worker.
const WORKER_NICE: i32 = 5;

pub(crate) struct Workers {
    shared: Arc<Shared>,
}

struct Shared {
    /// Holds at most one runnable for each registered call, so the bound of the inventory is its bound.
    queue: SegQueue<Runnable>,
    searching: AtomicUsize,
    /// Who is, or is about to be, parked: each worker at most once.
    parked: ArrayQueue<usize>,
    listed: Box<[AtomicBool]>,
    /// Who would not find a new task without being woken. A listed worker may have gone on instead of parking.
    idle: Box<[AtomicBool]>,
    threads: Box<[OnceLock<Thread>]>,
    stop: AtomicBool,
}

impl Workers {
    /// Starts `count` threads. `io` drives the timers and sockets that host functions wait for.
    pub(crate) fn start(count: usize, io: &Handle) -> std::io::Result<Self> {
        let count = count.max(1);
        let shared = Arc::new(Shared {
            queue: SegQueue::new(),
            searching: AtomicUsize::new(0),
            parked: ArrayQueue::new(count),
            listed: (0..count).map(|_| AtomicBool::new(false)).collect(),
            idle: (0..count).map(|_| AtomicBool::new(false)).collect(),
            threads: (0..count).map(|_| OnceLock::new()).collect(),
            stop: AtomicBool::new(false),
        });
        for index in 0..count {
            let (run, io) = (Arc::clone(&shared), io.clone());
            thread::Builder::new().name(format!("estop-guest-{index}")).spawn(move || run.serve(index, &io))?;
        }
        Ok(Self { shared })
    }

    /// How many threads there are.
    pub(crate) fn count(&self) -> usize {
        self.shared.threads.len()
    }

    /// Runs a future on the workers. It is detached: whoever needs its result has it sent.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        let (runnable, task) = async_task::spawn(future, move |runnable| shared.schedule(runnable));
        task.detach();
        runnable.schedule();
    }
}

impl Drop for Workers {
    /// Lets the threads end once nothing is left to run.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.shared.threads.iter().filter_map(OnceLock::get) {
            thread.unpark();
        }
    }
}

impl Shared {
    fn schedule(&self, runnable: Runnable) {
        self.queue.push(runnable);
        fence(Ordering::SeqCst);
        if self.searching.load(Ordering::SeqCst) == 0 {
            self.unpark_one();
        }
    }

    fn unpark_one(&self) {
        while let Some(index) = self.parked.pop() {
            self.listed[index].store(false, Ordering::SeqCst);
            if self.idle[index].swap(false, Ordering::SeqCst) {
                if let Some(thread) = self.threads[index].get() {
                    thread.unpark();
                }
                return;
            }
        }
    }

    fn serve(&self, index: usize, io: &Handle) {
        let _context = io.enter();
        lower_priority();
        let _ = self.threads[index].set(thread::current());
        loop {
            while let Some(runnable) = self.queue.pop() {
                // More than one waits and nobody looks for it: another worker should.
                if self.searching.load(Ordering::Relaxed) == 0 && !self.queue.is_empty() {
                    self.unpark_one();
                }
                // A call catches its own panics; should one get here, it may not take the worker with it.
                if catch_unwind(AssertUnwindSafe(|| runnable.run())).is_err() {
                    tracing::error!("a call panicked outside of its gate; please report this");
                }
            }
            if self.search() {
                continue;
            }
            // Said first, looked after: see the module's invariant.
            self.idle[index].store(true, Ordering::SeqCst);
            if !self.listed[index].swap(true, Ordering::SeqCst) {
                // Cannot be full: it has room for every worker.
                let _ = self.parked.push(index);
            }
            fence(Ordering::SeqCst);
            if !self.queue.is_empty() {
                self.idle[index].store(false, Ordering::SeqCst);
                continue;
            }
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            thread::park();
            self.idle[index].store(false, Ordering::SeqCst);
        }
    }

    /// Looks for work for a while; says whether there is some.
    fn search(&self) -> bool {
        self.searching.fetch_add(1, Ordering::SeqCst);
        let until = Instant::now() + SEARCH_FOR;
        let found = loop {
            if !self.queue.is_empty() {
                break true;
            }
            if Instant::now() >= until {
                break false;
            }
            for _ in 0..16 {
                std::hint::spin_loop();
            }
        };
        self.searching.fetch_sub(1, Ordering::SeqCst);
        found
    }
}

fn lower_priority() {
    let thread = rustix::thread::gettid();
    let nice = rustix::process::getpriority_process(Some(thread)).unwrap_or(0) + WORKER_NICE;
    if let Err(error) = rustix::process::setpriority_process(Some(thread), nice.min(19)) {
        tracing::warn!(%error, "cannot lower the priority of a guest worker: stops may be slower under load");
    }
}
