//! The committer and log writer: the one thread that calls [`Store::write`].
//!
//! It puts the commits of many calls and everything there is to enter into one database transaction. A commit is begun
//! at once; entries alone wait up to [`FLUSH_EVERY`], so that a call's start and end usually become one entry.
//!
//! Invariant: a ticket is resolved exactly once, after its batch, and the counts of the call are right before it is.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Entry, EntryKind, Job, Log, Record};
use crate::gate::Ticket;
use crate::ids::HostId;
use crate::observer::Observers;
use crate::store::{Commit, Store, StoreError, Verdict};

/// How long an entry may wait for others.
const FLUSH_EVERY: Duration = Duration::from_millis(5);
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
        loop {
            // Read before the queues: what was recorded before the stop is then still found in them.
            let stopping = self.log.stop.load(Ordering::Acquire);
            let jobs: Vec<Job> = std::iter::from_fn(|| self.log.commits.pop()).take(BATCH_COMMITS_MAX).collect();
            let waiting = self.take_records(&mut unwritten);
            if jobs.is_empty() && unwritten.is_empty() && waiting.is_empty() {
                if stopping {
                    return;
                }
                self.rest();
                continue;
            }
            let written = self.write(&jobs, &mut unwritten);
            for done in waiting {
                // Whoever waited may have gone away.
                let _ = done.send(written.clone());
            }
            if stopping && written.is_err() {
                return;
            }
            if self.log.commits.is_empty() {
                thread::park_timeout(FLUSH_EVERY);
            }
        }
    }

    /// Waits without a time-out, unless something came meanwhile.
    fn rest(&self) {
        self.log.asleep.store(true, Ordering::SeqCst);
        let empty = self.log.commits.is_empty() && self.log.records.is_empty();
        if empty && !self.log.stop.load(Ordering::SeqCst) {
            thread::park();
        }
        self.log.asleep.store(false, Ordering::Release);
        // The first entry after a rest waits for company like any other.
        if self.log.commits.is_empty() && !self.log.stop.load(Ordering::SeqCst) {
            thread::park_timeout(FLUSH_EVERY);
        }
    }

    /// Turns what was recorded into entries; returns who waits for them.
    fn take_records(&self, entries: &mut Vec<Entry>) -> Vec<oneshot::Sender<Result<(), StoreError>>> {
        let room = BATCH_ENTRIES_MAX.saturating_sub(entries.len());
        let records: Vec<(u64, Record)> = std::iter::from_fn(|| self.log.records.pop()).take(room).collect();
        let mut waiting = Vec::new();
        for (at_ns, record) in records {
            let kind = match record {
                // It has ended, and the entry of its end will tell both.
                Record::Started(call) if call.is_released() => continue,
                Record::Started(call) => {
                    call.start_entered.store(true, Ordering::Release);
                    EntryKind::started(&call)
                }
                Record::Ended(call, outcome) => EntryKind::ended(&call, &outcome),
                Record::Interrupted { delivered, reached, calls } => EntryKind::interrupted(&delivered, reached, calls),
                Record::Flush(done) => {
                    waiting.push(done);
                    continue;
                }
            };
            entries.push(self.entry(at_ns, kind));
        }
        let lost = self.log.lost.swap(0, Ordering::AcqRel);
        if lost > 0 {
            entries.push(self.entry((self.log.wall_ns)(), EntryKind::Lost { entries: lost }));
        }
        waiting
    }

    fn entry(&self, at_ns: u64, kind: EntryKind) -> Entry {
        let entry = Entry::new(at_ns, self.host, kind);
        self.show(&entry);
        entry
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
                    decided.set(job.call.gate.decide(job.last).is_ok());
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
        let written = self.store.write(&mut commits, entries);
        self.log.failing.store(written.is_err(), Ordering::Release);
        match written {
            Ok(verdicts) => {
                entries.clear();
                for ((job, commit), verdict) in jobs.iter().zip(&commits).zip(verdicts) {
                    if matches!(verdict, Verdict::Applied) {
                        self.show(&commit.entry);
                    }
                    resolve(job, verdict);
                }
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "the log cannot be written: new calls are refused");
                for (job, decided) in jobs.iter().zip(&decided) {
                    job.call.set_verdict(Verdict::Refused(error.clone()));
                    job.call.gate.resolve(if decided.get() { Ticket::Failed } else { Ticket::None });
                    job.call.wake();
                }
                Err(error)
            }
        }
    }
}

fn resolve(job: &Job, verdict: Verdict) {
    let ticket = if matches!(verdict, Verdict::Applied) {
        job.call.commits.durable();
        Ticket::Durable
    } else {
        job.call.set_verdict(verdict);
        Ticket::None
    };
    job.call.gate.resolve(ticket);
    job.call.wake();
}
