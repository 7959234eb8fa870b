//! The committer and log writer: what calls [`Store::write`], one thread at a time.
//!
//! A thread of its own does it; except that a call which is alone in its host commits its end on the worker that ran it, if
//! the store can do so without waiting for others: the commit is done before two other threads would have been woken.
//!
//! It puts the commits of many calls and everything there is to enter into one database transaction. A commit is begun
//! at once; entries alone wait for about [`FLUSH_EVERY`], so that a call's start and end usually become one entry, and what one
//! call leaves behind is written with the commit of the next: otherwise that would find the pen taken every now and then.
//!
//! Invariant: a ticket is resolved exactly once, after its batch, and the counts of the call are right before it is.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::{Entry, EntryKind, FLUSHES_MAX, Failing, Flush, Job, Log, Record, Stop};
use crate::call::CallState;
use crate::gate::Ticket;
use crate::ids::{CallId, HostId};
use crate::metrics::Committed;
use crate::observer::Observers;
use crate::store::{Commit, Store, StoreError, Verdict};
use crate::trace;

/// Between two looks at the queues while there is something. Entries are written at the second look that finds some.
const LOOK_EVERY: Duration = Duration::from_micros(2_500);
/// How long entries wait for others: a start, for the end of its call.
const FLUSH_EVERY: Duration = LOOK_EVERY.saturating_mul(2);
/// How long the writer waits before it tries again to write what could not be written.
const RETRY_EVERY: Duration = Duration::from_millis(50);
/// How often it tries once the host is gone.
const LAST_ATTEMPTS_MAX: usize = 3;
/// Commits in one database transaction: bounds how long the first waits for the last.
const BATCH_COMMITS_MAX: usize = 1024;
/// Entries in one database transaction.
const BATCH_ENTRIES_MAX: usize = 16 * 1024;
/// Refusals that get entries of their own in each [`REFUSALS_EVERY`]; more are counted, so that whoever asks in vain does
/// not fill the disk.
const REFUSALS_MAX: u64 = 100;
const REFUSALS_EVERY: Duration = Duration::from_secs(1);

pub(crate) struct Writer {
    pub(crate) log: Arc<Log>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) observers: Observers,
    pub(crate) host: HostId,
    pub(crate) space_bytes_max: u64,
    /// Whoever has it writes.
    pub(crate) pen: Mutex<Pen>,
}

/// What is between the queues and the store.
pub(crate) struct Pen {
    unwritten: Unwritten,
    /// The writer's thread has looked, and left the entries that it found to the next commit.
    is_left: bool,
    waiting: Vec<Flush>,
    /// Calls that run and whose start has an entry of its own.
    started: HashSet<CallId>,
    refusals: Refusals,
}

impl Pen {
    pub(crate) fn new() -> Self {
        let refusals = Refusals { since: Instant::now(), entered: 0, counted: 0, why: String::new() };
        let (unwritten, waiting, started) = (Unwritten::default(), Vec::new(), HashSet::new());
        Self { unwritten, is_left: false, waiting, started, refusals }
    }
}

/// What one turn of the writer found.
enum Turn {
    /// There was nothing to write; something may be soon.
    Idle {
        soon: bool,
    },
    /// A batch is in the store. `all`: everything that was there.
    Written {
        all: bool,
    },
    Failed,
}

/// What was taken from the queues and is not in the store.
#[derive(Default)]
struct Unwritten {
    entries: Vec<Entry>,
    /// Those of the entries that are interrupts.
    stops: Vec<Arc<Stop>>,
    /// Calls that were started a moment ago: what is written for others' sake does not part a start from its end.
    starts: HashMap<CallId, Begun>,
}

/// A call whose start may become one entry with its end.
struct Begun {
    at_ns: u64,
    seen: Instant,
    call: Weak<CallState>,
}

/// Refusals within the current [`REFUSALS_EVERY`].
struct Refusals {
    since: Instant,
    entered: u64,
    counted: u64,
    why: String,
}

impl Refusals {
    /// Whether one more gets an entry of its own. Otherwise it is counted.
    fn admit(&mut self, why: &str, counted_only: bool) -> bool {
        if self.since.elapsed() > REFUSALS_EVERY {
            (self.since, self.entered) = (Instant::now(), 0);
        }
        self.entered += 1;
        let admitted = self.entered <= REFUSALS_MAX && !counted_only;
        if !admitted {
            self.counted += 1;
            why.clone_into(&mut self.why);
        }
        admitted
    }

    /// What was counted, once that may be entered.
    fn take(&mut self, now: bool) -> Option<EntryKind> {
        let due = self.counted > 0 && (now || self.since.elapsed() > REFUSALS_EVERY);
        due.then(|| EntryKind::Refusals {
            count: std::mem::take(&mut self.counted),
            why: std::mem::take(&mut self.why),
        })
    }
}

impl Writer {
    pub(crate) fn start(self: Arc<Self>) -> std::io::Result<()> {
        thread::Builder::new().name("estop-log".into()).spawn(move || {
            let _ = self.log.writer.set(thread::current());
            let complete = self.serve() && !self.log.unfinished.load(Ordering::Acquire);
            // Before the host is taken for dead: the next one enters what stands there, and removes it.
            self.log.end_alternate();
            self.store.detach(self.host, complete);
            self.log.ended.send_replace(Some(complete));
        })?;
        Ok(())
    }

    /// Commits a job on the thread that brings it, which saves waking two others; if that could mean waiting for somebody,
    /// the writer's thread does it.
    pub(crate) fn write_here(&self, job: Job) -> Result<(), StoreError> {
        let pen = self.pen.try_lock().ok().filter(|_| !self.log.troubled.load(Ordering::Acquire));
        let Some(mut pen) = pen else { return self.log.commit(job) };
        self.turn(&mut pen, Some(job), false);
        if !pen.unwritten.starts.is_empty() || !pen.unwritten.entries.is_empty() {
            drop(pen);
            // It may have looked at the queues before they were emptied here, and rest for long.
            self.log.wake();
        }
        Ok(())
    }

    /// Until the host is gone. Whether everything was entered.
    fn serve(&self) -> bool {
        let mut last_attempts = 0;
        loop {
            self.log.heartbeat.beat();
            // Read before the queues: what was recorded before the stop is then still found in them.
            let stopping = self.log.stop.load(Ordering::Acquire);
            let turn = self.turn(&mut self.pen.lock().unwrap_or_else(PoisonError::into_inner), None, stopping);
            match turn {
                Turn::Idle { .. } if stopping => return true,
                Turn::Idle { soon: true } => thread::park_timeout(LOOK_EVERY),
                Turn::Idle { soon: false } => self.rest(),
                Turn::Failed => {
                    last_attempts += usize::from(stopping);
                    if last_attempts >= LAST_ATTEMPTS_MAX {
                        return false;
                    }
                    thread::park_timeout(RETRY_EVERY);
                }
                Turn::Written { all } if all && self.log.commits.is_empty() && !stopping => {
                    thread::park_timeout(LOOK_EVERY);
                }
                Turn::Written { .. } => {}
            }
        }
    }

    /// Leaves jobs to the writer's thread.
    fn hand_over(&self, jobs: Vec<Job>) {
        for job in jobs {
            let call = Arc::clone(&job.call);
            if let Err(error) = self.log.commit(job) {
                call.set_verdict(Verdict::Refused(error));
                call.gate.resolve(Ticket::None);
                call.wake();
            }
        }
    }

    /// Takes what is in the queues and writes it as one batch. `first`: only if that waits for nobody.
    fn turn(&self, pen: &mut Pen, first: Option<Job>, stopping: bool) -> Turn {
        let Pen { unwritten, is_left, waiting, started, refusals } = pen;
        let here = first.is_some();
        let looked_ns = (self.log.wall_ns)();
        // Whoever waits is taken before the records that it waits for.
        waiting.extend(iter::from_fn(|| self.log.flushes.pop()).take(FLUSHES_MAX));
        let queued = iter::from_fn(|| self.log.commits.pop());
        let jobs: Vec<Job> = first.into_iter().chain(queued).take(BATCH_COMMITS_MAX).collect();
        let now = stopping || !waiting.is_empty();
        let all_taken = self.take_records(unwritten, started, refusals, now);
        let counted = refusals.take(now || (jobs.is_empty() && unwritten.entries.is_empty()));
        unwritten.entries.extend(counted.map(|kind| self.entry(kind)));
        self.log.lag.holds(&unwritten.entries, looked_ns);
        if jobs.is_empty() && unwritten.entries.is_empty() && waiting.is_empty() {
            return Turn::Idle { soon: !unwritten.starts.is_empty() };
        }
        // What was full is written at once: there is more.
        if jobs.is_empty() && !now && all_taken && !std::mem::replace(is_left, true) {
            return Turn::Idle { soon: true };
        }
        let written = self.write(&jobs, unwritten, here);
        self.log.lag.holds(&unwritten.entries, looked_ns);
        let written = match written {
            Some(written) => written,
            None => {
                self.hand_over(jobs);
                return Turn::Idle { soon: true };
            }
        };
        *is_left = written.is_err();
        if all_taken || written.is_err() {
            for done in waiting.drain(..) {
                // Whoever waited may have gone away.
                let _ = done.send(written.clone());
            }
        }
        if written.is_ok() { Turn::Written { all: all_taken } } else { Turn::Failed }
    }

    /// Waits without a time-out, unless something came meanwhile.
    fn rest(&self) {
        self.log.asleep.store(true, Ordering::SeqCst);
        let empty = self.log.commits.is_empty() && self.log.records.is_empty() && self.log.flushes.is_empty();
        if empty && !self.log.stop.load(Ordering::SeqCst) {
            thread::park();
        }
        self.log.asleep.store(false, Ordering::SeqCst);
    }

    /// Turns what was recorded into entries, as far as there is room; says whether there was. `now`: all of it, because
    /// somebody waits for it.
    fn take_records(
        &self,
        unwritten: &mut Unwritten,
        started: &mut HashSet<CallId>,
        refusals: &mut Refusals,
        now: bool,
    ) -> bool {
        let room = BATCH_ENTRIES_MAX.saturating_sub(unwritten.entries.len());
        let records: Vec<(u64, Record)> = iter::from_fn(|| self.log.records.pop()).take(room).collect();
        let all_taken = records.len() < room;
        let short_of_room = self.log.shortage.load().is_some();
        for (at_ns, record) in records {
            let kind = match record {
                Record::Started(call) => {
                    // If it has ended, the entry of its end tells both.
                    if let Some(id) = call.upgrade().filter(|call| !call.is_released()).map(|call| call.id) {
                        unwritten.starts.insert(id, Begun { at_ns, seen: Instant::now(), call });
                    }
                    continue;
                }
                Record::Ended(EntryKind::Refusal { why, .. }) if !refusals.admit(&why, short_of_room) => continue,
                Record::Ended(mut kind) => {
                    if let EntryKind::End(end) = &mut kind {
                        unwritten.starts.remove(&end.call);
                        end.with_start &= !started.remove(&end.call);
                    }
                    kind
                }
                Record::Noted(kind) => kind,
                Record::Interrupted(stop) => {
                    let kind = stop.kind();
                    unwritten.stops.push(stop);
                    kind
                }
            };
            unwritten.entries.push(Entry::new(at_ns, self.host, kind));
        }
        for (id, begun) in unwritten.starts.extract_if(|_, begun| now || begun.seen.elapsed() >= FLUSH_EVERY) {
            if let Some(call) = begun.call.upgrade().filter(|call| !call.is_released()) {
                started.insert(id);
                unwritten.entries.push(Entry::new(begun.at_ns, self.host, EntryKind::started(&call)));
            }
        }
        if all_taken {
            let lost = self.log.lost.swap(0, Ordering::AcqRel);
            if lost > 0 {
                unwritten.entries.push(self.entry(EntryKind::Lost { entries: lost }));
            }
        }
        all_taken
    }

    pub(crate) fn entry(&self, kind: EntryKind) -> Entry {
        Entry::new((self.log.wall_ns)(), self.host, kind)
    }

    fn show(&self, entry: &Entry) {
        trace::entry(entry);
        self.observers.entry(entry);
    }

    /// One batch. What could not be written stays in `unwritten` and is tried again, first and in the same order. `None`:
    /// it was not tried, because somebody else would have to be waited for, `here`.
    fn write(&self, jobs: &[Job], unwritten: &mut Unwritten, here: bool) -> Option<Result<(), StoreError>> {
        let decided: Vec<Cell<bool>> = jobs.iter().map(|_| Cell::new(false)).collect();
        let decide: Vec<_> = jobs
            .iter()
            .zip(&decided)
            .map(|(job, decided)| {
                move || {
                    // A store that asks twice gets the same answer.
                    if !decided.get() {
                        decided.set(job.call.gate.decide(job.last).is_ok());
                    }
                    decided.get()
                }
            })
            .collect();
        let mut commits: Vec<Commit<'_>> = jobs
            .iter()
            .zip(&decide)
            .map(|(job, decide)| Commit {
                parts: &job.parts,
                workspaces: &job.workspaces,
                space_bytes_max: self.space_bytes_max,
                entry: self.entry(EntryKind::committed(&job.call)),
                decide,
            })
            .collect();
        self.log.writing_since_ms.store(self.log.now_ms(), Ordering::Release);
        let mut write = || match here {
            true => self.store.write_now(&mut commits, &unwritten.entries),
            false => Some(self.store.write(&mut commits, &unwritten.entries)),
        };
        // A store that panics or forgets a commit may not leave calls waiting for ever.
        let written = catch_unwind(AssertUnwindSafe(&mut write))
            .unwrap_or_else(|_| Some(Err(StoreError::Unknown("it panicked".into()))));
        self.log.writing_since_ms.store(0, Ordering::Release);
        let written = written?.and_then(|verdicts| {
            let complete = verdicts.len() == jobs.len();
            if complete { Ok(verdicts) } else { Err(StoreError::Unknown("it forgot a commit".into())) }
        });
        self.trouble(written.as_ref().err(), unwritten);
        Some(match written {
            Ok(verdicts) => {
                for ((job, commit), verdict) in jobs.iter().zip(&commits).zip(verdicts) {
                    self.log.counts.committed(Committed::from(&verdict), job.call.commits.pending());
                    if matches!(verdict, Verdict::Applied) {
                        self.show(&commit.entry);
                        job.call.commits.durable();
                        resolve(job, Ticket::Durable, verdict);
                    } else {
                        resolve(job, Ticket::None, verdict);
                    }
                }
                unwritten.entries.drain(..).for_each(|entry| self.show(&entry));
                unwritten.stops.drain(..).for_each(|stop| stop.entered.store(true, Ordering::Release));
                Ok(())
            }
            Err(error) => {
                for (job, decided) in jobs.iter().zip(&decided) {
                    let unknown = decided.get() && matches!(error, StoreError::Unknown(_));
                    let ticket = if unknown { Ticket::Failed } else { Ticket::None };
                    let committed = if unknown { Committed::Unknown } else { Committed::Refused };
                    self.log.counts.committed(committed, job.call.commits.pending());
                    resolve(job, ticket, Verdict::Refused(error.clone()));
                }
                Err(error)
            }
        })
    }

    /// Lets nobody in while the store cannot be written, or wants to be left alone; and enters that it was so, with what
    /// is written first once it works again.
    fn trouble(&self, error: Option<&StoreError>, unwritten: &mut Unwritten) {
        let shortage = self.store.shortage();
        match error {
            None => {
                if self.log.failing.swap(None).is_some() {
                    tracing::warn!("the log can be written again");
                    self.log.alternate.written.store(0, Ordering::Release);
                }
            }
            Some(error) => {
                let failing = self.log.failing.load();
                if failing.is_none() {
                    tracing::error!(%error, "the log cannot be written: new calls are refused until it can");
                }
                let since = failing.as_ref().map_or_else(SystemTime::now, |failing| failing.since);
                let why = error.to_string();
                let alternate = self.log.alternate.written.load(Ordering::Acquire);
                let gap = EntryKind::Gap { since, why: why.clone(), alternate };
                let entered = unwritten.entries.iter_mut().find(|e| matches!(e.kind, EntryKind::Gap { .. }));
                match entered {
                    Some(entry) => entry.kind = gap,
                    None => unwritten.entries.push(self.entry(gap)),
                }
                self.log.failing.store(Some(Arc::new(Failing { since, why })));
            }
        }
        self.log.troubled.store(error.is_some() || shortage.is_some(), Ordering::Release);
        self.log.shortage.store(shortage.map(Arc::new));
    }
}

/// The verdict is there before the ticket says so.
fn resolve(job: &Job, ticket: Ticket, verdict: Verdict) {
    job.call.set_verdict(verdict);
    job.call.gate.resolve(ticket);
    job.call.wake();
}
