//! After a commit: the base is what the call sees, so the overlay begins anew, with what is open still open.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Overlay;
use crate::workspace::base::{Base, Wait};
use crate::workspace::node::{Directory, Entry, Kind, Node, NodeId};

impl Overlay {
    /// Reads the base, so not on the thread of a guest. Whether nothing is in the spill file any more.
    pub(in crate::workspace) fn rebase(&mut self, base: &Base) -> bool {
        self.age += 1;
        let paths = self.paths_of_open();
        let mut keep: HashSet<NodeId> = self.nodes.open().into_iter().collect();
        keep.insert(self.root);
        self.nodes.retain(|id| keep.contains(&id));
        (self.seen, self.seen_listings) = (Vec::new(), Vec::new());
        (self.entries, self.changes) = (0, 0);
        self.fresh(self.root, Path::new(""), base);
        keep.remove(&self.root);
        let mut paths: Vec<_> = keep.into_iter().map(|id| (paths.get(&id).cloned(), id)).collect();
        // A directory before what is in it.
        paths.sort();
        for (path, id) in paths {
            match path {
                Some(path) => self.again(id, &path, base),
                // It has no name; what it holds is all there is of it.
                None => self.nameless(id),
            }
        }
        self.count_again()
    }

    /// One path for each that is open and has one.
    fn paths_of_open(&self) -> HashMap<NodeId, PathBuf> {
        let mut paths = HashMap::new();
        let mut left = vec![(self.root, PathBuf::new())];
        while let Some((id, path)) = left.pop() {
            let Some(Node { kind: Kind::Directory(directory), .. }) = self.nodes.get(id) else { continue };
            for (name, entry) in &directory.entries {
                let Some((now, node)) = entry.now.and_then(|now| Some((now, self.nodes.get(now)?))) else { continue };
                let path = path.join(name);
                if node.is_directory() {
                    left.push((now, path.clone()));
                }
                if node.open > 0 {
                    paths.entry(now).or_insert(path);
                }
            }
        }
        paths
    }

    /// What it is in the base now, for those who have it open. Whether it is that.
    fn fresh(&mut self, id: NodeId, path: &Path, base: &Base) -> bool {
        let Some(node) = self.nodes.get_mut(id) else { return false };
        let found = base.look(path, Wait::Allowed).ok().flatten();
        let Some(found) = found.filter(|found| found.stamp.kind() == node.file_type()) else { return false };
        let (open, parent) = (node.open, node.parent);
        *node = Node { open, parent, ..Node::of_base(path.to_owned(), found) };
        if let Kind::File(content) = &mut node.kind {
            // Whatever happens to its name, who has it open can go on reading it.
            let Ok(file): Result<File, _> = base.file(path, &found.stamp, Wait::Allowed) else { return false };
            content.file = Some(Arc::new(file));
        }
        true
    }

    fn again(&mut self, id: NodeId, path: &Path, base: &Base) {
        if !self.fresh(id, path, base) {
            return self.nameless(id);
        }
        // So that whoever follows the path gets to the same node.
        let (mut here, mut at) = (self.root, PathBuf::new());
        let names: Vec<OsString> = path.iter().map(OsString::from).collect();
        for (number, name) in names.iter().enumerate() {
            at.push(name);
            let is_last = number + 1 == names.len();
            let known = self.directory(here).ok().and_then(|directory| directory.entries.get(name)).and_then(|e| e.now);
            let next = match known {
                Some(known) if !is_last => known,
                _ if is_last => id,
                _ => {
                    let Ok(Some(found)) = base.look(&at, Wait::Allowed) else { return };
                    self.nodes.add(Node::of_base(at.clone(), found))
                }
            };
            let was = self.nodes.get(next).and_then(|node| node.origin.as_ref()).map(|origin| origin.stamp);
            let Ok(directory) = self.directory_mut(here) else { return };
            directory.entries.insert(name.clone(), Entry { was, now: Some(next) });
            if let Some(node) = self.nodes.get_mut(next).filter(|node| node.is_directory()) {
                node.parent = Some(here);
            }
            here = next;
        }
    }

    fn nameless(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        node.links = 0;
        match &mut node.kind {
            Kind::Directory(directory) => {
                *directory = Directory::default();
                node.origin = None;
            }
            // Parts of the base's file may still be read, from the file that is open.
            Kind::File(_) | Kind::Link(_) | Kind::Special(_) => {}
        }
    }

    fn count_again(&mut self) -> bool {
        let (mut entries, mut open_files) = (0, 0);
        let mut memory_bytes = 0_i64;
        let mut slots = Vec::new();
        let mut blocks = Vec::new();
        for id in self.nodes.open().into_iter().chain([self.root]) {
            match self.nodes.get(id).map(|node| &node.kind) {
                Some(Kind::File(content)) => {
                    let held = content.held();
                    open_files += usize::from(content.file.is_some());
                    memory_bytes -= held.bytes;
                    slots.extend(held.freed);
                    blocks.extend(content.numbers().map(|number| (id, number)));
                }
                Some(Kind::Directory(directory)) => entries += directory.entries.len(),
                _ => {}
            }
        }
        (self.entries, self.open_files) = (entries, open_files);
        self.memory_bytes = memory_bytes.unsigned_abs();
        self.spilled_bytes = slots.iter().map(|slot| u64::from(slot.bytes)).sum();
        // Somebody may still be writing where there is no block any more: what is free in a file that stays in use is not
        // used again.
        self.free.clear();
        self.held_back.clear();
        self.in_memory = blocks.into();
        if slots.is_empty() {
            (self.spill_end, self.unused_bytes) = (0, 0);
        }
        slots.is_empty()
    }
}
