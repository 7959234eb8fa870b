//! The audit log: what is recorded, and the way there.
//!
//! Workers, interrupters and clients only push; one thread, the committer, writes (`log/writer.rs`). Pushing never waits.
//!
//! Invariants:
//! - The queue has room for the end of every registered call and for the interrupts that stop them: calls are refused
//!   when it is half full, and refusals are only counted when it is three quarters full. What still does not fit is
//!   counted, and the count is entered.
//! - Commits have a queue of their own with a place for every call's ticket.

pub(crate) mod entry;
pub(crate) mod writer;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::Thread;

use crossbeam_queue::ArrayQueue;
use tokio::sync::oneshot;

pub use self::entry::{Entry, EntryKind};
use crate::call::CallState;
use crate::ids::CallId;
use crate::interrupt::{Delivered, Reached};
use crate::store::{Read, Space, StoreError, Write};

/// Something to enter.
pub(crate) enum Record {
    /// The guest of this call is about to start. Nothing of the call is kept for it.
    Started(Weak<CallState>),
    /// The call has ended, or was refused.
    Ended(EntryKind),
    /// Somebody stopped something. Turned into text by the writer, not by who stops.
    Interrupted {
        delivered: Arc<Delivered>,
        /// How many calls were in the scope.
        reached: usize,
        /// Which, up to [`entry::CALLS_NAMED_MAX`].
        calls: Vec<(CallId, Reached)>,
    },
}

/// Who waits for everything before it to be in the store.
type Flush = oneshot::Sender<Result<(), StoreError>>;

/// Who may wait for the log at one time.
const FLUSHES_MAX: usize = 256;

/// A transaction on its way into the store.
pub(crate) struct Job {
    pub(crate) call: Arc<CallState>,
    pub(crate) space: Space,
    pub(crate) reads: Vec<Read>,
    pub(crate) writes: Vec<Write>,
    pub(crate) last: bool,
}

/// The pushing side.
pub(crate) struct Log {
    records: ArrayQueue<(u64, Record)>,
    commits: ArrayQueue<Job>,
    flushes: ArrayQueue<Flush>,
    /// Entries that did not fit.
    lost: AtomicU64,
    /// The store did not take the last batch.
    failing: AtomicBool,
    /// The writer waits without a time-out.
    asleep: AtomicBool,
    stop: AtomicBool,
    writer: OnceLock<Thread>,
    wall_ns: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Log {
    /// `wall_ns` is the time of day in nanoseconds since 1970.
    pub(crate) fn new(calls_max: usize, wall_ns: Box<dyn Fn() -> u64 + Send + Sync>) -> Self {
        // For each call a start, an end, an interrupt, and as much again for refusals and repeats.
        let records_max = calls_max.max(256) * 8;
        Self {
            records: ArrayQueue::new(records_max),
            flushes: ArrayQueue::new(FLUSHES_MAX),
            // A withdrawn ticket may still be in the queue when its call's slot has been taken again.
            commits: ArrayQueue::new(calls_max.max(1) * 2),
            lost: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            writer: OnceLock::new(),
            wall_ns,
        }
    }

    /// Enters something. Never waits.
    pub(crate) fn record(&self, record: Record) {
        let refusal = matches!(&record, Record::Ended(EntryKind::Refusal { .. }));
        let full = refusal && self.records.len() > self.records.capacity() / 4 * 3;
        if full || self.records.push(((self.wall_ns)(), record)).is_err() {
            self.lost.fetch_add(1, Ordering::AcqRel);
        }
        // Sequentially consistent on both sides: who rests says so before it looks at the queue a last time.
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.unpark();
        }
    }

    /// Hands a transaction to the committer, whose ticket is queued already.
    pub(crate) fn commit(
        &self,
        call: &Arc<CallState>,
        space: Space,
        reads: Vec<Read>,
        writes: Vec<Write>,
        last: bool,
    ) -> Result<(), StoreError> {
        let job = Job { call: Arc::clone(call), space, reads, writes, last };
        self.commits.push(job).map_err(|_| StoreError::Busy)?;
        self.asleep.store(false, Ordering::SeqCst);
        self.unpark();
        Ok(())
    }

    /// Why no call may start: what it would do could not be entered.
    pub(crate) fn refuses(&self) -> Option<&'static str> {
        if self.failing.load(Ordering::Acquire) {
            return Some("the log cannot be written; calls are refused until it can");
        }
        // Half of the queue is for the ends and the interrupts of what already runs.
        (self.records.len() > self.records.capacity() / 2)
            .then_some("the log is too far behind; calls are refused until it has caught up")
    }

    /// How many calls a record of an interrupt may name. None if many records wait: then memory counts more.
    pub(crate) fn calls_named_max(&self) -> usize {
        if self.records.len() < entry::RECORDS_NAMING_MAX { entry::CALLS_NAMED_MAX } else { 0 }
    }

    /// Waits until everything recorded so far is in the store, or could not be written.
    pub(crate) async fn flush(&self) -> Result<(), StoreError> {
        let (done, flushed) = oneshot::channel();
        self.flushes.push(done).map_err(|_| StoreError::Busy)?;
        self.unpark();
        flushed.await.unwrap_or_else(|_| Err(StoreError::Io("the log's thread has ended".into())))
    }

    /// Lets the writer end once it has written what is there.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.unpark();
    }

    fn unpark(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }
}
