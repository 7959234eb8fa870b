//! The committer and log writer: the one thread that calls [`Store::write`].
//!
//! It puts the commits of many calls and everything there is to enter into one database transaction. A commit is begun
//! at once; entries alone wait up to [`FLUSH_EVERY`], so that a call's start and end usually become one entry.
//!
//! Invariant: a ticket is resolved exactly once, after its batch, and the counts of the call are right before it is.

use std::cell::Cell;
use std::collections::HashSet;
use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::{Entry, EntryKind, FLUSHES_MAX, Flush, Job, Log, Record};
use crate::gate::Ticket;
use crate::ids::{CallId, HostId};
use crate::observer::Observers;
use crate::store::{Commit, Store, StoreError, Verdict};

/// How long an entry may wait for others.
const FLUSH_EVERY: Duration = Duration::from_millis(5);
/// How long the writer waits before it tries again to write what could not be written.
const RETRY_EVERY: Duration = Duration::from_millis(50);
/// Commits in one database transaction: bounds how long the first waits for the last.
const BATCH_COMMITS_MAX: usize = 1024;
/// Entries in one database transaction.
const BATCH_ENTRIES_MAX: usize = 16 * 1024;

pub(crate) struct Writer {
    pub(crate) log: Arc<Log>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) observers: Observers,
    pub(crate) host: HostId,
    pub(crate) space_bytes_max: u64,
}

impl Writer {
    pub(crate) fn start(self) -> std::io::Result<()> {
        thread::Builder::new().name("estop-log".into()).spawn(move || self.serve())?;
        Ok(())
    }

    fn serve(self) {
        let _ = self.log.writer.set(thread::current());
        let mut unwritten: Vec<Entry> = Vec::new();
        let mut waiting: Vec<Flush> = Vec::new();
        // Calls that run and whose start has an entry of its own.
        let mut started: HashSet<CallId> = HashSet::new();
        loop {
            // Read before the queues: what was recorded before the stop is then still found in them. In the same way
            // whoever waits is taken before the records that it waits for.
            let stopping = self.log.stop.load(Ordering::Acquire);
            waiting.extend(iter::from_fn(|| self.log.flushes.pop()).take(FLUSHES_MAX));
            let jobs: Vec<Job> = iter::from_fn(|| self.log.commits.pop()).take(BATCH_COMMITS_MAX).collect();
            let all_taken = self.take_records(&mut unwritten, &mut started);
            if jobs.is_empty() && unwritten.is_empty() && waiting.is_empty() {
                if stopping {
                    return;
                }
                self.rest();
                continue;
            }
            let written = self.write(&jobs, &mut unwritten);
            if all_taken || written.is_err() {
                for done in waiting.drain(..) {
                    // Whoever waited may have gone away.
                    let _ = done.send(written.clone());
                }
            }
            if written.is_err() {
                if stopping {
                    return;
                }
                thread::park_timeout(RETRY_EVERY);
            } else if all_taken && self.log.commits.is_empty() {
                thread::park_timeout(FLUSH_EVERY);
            }
        }
    }

    /// Waits without a time-out, unless something came meanwhile.
    fn rest(&self) {
        self.log.asleep.store(true, Ordering::SeqCst);
        let empty = self.log.commits.is_empty() && self.log.records.is_empty() && self.log.flushes.is_empty();
        if empty && !self.log.stop.load(Ordering::SeqCst) {
            thread::park();
        }
        self.log.asleep.store(false, Ordering::SeqCst);
        // The first entry after a rest waits for company like any other.
        if self.log.commits.is_empty() && self.log.flushes.is_empty() && !self.log.stop.load(Ordering::SeqCst) {
            thread::park_timeout(FLUSH_EVERY);
        }
    }

    /// Turns what was recorded into entries, as far as there is room; says whether there was.
    fn take_records(&self, entries: &mut Vec<Entry>, started: &mut HashSet<CallId>) -> bool {
        let room = BATCH_ENTRIES_MAX.saturating_sub(entries.len());
        let records: Vec<(u64, Record)> = iter::from_fn(|| self.log.records.pop()).take(room).collect();
        let all_taken = records.len() < room;
        for (at_ns, record) in records {
            let kind = match record {
                Record::Started(call) => {
                    // If it has ended, the entry of its end tells both.
                    let Some(call) = call.upgrade().filter(|call| !call.is_released()) else { continue };
                    started.insert(call.id);
                    EntryKind::started(&call)
                }
                Record::Ended(mut kind) => {
                    if let EntryKind::End(end) = &mut kind {
                        end.with_start &= !started.remove(&end.call);
                    }
                    kind
                }
                Record::Interrupted { delivered, reached, calls } => EntryKind::interrupted(&delivered, reached, calls),
            };
            entries.push(Entry::new(at_ns, self.host, kind));
        }
        if all_taken {
            let lost = self.log.lost.swap(0, Ordering::AcqRel);
            if lost > 0 {
                entries.push(Entry::new((self.log.wall_ns)(), self.host, EntryKind::Lost { entries: lost }));
            }
        }
        all_taken
    }

    fn show(&self, entry: &Entry) {
        entry.trace();
        self.observers.entry(entry);
    }

    /// One batch. What could not be written stays in `entries` and is tried again.
    fn write(&self, jobs: &[Job], entries: &mut Vec<Entry>) -> Result<(), StoreError> {
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
                space: &job.space,
                reads: &job.reads,
                writes: &job.writes,
                space_bytes_max: self.space_bytes_max,
                entry: Entry::new((self.log.wall_ns)(), self.host, EntryKind::committed(&job.call)),
                decide,
            })
            .collect();
        // A store that panics or forgets a commit may not leave calls waiting for ever.
        let written = catch_unwind(AssertUnwindSafe(|| self.store.write(&mut commits, entries)))
            .unwrap_or_else(|_| Err(StoreError::Io("it panicked".into())))
            .and_then(|verdicts| {
                let complete = verdicts.len() == jobs.len();
                if complete { Ok(verdicts) } else { Err(StoreError::Io("it forgot a commit".into())) }
            });
        let failed_before = self.log.failing.swap(written.is_err(), Ordering::AcqRel);
        match written {
            Ok(verdicts) => {
                for ((job, commit), verdict) in jobs.iter().zip(&commits).zip(verdicts) {
                    if matches!(verdict, Verdict::Applied) {
                        self.show(&commit.entry);
                        job.call.commits.durable();
                        resolve(job, Ticket::Durable, verdict);
                    } else {
                        resolve(job, Ticket::None, verdict);
                    }
                }
                entries.drain(..).for_each(|entry| self.show(&entry));
                Ok(())
            }
            Err(error) => {
                if !failed_before {
                    tracing::error!(%error, "the log cannot be written: new calls are refused until it can");
                }
                for (job, decided) in jobs.iter().zip(&decided) {
                    let ticket = if decided.get() { Ticket::Failed } else { Ticket::None };
                    resolve(job, ticket, Verdict::Refused(error.clone()));
                }
                Err(error)
            }
        }
    }
}

/// The verdict is there before the ticket says so.
fn resolve(job: &Job, ticket: Ticket, verdict: Verdict) {
    job.call.set_verdict(verdict);
    job.call.gate.resolve(ticket);
    job.call.wake();
}
