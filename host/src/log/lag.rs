//! How far the log is behind what was recorded.
//!
//! Invariant: known without a lock, also while the writer is stuck in the middle of a write.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Entry;
use crate::clock::nanos;

/// Written by whoever has the pen, read by anybody.
#[derive(Default)]
pub(crate) struct Lag {
    /// Entries that were taken from the queue and are not in the store.
    taken: AtomicU64,
    /// Since 1970: the oldest entry that is not in the store was not recorded before this (ns).
    since_ns: AtomicU64,
}

impl Lag {
    /// The first entry was recorded after a rest.
    pub(super) fn begins(&self, at_ns: u64) {
        self.since_ns.store(at_ns, Ordering::Relaxed);
    }

    /// What is in hand, oldest first. Whatever else waits was recorded after `looked_ns`.
    pub(super) fn holds(&self, entries: &[Entry], looked_ns: u64) {
        let oldest = entries.first().and_then(|entry| entry.at.duration_since(std::time::UNIX_EPOCH).ok());
        self.since_ns.store(oldest.map_or(looked_ns, nanos), Ordering::Relaxed);
        self.taken.store(entries.len() as u64, Ordering::Relaxed);
    }

    #[cfg(feature = "control")]
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    #[cfg(feature = "control")]
    pub(super) fn since_ns(&self) -> u64 {
        self.since_ns.load(Ordering::Relaxed)
    }
}
