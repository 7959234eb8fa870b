//! A store whose commits and reads take as long as the test wants.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use estop::log::Entry;
use estop::store::memory::Memory;
use estop::store::{Commit, Key, Listing, Space, Store, StoreError, Verdict, Versioned};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::counter::Counter;

/// The memory store behind two doors; clones share both. Open at first.
#[derive(Clone)]
pub struct Held {
    inner: Arc<Inner>,
}

struct Inner {
    memory: Memory,
    commits: Mutex<Hold>,
    released: Condvar,
    held: Counter,
    reads_held: watch::Sender<bool>,
    reads: Counter,
}

#[derive(Clone, Copy, PartialEq)]
enum Hold {
    Nothing,
    Undecided,
    Decided,
}

impl Default for Held {
    fn default() -> Self {
        Self::new()
    }
}

impl Held {
    /// An empty store that holds nothing back.
    pub fn new() -> Self {
        let inner = Inner {
            memory: Memory::new(),
            commits: Mutex::new(Hold::Nothing),
            released: Condvar::new(),
            held: Counter::new(),
            reads_held: watch::Sender::new(false),
            reads: Counter::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// From now on commits stay in `write` before they are validated: their tickets are queued.
    pub fn hold_undecided(&self) {
        self.set(Hold::Undecided);
    }

    /// From now on commits stay in `write` after they are decided and applied: their I/O does not end.
    pub fn hold_decided(&self) {
        self.set(Hold::Decided);
    }

    /// From now on reads are answered when they are released, and not before.
    pub fn hold_reads(&self) {
        self.inner.reads_held.send_replace(true);
    }

    /// Lets everything go.
    pub fn release(&self) {
        self.set(Hold::Nothing);
        self.inner.reads_held.send_replace(false);
    }

    /// Until this many batches with commits have been held, all in all.
    pub async fn holding(&self, times: u64) {
        self.inner.held.reached(times).await;
    }

    /// Until this many reads have begun, all in all.
    pub async fn reading(&self, times: u64) {
        self.inner.reads.reached(times).await;
    }

    /// How many reads have begun, all in all.
    pub fn reads(&self) -> u64 {
        self.inner.reads.get()
    }

    fn set(&self, hold: Hold) {
        *self.inner.commits.lock().unwrap_or_else(PoisonError::into_inner) = hold;
        self.inner.released.notify_all();
    }

    fn wait_at(&self, point: Hold) {
        let mut hold = self.inner.commits.lock().unwrap_or_else(PoisonError::into_inner);
        if *hold == point {
            self.inner.held.add();
        }
        while *hold == point {
            hold = self.inner.released.wait(hold).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Store for Held {
    fn get<'a>(&'a self, space: &'a Space, key: &'a Key) -> BoxFuture<'a, Result<Versioned, StoreError>> {
        let mut held = self.inner.reads_held.subscribe();
        self.inner.reads.add();
        async move {
            // The sender lives as long as the store.
            let _ = held.wait_for(|held| !held).await;
            self.inner.memory.get(space, key).await
        }
        .boxed()
    }

    fn list<'a>(
        &'a self,
        space: &'a Space,
        bucket: &'a Arc<str>,
        keys_max: usize,
    ) -> BoxFuture<'a, Result<Listing, StoreError>> {
        self.inner.memory.list(space, bucket, keys_max)
    }

    fn write(&self, commits: &mut [Commit<'_>], entries: &[Entry]) -> Result<Vec<Verdict>, StoreError> {
        let has_commits = !commits.is_empty();
        if has_commits {
            self.wait_at(Hold::Undecided);
        }
        let verdicts = self.inner.memory.write(commits, entries);
        if has_commits {
            self.wait_at(Hold::Decided);
        }
        verdicts
    }

    fn entries(&self, from: u64, count_max: usize) -> Result<Vec<Entry>, StoreError> {
        self.inner.memory.entries(from, count_max)
    }
}
