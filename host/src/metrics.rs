//! What is counted. `control/metrics.rs` writes it down for whoever asks.
//!
//! Invariant: counting is a few relaxed additions, at the places where things are recorded: no lock, no allocation, no
//! I/O. So interrupts and ends of calls are counted where they happen, also while the log cannot be written.

use std::sync::atomic::{AtomicU64, Ordering};
#[cfg(feature = "control")]
use std::time::Duration;

use crate::interrupt::{Cause, Delivered};
use crate::log::{EndEntry, EntryKind, Record};
use crate::store::Verdict;
use crate::transaction::Size;

/// How a call can end that nobody stopped, in the words of the log.
pub(crate) const STATUSES: [&str; 6] = ["completed", "failed", "invalid-input", "conflict", "trapped", "refused"];
/// The last of them: a refusal has an entry of its own kind.
const REFUSED: usize = STATUSES.len() - 1;

/// Upper bounds of the buckets of a latency, in nanoseconds: 1 µs to 10 s.
pub(crate) const BOUNDS_NS: [u64; 22] = {
    let mut bounds = [0; 22];
    let (mut at, mut decade) = (0, 1_000);
    while at < bounds.len() {
        bounds[at] = decade / 10 * [10, 25, 50][at % 3];
        if at % 3 == 2 {
            decade *= 10;
        }
        at += 1;
    }
    bounds
};

/// What became of a transaction that was handed to the committer.
#[derive(Clone, Copy)]
pub(crate) enum Committed {
    /// It is durable.
    Durable,
    /// Something that it had read was changed meanwhile.
    Conflict,
    /// An interrupt withdrew it.
    Withdrawn,
    /// The store did not take it; nothing of it was applied.
    Refused,
    /// The store could not say whether it is durable.
    Unknown,
}

impl Committed {
    /// All of them with their words, in the order in which they are counted.
    pub(crate) const WORDS: [&str; 5] = ["durable", "conflict", "withdrawn", "refused", "unknown"];
}

impl From<&Verdict> for Committed {
    fn from(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Applied => Committed::Durable,
            Verdict::Withdrawn => Committed::Withdrawn,
            Verdict::Conflict(_) => Committed::Conflict,
            Verdict::Refused(_) => Committed::Refused,
        }
    }
}

/// Since the host began.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) ended: [Counter; STATUSES.len()],
    pub(crate) stopped: [Counter; Cause::ALL.len()],
    pub(crate) interrupts: [Counter; Cause::ALL.len()],
    pub(crate) halted: Histogram,
    pub(crate) released: Histogram,
    pub(crate) fuel: Counter,
    pub(crate) commits: [Counter; Committed::WORDS.len()],
    pub(crate) committed: Sizes,
    pub(crate) discarded: Sizes,
    /// Entries for which there was no room in the log's queue.
    pub(crate) lost: Counter,
}

impl Counts {
    /// Something is handed to the log.
    pub(crate) fn recorded(&self, record: &Record) {
        match record {
            Record::Ended(EntryKind::End(end)) => self.ended(end),
            Record::Ended(EntryKind::Refusal { .. }) => self.ended[REFUSED].add(1),
            _ => {}
        }
    }

    fn ended(&self, end: &EndEntry) {
        match end.cause {
            Some(cause) => self.stopped[cause as usize].add(1),
            None => {
                if let Some(status) = STATUSES.iter().position(|status| *status == end.status) {
                    self.ended[status].add(1);
                }
            }
        }
        if let (Some(halted_us), Some(released_us)) = (end.halted_us, end.released_us) {
            self.halted.observe(nanos(halted_us));
            self.released.observe(nanos(released_us));
        }
        if end.fuel > 0 {
            self.fuel.add(end.fuel);
        }
        self.discarded.add(end.discarded);
    }

    /// Somebody stops something.
    pub(crate) fn interrupted(&self, delivered: &Delivered) {
        self.interrupts[delivered.interrupt.cause as usize].add(1);
    }

    /// The committer is done with a transaction of this size.
    pub(crate) fn committed(&self, committed: Committed, size: Size) {
        self.commits[committed as usize].add(1);
        if matches!(committed, Committed::Durable) {
            self.committed.add(size);
        }
    }
}

/// From what an entry says, which is exact to a tenth of a microsecond.
fn nanos(micros: f64) -> u64 {
    // A cast of a float saturates.
    (micros * 1_000.0).round() as u64
}

/// Only grows.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    #[cfg(feature = "control")]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Of what was written.
#[derive(Default)]
pub(crate) struct Sizes {
    pub(crate) writes: Counter,
    pub(crate) bytes: Counter,
}

impl Sizes {
    fn add(&self, size: Size) {
        if size != Size::default() {
            self.writes.add(size.writes);
            self.bytes.add(size.bytes);
        }
    }
}

/// Latencies, by the fixed bounds of [`BOUNDS_NS`].
#[derive(Default)]
pub(crate) struct Histogram {
    /// The last one is for what is above all bounds.
    buckets: [Counter; BOUNDS_NS.len() + 1],
    sum_ns: Counter,
}

impl Histogram {
    fn observe(&self, ns: u64) {
        self.buckets[BOUNDS_NS.partition_point(|bound| *bound < ns)].add(1);
        self.sum_ns.add(ns);
    }

    /// How many are within each bound, and all of them last.
    #[cfg(feature = "control")]
    pub(crate) fn cumulative(&self) -> impl Iterator<Item = u64> {
        self.buckets.iter().scan(0, |sum, bucket| {
            *sum += bucket.get();
            Some(*sum)
        })
    }

    #[cfg(feature = "control")]
    pub(crate) fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buckets_go_from_a_microsecond_to_ten_seconds() {
        assert_eq!((BOUNDS_NS[0], BOUNDS_NS[1], BOUNDS_NS[2], BOUNDS_NS[3]), (1_000, 2_500, 5_000, 10_000));
        assert_eq!(BOUNDS_NS.last(), Some(&10_000_000_000));
        assert!(BOUNDS_NS.is_sorted());
    }

    /// A bound is within its own bucket; what is above all of them is counted as well.
    #[test]
    fn a_latency_falls_into_the_bucket_that_says_at_most() {
        let histogram = Histogram::default();
        for ns in [0, 1_000, 1_001, 10_000_000_000, u64::from(u32::MAX) * 60] {
            histogram.observe(ns);
        }
        let cumulative: Vec<u64> = histogram.cumulative().collect();
        assert_eq!((cumulative[0], cumulative[1]), (2, 3));
        assert_eq!(cumulative[BOUNDS_NS.len() - 2..], [3, 4, 5]);
    }

    #[test]
    fn every_cause_has_its_own_place() {
        assert!(Cause::ALL.iter().enumerate().all(|(at, cause)| *cause as usize == at));
    }
}
