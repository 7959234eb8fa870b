//! The audit log: what is recorded, and the way there.
//!
//! Workers, interrupters and clients only push; one thread, the committer, writes (`log/writer.rs`). Pushing never waits.
//!
//! Invariants:
//! - The queue has room for the end of every registered call and for the interrupts that stop them: calls are refused
//!   when it is half full, and refusals are only counted when it is three quarters full. What still does not fit is
//!   counted, and the count is entered.
//! - Commits have a queue of their own with a place for every call's ticket.
//! - While the log cannot be written, or a write takes long, no call is let in, and interrupts go to the alternate sink
//!   (`log/alternate.rs`) as well.

pub(crate) mod alternate;
pub mod bundle;
pub(crate) mod chain;
pub mod checkpoint;
mod drilled;
pub(crate) mod entry;
pub mod export;
pub(crate) mod lag;
mod sink;
pub mod verify;
pub(crate) mod writer;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use crossbeam_queue::ArrayQueue;
use tokio::sync::{oneshot, watch};

use self::alternate::Alternate;
pub use self::checkpoint::Checkpoint;
pub use self::drilled::{CaseReport, Drilled};
pub(crate) use self::entry::rfc3339_us;
pub use self::entry::{EndEntry, Entry, EntryKind};
use self::lag::Lag;
pub use self::sink::CheckpointTo;
pub(crate) use self::sink::Checkpoints;
use crate::call::CallState;
use crate::heartbeat::{BEAT_EVERY, Heartbeat};
use crate::ids::CallId;
use crate::interrupt::{Delivered, Reached};
use crate::metrics::{Committed, Counts};
use crate::store::{Part, StoreError};
use crate::workspace::Decision;

/// Something to enter.
pub(crate) enum Record {
    /// The guest of this call is about to start. Nothing of the call is kept for it.
    Started(Weak<CallState>),
    /// The call has ended, or was refused.
    Ended(EntryKind),
    /// Something else that happened.
    Noted(EntryKind),
    /// Somebody stopped something. Turned into text by the writer, not by who stops.
    Interrupted(Arc<Stop>),
}

/// An interrupt, for the log and for its alternate sink.
pub(crate) struct Stop {
    delivered: Arc<Delivered>,
    /// How many calls were in the scope.
    reached: usize,
    /// Which, up to [`entry::CALLS_NAMED_MAX`].
    calls: Vec<(CallId, Reached)>,
    /// Since 1970 (ns).
    at_ns: u64,
    /// To see how long it has been waiting.
    recorded: Instant,
    /// It is in the log.
    entered: AtomicBool,
}

impl Stop {
    fn kind(&self) -> EntryKind {
        EntryKind::interrupted(&self.delivered, self.reached, &self.calls)
    }
}

/// Who waits for everything before it to be in the store.
type Flush = oneshot::Sender<Result<(), StoreError>>;

/// Who may wait for the log at one time.
const FLUSHES_MAX: usize = 256;

/// A transaction on its way into the store.
pub(crate) struct Job {
    pub(crate) call: Arc<CallState>,
    pub(crate) parts: Vec<Part>,
    pub(crate) workspaces: Vec<Decision>,
    pub(crate) last: bool,
}

/// A write that takes longer than this keeps new calls out.
const WRITE_MAX: Duration = Duration::from_millis(500);

/// Since when and why the log cannot be written.
pub(crate) struct Failing {
    since: SystemTime,
    why: String,
}

/// The pushing side.
pub(crate) struct Log {
    records: ArrayQueue<(u64, Record)>,
    commits: ArrayQueue<Job>,
    flushes: ArrayQueue<Flush>,
    /// Entries that did not fit.
    lost: AtomicU64,
    /// The store did not take the last batch.
    failing: ArcSwapOption<Failing>,
    /// Why the store wants nothing new to be begun.
    shortage: ArcSwapOption<String>,
    /// Either of them is there: one look instead of two for every call that is let in.
    troubled: AtomicBool,
    /// When the store was last given something to write, since `began` (ms, from one); zero while it has nothing.
    writing_since_ms: AtomicU64,
    began: Instant,
    pub(crate) alternate: Alternate,
    pub(crate) counts: Counts,
    pub(crate) lag: Lag,
    /// Of the writer.
    pub(crate) heartbeat: Heartbeat,
    /// The writer waits without a time-out.
    asleep: AtomicBool,
    stop: AtomicBool,
    /// Something is left that this host will not enter.
    unfinished: AtomicBool,
    /// Whether the writer has ended, and with nothing left to enter.
    ended: watch::Sender<Option<bool>>,
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
            failing: ArcSwapOption::empty(),
            shortage: ArcSwapOption::empty(),
            troubled: AtomicBool::new(false),
            writing_since_ms: AtomicU64::new(0),
            began: Instant::now(),
            alternate: Alternate::new(calls_max.max(256)),
            counts: Counts::default(),
            lag: Lag::default(),
            heartbeat: Heartbeat::new(),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            unfinished: AtomicBool::new(false),
            ended: watch::Sender::new(None),
            writer: OnceLock::new(),
            wall_ns,
        }
    }

    /// Enters an interrupt. Never waits.
    pub(crate) fn record_stop(&self, delivered: Arc<Delivered>, reached: usize, calls: Vec<(CallId, Reached)>) {
        self.counts.interrupted(&delivered);
        let (at_ns, recorded, entered) = ((self.wall_ns)(), Instant::now(), AtomicBool::new(false));
        let stop = Arc::new(Stop { delivered, reached, calls, at_ns, recorded, entered });
        self.alternate.push(Arc::clone(&stop));
        self.record(Record::Interrupted(stop));
    }

    /// Enters something. Never waits.
    pub(crate) fn record(&self, record: Record) {
        let refusal = matches!(&record, Record::Ended(EntryKind::Refusal { .. }));
        let full = refusal && self.records.len() > self.records.capacity() / 4 * 3;
        self.counts.recorded(&record);
        let at_ns = (self.wall_ns)();
        if full || self.records.push((at_ns, record)).is_err() {
            self.lost.fetch_add(1, Ordering::AcqRel);
            self.counts.lost.add(1);
        }
        // Sequentially consistent on both sides: who rests says so before it looks at the queue a last time.
        if self.asleep.swap(false, Ordering::SeqCst) {
            // Nothing waited before it.
            self.lag.begins(at_ns);
            self.unpark();
        }
    }

    /// Hands a transaction to the committer, whose ticket is queued already.
    pub(crate) fn commit(&self, job: Job) -> Result<(), StoreError> {
        self.commits.push(job).map_err(|job| {
            self.counts.committed(Committed::Refused, job.call.commits.pending());
            StoreError::Busy
        })?;
        self.asleep.store(false, Ordering::SeqCst);
        self.unpark();
        Ok(())
    }

    /// Why no call may start: what it would do could not be entered.
    pub(crate) fn refuses(&self) -> Option<String> {
        if self.troubled.load(Ordering::Acquire) {
            if let Some(failing) = &*self.failing.load() {
                return Some(format!("the log cannot be written; calls are refused until it can: {}", failing.why));
            }
            if let Some(shortage) = &*self.shortage.load() {
                return Some(format!("calls are refused: {shortage}"));
            }
        }
        let since_ms = self.writing_since_ms.load(Ordering::Acquire);
        if since_ms > 0 {
            let elapsed = Duration::from_millis(self.now_ms().saturating_sub(since_ms));
            if elapsed > WRITE_MAX {
                return Some(format!(
                    "the log has been waiting for the disk, or for another process, for {elapsed:?}; calls are refused \
                     until it can be written"
                ));
            }
        }
        // Half of the queue is for the ends and the interrupts of what already runs.
        (self.records.len() > self.records.capacity() / 2)
            .then(|| "the log is too far behind; calls are refused until it has caught up".into())
    }

    /// From one: zero means never.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// The log is failing, or a write takes long: what waits for it may take longer.
    pub(crate) fn is_stuck(&self) -> bool {
        let since_ms = self.writing_since_ms.load(Ordering::Acquire);
        let slow = since_ms > 0 && self.now_ms().saturating_sub(since_ms) > WRITE_MAX.as_millis() as u64;
        slow || self.failing.load().is_some()
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

    /// The same. If not `all` has come to its end, the log does not say that nothing is left.
    pub(crate) fn stop_with(&self, all: bool) {
        if !all {
            self.unfinished.store(true, Ordering::Release);
        }
        self.stop();
    }

    /// Waits until the writer has ended. Whether everything is in the store.
    pub(crate) async fn ended(&self) -> bool {
        // The sender lives as long as the log.
        self.ended.subscribe().wait_for(Option::is_some).await.is_ok_and(|ended| *ended == Some(true))
    }

    /// By the ticker: wakes the writer if it has rested for long, so that it can be seen whether it would wake.
    pub(crate) fn look_alive(&self) {
        if self.heartbeat.age() > BEAT_EVERY {
            self.unpark();
        }
    }

    /// How many entries are recorded and not in the store, and for how long the oldest of them has been waiting.
    #[cfg(feature = "control")]
    pub(crate) fn behind(&self) -> (u64, Duration) {
        let entries = self.records.len() as u64 + self.lag.taken();
        let age_ns = (self.wall_ns)().saturating_sub(self.lag.since_ns());
        (entries, if entries == 0 { Duration::ZERO } else { Duration::from_nanos(age_ns) })
    }

    /// Has the writer look, if it rests.
    fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.unpark();
        }
    }

    fn unpark(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }
}
