//! A store in memory: for tests, for tools that keep nothing, and as the plainest statement of the contract.
//!
//! Invariant: `inner` changes only in `write`, a whole commit with its entry at a time and under its lock.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures_util::FutureExt;
use futures_util::future::{self, BoxFuture};

use super::{Commit, Key, Listing, Part, Read, Space, Store, StoreError, Verdict, Version, Versioned};
use crate::log::Entry;

/// The log keeps this many entries; older ones are dropped, since nothing here outlives the process anyway.
pub const ENTRIES_MAX: usize = 1 << 16;

/// See the module's documentation.
#[derive(Default)]
pub struct Memory {
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    sequence: u64,
    spaces: HashMap<Space, SpaceState>,
    log: VecDeque<Entry>,
    log_dropped: u64,
}

#[derive(Default)]
struct SpaceState {
    bytes: u64,
    buckets: HashMap<Arc<str>, Bucket>,
}

#[derive(Default)]
struct Bucket {
    /// When its set of keys last changed.
    version: Version,
    keys: BTreeMap<Arc<str>, (Version, Arc<[u8]>)>,
}

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn bucket(&self, space: &Space, name: &str) -> Option<&Bucket> {
        self.spaces.get(space)?.buckets.get(name)
    }

    fn version(&self, space: &Space, key: &Key) -> Version {
        let found = self.bucket(space, &key.bucket).and_then(|bucket| bucket.keys.get(&*key.key));
        found.map_or(Version::ABSENT, |(version, _)| *version)
    }

    /// What has changed since it was read, if anything.
    fn changed(&self, part: &Part) -> Option<String> {
        part.reads.iter().find_map(|read| match read {
            Read::Key(key, version) => {
                (self.version(&part.space, key) != *version).then(|| format!("{key} was changed by someone else"))
            }
            Read::Listing(name, version) => {
                let now = self.bucket(&part.space, name).map_or(Version::ABSENT, |bucket| bucket.version);
                (now != *version).then(|| format!("keys of bucket `{name}` were added or removed by someone else"))
            }
        })
    }

    fn bytes(&self, space: &Space) -> u64 {
        self.spaces.get(space).map_or(0, |state| state.bytes)
    }

    fn bytes_after(&self, part: &Part) -> u64 {
        part.writes.iter().fold(self.bytes(&part.space), |bytes, write| {
            let old = self.bucket(&part.space, &write.key.bucket).and_then(|bucket| bucket.keys.get(&*write.key.key));
            let old = old.map_or(0, |(_, value)| write.key.charge(Some(value.len())));
            let new = write.value.as_ref().map_or(0, |value| write.key.charge(Some(value.len())));
            (bytes + new).saturating_sub(old)
        })
    }

    /// Why a commit may not be applied, if it may not.
    fn refuses(&self, commit: &Commit<'_>) -> Option<Verdict> {
        if let Some(what) = commit.parts.iter().find_map(|part| self.changed(part)) {
            return Some(Verdict::Conflict(what));
        }
        commit.parts.iter().find_map(|part| {
            let bytes = self.bytes_after(part);
            (bytes > commit.space_bytes_max && bytes > self.bytes(&part.space)).then(|| {
                Verdict::Refused(StoreError::Quota {
                    agent: Arc::clone(&part.space.agent),
                    component: Arc::clone(&part.space.component),
                    bytes,
                    bytes_max: commit.space_bytes_max,
                })
            })
        })
    }

    fn apply(&mut self, part: &Part) {
        let bytes = self.bytes_after(part);
        let state = self.spaces.entry(part.space.clone()).or_default();
        state.bytes = bytes;
        for write in &part.writes {
            self.sequence += 1;
            let version = Version(self.sequence);
            let Some(value) = &write.value else {
                if let Some(bucket) = state.buckets.get_mut(&*write.key.bucket)
                    && bucket.keys.remove(&*write.key.key).is_some()
                {
                    bucket.version = version;
                    if bucket.keys.is_empty() {
                        // As if it had never been: nothing to keep, and an empty listing is like any other.
                        state.buckets.remove(&*write.key.bucket);
                    }
                }
                continue;
            };
            let bucket = state.buckets.entry(Arc::clone(&write.key.bucket)).or_default();
            if bucket.keys.insert(Arc::clone(&write.key.key), (version, Arc::clone(value))).is_none() {
                bucket.version = version;
            }
        }
        if state.buckets.is_empty() {
            self.spaces.remove(&part.space);
        }
    }

    fn append(&mut self, entry: Entry) {
        if self.log.len() >= ENTRIES_MAX {
            self.log.pop_front();
            self.log_dropped += 1;
        }
        self.log.push_back(entry);
    }
}

impl Store for Memory {
    fn get<'a>(&'a self, space: &'a Space, key: &'a Key) -> BoxFuture<'a, Result<Versioned, StoreError>> {
        let inner = self.read();
        let found = inner.bucket(space, &key.bucket).and_then(|bucket| bucket.keys.get(&*key.key));
        let found = found.map_or((Version::ABSENT, None), |(version, value)| (*version, Some(Arc::clone(value))));
        future::ready(Ok(found)).boxed()
    }

    fn list<'a>(
        &'a self,
        space: &'a Space,
        bucket: &'a Arc<str>,
        keys_max: usize,
    ) -> BoxFuture<'a, Result<Listing, StoreError>> {
        let inner = self.read();
        let listing = match inner.bucket(space, bucket) {
            None => Ok(Listing::default()),
            Some(found) if found.keys.len() > keys_max => {
                Err(StoreError::TooManyKeys { bucket: Arc::clone(bucket), keys_max })
            }
            Some(found) => Ok(Listing { version: found.version, keys: found.keys.keys().cloned().collect() }),
        };
        future::ready(listing).boxed()
    }

    fn write(&self, commits: &mut [Commit<'_>], entries: &[Entry]) -> Result<Vec<Verdict>, StoreError> {
        let mut inner = self.lock();
        for entry in entries {
            inner.append(entry.clone());
        }
        drop(inner);
        let mut verdicts = Vec::with_capacity(commits.len());
        for commit in commits {
            // For each anew: readers of other calls wait for one commit at most.
            let mut inner = self.lock();
            verdicts.push(if let Some(verdict) = inner.refuses(commit) {
                verdict
            } else if !(commit.decide)() {
                Verdict::Withdrawn
            } else {
                commit.parts.iter().for_each(|part| inner.apply(part));
                inner.append(commit.entry.clone());
                Verdict::Applied
            });
        }
        Ok(verdicts)
    }

    fn entries(&self, from: u64, count_max: usize) -> Result<Vec<Entry>, StoreError> {
        let inner = self.read();
        let skip = usize::try_from(from.saturating_sub(inner.log_dropped)).unwrap_or(usize::MAX);
        Ok(inner.log.iter().skip(skip).take(count_max).cloned().collect())
    }
}
