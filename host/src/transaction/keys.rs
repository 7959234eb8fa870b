//! The keys that a transaction has read and written, in every space that it uses, and the transactions nested in it.
//!
//! A call and those that it invokes share one of these. A nested transaction is a level: it sees what those before it have
//! written, and remembers what was there before it wrote. Ending it forgets that, or puts it back.
//!
//! Invariants:
//! - Only the innermost level is written to; a level is ended before the one that it is in goes on.
//! - Reads are never taken back: also of a level that has failed, because whoever invoked it knows that it has.
//! - Limits count over all levels and spaces together.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Size, StateError, StateLimits};
use crate::store::{Key, Listing, Part, Read, Space, Versioned, Write};

/// What a key was given: nothing, or to be removed or set.
type Written = Option<Option<Arc<[u8]>>>;

/// See the module's documentation.
pub(crate) struct Keys {
    limits: Arc<StateLimits>,
    spaces: BTreeMap<Space, InSpace>,
    read_bytes: u64,
    /// Keys in the listings, and the listings themselves.
    listed: usize,
    size: Size,
    /// What the writes count against the limit.
    charged_bytes: u64,
    levels: Vec<Level>,
}

#[derive(Default)]
struct InSpace {
    reads: HashMap<Key, Versioned>,
    listings: HashMap<Arc<str>, Listing>,
    writes: BTreeMap<Key, Option<Arc<[u8]>>>,
}

/// A nested transaction. What it remembers is bounded as what it writes is.
#[derive(Default)]
struct Level {
    before: HashMap<(Space, Key), Written>,
    size: Size,
}

impl Keys {
    pub(super) fn new(limits: Arc<StateLimits>) -> Self {
        Self {
            limits,
            spaces: BTreeMap::new(),
            read_bytes: 0,
            listed: 0,
            size: Size::default(),
            charged_bytes: 0,
            levels: Vec::new(),
        }
    }

    /// From here on a nested transaction writes.
    pub(super) fn begin(&mut self) {
        self.levels.push(Level::default());
    }

    /// The innermost nested transaction is over. If it is not kept, it has written nothing.
    pub(super) fn end(&mut self, is_kept: bool) {
        let Some(level) = self.levels.pop() else { return };
        if !is_kept {
            for ((space, key), before) in level.before {
                self.put(&space, key, before);
            }
            return;
        }
        let Some(mut outer) = self.levels.pop() else { return };
        for ((space, key), before) in level.before {
            outer.size = outer.size + written(&key, &self.value(&space, &key));
            match outer.before.entry((space, key)) {
                Entry::Vacant(entry) => drop(entry.insert(before)),
                Entry::Occupied(entry) => outer.size = less(outer.size, written(&entry.key().1, &before)),
            }
        }
        self.levels.push(outer);
    }

    /// What the innermost level has written; without one, everything.
    pub(super) fn size(&self) -> Size {
        self.levels.last().map_or(self.size, |level| level.size)
    }

    /// What the key is to this transaction, if it has written or read it. If not, there is room for one more.
    pub(super) fn known(&self, space: &Space, key: &Key) -> Result<Option<Option<Arc<[u8]>>>, StateError> {
        if let Some(known) = self.spaces.get(space) {
            if let Some(value) = known.writes.get(key) {
                return Ok(Some(value.clone()));
            }
            if let Some((_, value)) = known.reads.get(key) {
                return Ok(Some(value.clone()));
            }
        }
        self.room().map(|_| None)
    }

    pub(super) fn was_read(&mut self, space: &Space, key: Key, read: Versioned) -> Result<(), StateError> {
        let read_bytes = self.read_bytes + key.charge(read.1.as_deref().map(<[u8]>::len));
        if read_bytes > self.limits.read_bytes_max {
            return Err(StateError::TooManyBytesRead(self.limits.read_bytes_max));
        }
        self.read_bytes = read_bytes;
        self.space(space).reads.insert(key, read);
        Ok(())
    }

    pub(super) fn set(&mut self, space: &Space, key: Key, value: Option<Arc<[u8]>>) -> Result<(), StateError> {
        let old = self.value(space, &key);
        if old.is_none() {
            self.room()?;
        }
        let new = Some(value);
        if self.charged_bytes - charge(&key, &old) + charge(&key, &new) > self.limits.write_bytes_max {
            return Err(StateError::TooManyBytes(self.limits.write_bytes_max));
        }
        if let Some(level) = self.levels.last_mut() {
            level.size = level.size + written(&key, &new);
            match level.before.entry((space.clone(), key.clone())) {
                Entry::Vacant(entry) => drop(entry.insert(old)),
                Entry::Occupied(_) => level.size = less(level.size, written(&key, &old)),
            }
        }
        self.put(space, key, new);
        Ok(())
    }

    /// How many more keys a listing may have, unless the bucket was listed already.
    pub(super) fn room_to_list(&self, space: &Space, bucket: &Arc<str>) -> Result<Option<usize>, StateError> {
        let is_listed = self.spaces.get(space).is_some_and(|known| known.listings.contains_key(bucket));
        if is_listed { Ok(None) } else { self.room().map(Some) }
    }

    pub(super) fn was_listed(&mut self, space: &Space, bucket: &Arc<str>, listing: Listing) {
        self.listed += 1 + listing.keys.len();
        self.space(space).listings.insert(Arc::clone(bucket), listing);
    }

    /// Up to `keys_max` keys after `after`, in order, of a bucket that was listed; and whether there are more.
    pub(super) fn page(
        &self,
        space: &Space,
        bucket: &Arc<str>,
        after: Option<&str>,
        keys_max: usize,
    ) -> (Vec<String>, bool) {
        let Some(known) = self.spaces.get(space) else { return (Vec::new(), false) };
        let listed = known.listings.get(bucket).map(|listing| listing.keys.as_slice()).unwrap_or_default();
        let begins = listed.partition_point(|key| after.is_some_and(|after| **key <= *after));
        let mut committed = listed[begins..].iter().map(|key| &**key).peekable();
        let from = Key { bucket: Arc::clone(bucket), key: after.unwrap_or_default().into() };
        let written = known.writes.range(&from..).take_while(|(key, _)| key.bucket == *bucket);
        let mut written = written
            .map(|(key, value)| (&*key.key, value.is_some()))
            .filter(|(key, _)| after.is_none_or(|after| *key > after))
            .peekable();

        // Both are in order, and what this transaction wrote stands over what was committed.
        let mut next = || loop {
            let key = match (committed.peek().copied(), written.peek().copied()) {
                (Some(old), Some((new, _))) if old < new => committed.next()?,
                (_, Some((new, stays))) => {
                    written.next();
                    committed.next_if_eq(&new);
                    if !stays {
                        continue;
                    }
                    new
                }
                (Some(_), None) => committed.next()?,
                (None, None) => return None,
            };
            return Some(key);
        };
        let page = std::iter::from_fn(&mut next).take(keys_max).map(str::to_owned).collect();
        (page, next().is_some())
    }

    /// Everything, to be committed; and begins anew. No nested transaction may be open.
    pub(super) fn take(&mut self) -> Vec<Part> {
        debug_assert!(self.levels.is_empty(), "a commit in the middle of a nested transaction");
        (self.read_bytes, self.listed, self.charged_bytes) = (0, 0, 0);
        self.size = Size::default();
        let parts = std::mem::take(&mut self.spaces).into_iter().map(|(space, known)| {
            let keys = known.reads.into_iter().map(|(key, (version, _))| Read::Key(key, version));
            let listings = known.listings.into_iter().map(|(bucket, listing)| Read::Listing(bucket, listing.version));
            let reads = keys.chain(listings).collect();
            let writes = known.writes.into_iter().map(|(key, value)| Write { key, value }).collect();
            Part { space, reads, writes }
        });
        parts.filter(|part| !part.reads.is_empty() || !part.writes.is_empty()).collect()
    }

    fn space(&mut self, space: &Space) -> &mut InSpace {
        // Copies two pointers.
        self.spaces.entry(space.clone()).or_default()
    }

    fn value(&self, space: &Space, key: &Key) -> Written {
        self.spaces.get(space)?.writes.get(key).cloned()
    }

    fn put(&mut self, space: &Space, key: Key, new: Written) {
        let old = self.value(space, &key);
        self.charged_bytes = self.charged_bytes - charge(&key, &old) + charge(&key, &new);
        self.size = less(self.size + written(&key, &new), written(&key, &old));
        let writes = &mut self.space(space).writes;
        match new {
            Some(value) => drop(writes.insert(key, value)),
            None => drop(writes.remove(&key)),
        }
    }

    /// How many more keys may be touched; at least one.
    fn room(&self) -> Result<usize, StateError> {
        let touched = self.spaces.values().map(|known| known.reads.len() + known.writes.len()).sum::<usize>();
        let room = self.limits.keys_max.saturating_sub(touched + self.listed);
        if room == 0 { Err(StateError::TooManyKeys(self.limits.keys_max)) } else { Ok(room) }
    }
}

fn written(key: &Key, value: &Written) -> Size {
    let Some(value) = value else { return Size::default() };
    let value_bytes = value.as_ref().map_or(0, |value| value.len());
    Size { writes: 1, bytes: (key.key.len() + value_bytes) as u64, ..Size::default() }
}

fn charge(key: &Key, value: &Written) -> u64 {
    value.as_ref().map_or(0, |value| key.charge(value.as_deref().map(<[u8]>::len)))
}

fn less(size: Size, gone: Size) -> Size {
    Size { writes: size.writes - gone.writes, bytes: size.bytes - gone.bytes, ..size }
}

#[cfg(test)]
mod tests;
