//! Something that happens in one place and is waited for in another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Counts up; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Counter {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    count: AtomicU64,
    changed: Notify,
}

impl Counter {
    /// Nothing has been counted yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more.
    pub fn add(&self) {
        self.inner.count.fetch_add(1, Ordering::AcqRel);
        self.inner.changed.notify_waiters();
    }

    /// How many there are.
    pub fn get(&self) -> u64 {
        self.inner.count.load(Ordering::Acquire)
    }

    /// Until there are this many.
    pub async fn reached(&self, count: u64) {
        crate::within(async {
            loop {
                let changed = self.inner.changed.notified();
                if self.get() >= count {
                    return;
                }
                changed.await;
            }
        })
        .await;
    }
}
