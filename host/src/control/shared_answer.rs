//! One answer for all who ask the same at the same time.
//!
//! Invariants:
//! - An answer is worked out after it was asked for.
//! - However many ask, working it out takes at most one part in [`REST`] + 1 of the thread's time: the rest is for whoever
//!   wants to stop something.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// For how many times as long as it took, an answer is not worked out anew.
const REST: u32 = 2;
/// And for how long at most: whoever asks is answered within half a second.
const REST_MAX: Duration = Duration::from_millis(100);

/// By one thread, for all its connections.
pub(super) struct SharedAnswer {
    asked: AtomicU64,
    last: Mutex<Last>,
}

struct Last {
    /// Who had asked when it was begun.
    covers: u64,
    text: Bytes,
    rest_until: Instant,
}

impl SharedAnswer {
    pub(super) fn new() -> Self {
        let last = Last { covers: 0, text: Bytes::new(), rest_until: Instant::now() };
        Self { asked: AtomicU64::new(0), last: Mutex::new(last) }
    }

    /// Worked out by whoever comes first after the last one, for all who have asked until it is begun.
    pub(super) async fn get<E>(&self, work_out: impl FnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        let turn = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut last = self.last.lock().await;
        if last.covers < turn {
            sleep_until(last.rest_until).await;
            let covers = self.asked.load(Ordering::Acquire);
            let began = Instant::now();
            let text = work_out()?;
            let rest_until = Instant::now() + (began.elapsed() * REST).min(REST_MAX);
            *last = Last { covers, text, rest_until };
        }
        Ok(last.text.clone())
    }
}
