//! Changes of a call that another one invokes: kept, or taken back.
//!
//! Taking back is putting in place what was there before. That is a copy of the tree, without what is in files: blocks are
//! shared, and a block in the spill file stays as it is for as long as a copy may refer to it.
//!
//! Invariants:
//! - What was read stays read, also by a call that has failed: whoever invoked it knows that it has.
//! - Whoever still works for a call that was dropped finds nothing of it here: nodes, slots and the age never begin again.

use std::path::PathBuf;
use std::sync::Arc;

use super::Overlay;
use crate::workspace::base::{Listed, Stamp};
use crate::workspace::node::Kind;

/// What the overlay was before a call that another one invokes.
#[derive(Debug)]
pub(in crate::workspace) struct Before {
    is_read_only: bool,
    protected: u64,
    /// `None`: that call may only read.
    copy: Option<Box<Overlay>>,
}

type Reads = Vec<(PathBuf, Option<Stamp>)>;
type Listings = Vec<(PathBuf, Arc<Listed>)>;

impl Overlay {
    /// A nested call begins.
    pub(in crate::workspace) fn begin(&mut self, is_read_only: bool) -> Before {
        let before = Before {
            is_read_only: self.is_read_only,
            protected: self.protected,
            copy: (!self.is_read_only && !is_read_only).then(|| Box::new(self.clone())),
        };
        self.is_read_only |= is_read_only;
        if before.copy.is_some() {
            self.protected = self.slots;
        }
        before
    }

    /// That call is released, with everything that it had open.
    pub(in crate::workspace) fn end(&mut self, before: Before, is_kept: bool) {
        let Before { is_read_only, protected, copy } = before;
        match copy {
            Some(copy) if !is_kept => self.restore(*copy),
            _ => {
                self.protected = protected;
                let held_back = std::mem::take(&mut self.held_back);
                let (held_back, free) = held_back.into_iter().partition(|slot| slot.number <= protected);
                self.held_back = held_back;
                for slot in free {
                    self.unused_bytes = self.unused_bytes.saturating_sub(u64::from(slot.bytes));
                    self.free.push(slot);
                }
            }
        }
        self.is_read_only = is_read_only;
    }

    fn restore(&mut self, mut before: Overlay) {
        let (reads, listings) = self.reads_since(&before);
        before.entries +=
            reads.len() + listings.iter().map(|(_, listed)| listed.len() / super::NAME_LISTED).sum::<usize>();
        before.seen.extend(reads);
        before.seen_listings.extend(listings);
        before.nodes.go_on_from(&self.nodes);
        // Somebody may still be writing where there was room: nothing of that is used again.
        let freed: u64 = before.free.drain(..).map(|slot| u64::from(slot.bytes)).sum();
        before.unused_bytes += freed + (self.spill_end - before.spill_end);
        (before.slots, before.spill_end, before.age) = (self.slots, self.spill_end, self.age + 1);
        before.lost = before.lost.take().or(self.lost.take());
        *self = before;
    }

    /// What was read of the base and was not known before.
    fn reads_since(&self, before: &Overlay) -> (Reads, Listings) {
        let mut reads: Vec<_> = self.seen.get(before.seen.len()..).unwrap_or_default().to_vec();
        let mut listings: Vec<_> = self.seen_listings.get(before.seen_listings.len()..).unwrap_or_default().to_vec();
        for (id, node) in self.nodes.all() {
            let (Kind::Directory(directory), Some(origin)) = (&node.kind, &node.origin) else { continue };
            let known = before.nodes.get(id).and_then(|node| match &node.kind {
                Kind::Directory(known) => Some(known),
                _ => None,
            });
            let is_new = |name| known.is_none_or(|known| !known.entries.contains_key(name));
            let new = directory.entries.iter().filter(|(name, _)| is_new(*name));
            reads.extend(new.map(|(name, entry)| (origin.path.join(name), entry.was)));
            if known.is_none_or(|known| known.listed.is_none()) {
                listings.extend(directory.listed.as_ref().map(|listed| (origin.path.clone(), Arc::clone(listed))));
            }
        }
        (reads, listings)
    }
}
