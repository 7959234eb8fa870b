//! Signs of life of a thread.
//!
//! Invariant: in real time, whatever clock an embedder gives its host: that one may stand still.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Threads that rest are woken this often, to show that they would be.
pub(crate) const BEAT_EVERY: Duration = Duration::from_millis(500);

/// Left by one thread, looked at by others.
pub(crate) struct Heartbeat {
    began: Instant,
    /// Since then.
    beat_ms: AtomicU64,
}

impl Heartbeat {
    /// The first beat.
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), beat_ms: AtomicU64::new(0) }
    }

    /// The thread is alive now.
    pub(crate) fn beat(&self) {
        let beat = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beat_ms.store(beat, Ordering::Release);
    }

    /// Since the last beat.
    pub(crate) fn age(&self) -> Duration {
        let beat = Duration::from_millis(self.beat_ms.load(Ordering::Acquire));
        self.began.elapsed().saturating_sub(beat)
    }
}
