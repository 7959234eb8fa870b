//! What has been done to the files, and how much of it is durable.
//!
//! A path and the content behind it are recorded apart, as a file system has them: a connection may go on writing to a
//! file that was deleted, and a new file of the same name has nothing of the old one. For each content there is what it is,
//! what the last sync made durable and what came later; for each path, which content it named at the last moment that the
//! directory was surely on disk, and what it has named since.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a disk writes as a whole, in bytes.
pub(crate) const SECTOR_BYTES: usize = 512;

/// The most that is held for one file, in bytes: what it is, what is durable of it and what is pending, together.
pub(crate) const FILE_BYTES_MAX: usize = 512 << 20;

/// How many times one path may be created and deleted without a sync.
pub(crate) const NAMINGS_MAX: usize = 4096;

/// What a pending change takes besides its bytes, in bytes.
const CHANGE_BYTES: usize = size_of::<Change>();

pub(crate) enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Resize(usize),
}

impl Change {
    pub(crate) fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { at, bytes } => overwrite(content, *at, bytes),
            Self::Resize(size) => content.resize(*size, 0),
        }
    }
}

/// Writes into a file's bytes; what lies between its end and a write beyond is zero.
pub(crate) fn overwrite(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at.saturating_add(bytes.len());
    if content.len() < end {
        content.resize(end, 0);
    }
    if let Some(place) = content.get_mut(at..end) {
        place.copy_from_slice(bytes);
    }
}

/// How many bytes from `at` on belong to the same sector, of a write that has `rest` more.
pub(crate) fn in_sector(at: usize, rest: usize) -> usize {
    rest.min(SECTOR_BYTES - at % SECTOR_BYTES)
}

#[derive(Default)]
pub(crate) struct Content {
    /// What reading the file gives.
    pub(crate) current: Vec<u8>,
    /// What reading it after a power cut gives, if the cut leaves no more than it must.
    pub(crate) durable: Vec<u8>,
    /// The changes since then that the next sync makes durable, in order.
    pub(crate) pending: Vec<Change>,
    pending_bytes: usize,
}

impl Content {
    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            change.apply(&mut self.durable);
        }
        self.pending_bytes = 0;
    }
}

/// What a path names and open files refer to.
#[derive(Clone, Default)]
pub(crate) struct Inode(Arc<Mutex<Content>>);

impl Inode {
    fn holding(durable: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Content { current: durable.clone(), durable, ..Content::default() })))
    }

    // The lock is free whenever this is called: whoever has the record has all of its contents.
    pub(crate) fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// What a path has named, in order: first what it surely names after a power cut that comes right after the last
/// sync, last what it names now. Never empty.
pub(crate) type Namings = Vec<Option<Inode>>;

#[derive(Default)]
pub(crate) struct Record {
    paths: BTreeMap<PathBuf, Namings>,
    incomplete: Option<&'static str>,
}

impl Record {
    /// Why no image can be made, if so.
    pub(crate) fn incomplete(&self) -> Option<&'static str> {
        self.incomplete
    }

    /// Remembers that the record no longer equals the files. The first reason is the one that matters.
    pub(crate) fn give_up(&mut self, reason: &'static str) {
        self.incomplete.get_or_insert(reason);
    }

    /// All paths in a directory.
    pub(crate) fn within<'a>(&'a self, directory: &'a Path) -> impl Iterator<Item = (&'a Path, &'a Namings)> {
        let inside = move |path: &Path| path.parent() == Some(directory);
        self.paths.iter().map(|(path, namings)| (path.as_path(), namings)).filter(move |(path, _)| inside(path))
    }

    /// A file that is there was opened. `read` reads it if it is new to the record: all of it counts as durable.
    pub(crate) fn opened(&mut self, path: &Path, read: impl FnOnce() -> Option<Vec<u8>>) -> Inode {
        if let Some(Some(inode)) = self.paths.get(path).and_then(|namings| namings.last()) {
            return inode.clone();
        }
        let inode = match read() {
            Some(durable) => Inode::holding(durable),
            None => {
                self.give_up("a file could not be read when it was opened, or is larger than a record may be");
                Inode::default()
            }
        };
        self.paths.insert(path.to_owned(), vec![Some(inode.clone())]);
        inode
    }

    /// A file that was not there was made.
    pub(crate) fn created(&mut self, path: &Path) -> Inode {
        let inode = Inode::default();
        self.paths.entry(path.to_owned()).or_insert_with(|| vec![None]);
        self.name(path, Some(inode.clone()));
        inode
    }

    /// A file that was there, and is recorded, was deleted.
    pub(crate) fn deleted(&mut self, path: &Path) {
        self.name(path, None);
    }

    fn name(&mut self, path: &Path, inode: Option<Inode>) {
        let Some(namings) = self.paths.get_mut(path) else { return };
        if namings.len() < NAMINGS_MAX {
            namings.push(inode);
        } else {
            self.give_up("a path was created and deleted too often without a sync");
        }
    }

    pub(crate) fn written(&mut self, inode: &Inode, at: i64, bytes: &[u8]) {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let end = at.saturating_add(bytes.len());
        self.change(inode, end, bytes.len(), || Change::Write { at, bytes: bytes.to_vec() });
    }

    /// The part of a write that a disk without power got to: whole sectors, up to about the middle.
    pub(crate) fn torn(&mut self, inode: &Inode, at: i64, bytes: &[u8]) {
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let mut done = 0;
        loop {
            let sector = in_sector(start.saturating_add(done), bytes.len() - done);
            if sector == 0 || done + sector > bytes.len() / 2 {
                break;
            }
            done += sector;
        }
        if let Some(first @ [_, ..]) = bytes.get(..done) {
            self.written(inode, at, first);
        }
    }

    pub(crate) fn resized(&mut self, inode: &Inode, size: i64) {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        self.change(inode, size, 0, || Change::Resize(size));
    }

    fn change(&mut self, inode: &Inode, size: usize, bytes: usize, change: impl FnOnce() -> Change) {
        let mut content = inode.content();
        let pending_bytes = content.pending_bytes.saturating_add(bytes).saturating_add(CHANGE_BYTES);
        let held_bytes = size.max(content.current.len()).saturating_add(content.durable.len());
        if held_bytes.saturating_add(pending_bytes) > FILE_BYTES_MAX {
            drop(content);
            return self.give_up("a file and its unsynced changes are larger than a record may be");
        }
        let change = change();
        change.apply(&mut content.current);
        content.pending_bytes = pending_bytes;
        content.pending.push(change);
    }

    /// All that was done to a file is durable, its name too if it still has it: the file systems in use don't keep a
    /// synced file without the name that it was created by.
    pub(crate) fn synced(&mut self, path: &Path, inode: &Inode) {
        inode.content().sync();
        if let Some(namings) = self.paths.get_mut(path)
            && let Some(Some(last)) = namings.last()
            && last.is(inode)
        {
            keep_last(namings);
        }
    }

    /// All that was created and deleted in a directory is durable.
    pub(crate) fn synced_directory(&mut self, directory: &Path) {
        for (path, namings) in &mut self.paths {
            if path.parent() == Some(directory) {
                keep_last(namings);
            }
        }
    }

    /// What was to be made durable never will be.
    pub(crate) fn dropped(&mut self, inode: &Inode) {
        let mut content = inode.content();
        content.pending.clear();
        content.pending_bytes = 0;
    }
}

fn keep_last(namings: &mut Namings) {
    namings.drain(..namings.len().saturating_sub(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_beyond_the_bound_makes_the_record_incomplete() {
        let mut record = Record::default();
        let inode = record.created(Path::new("/file"));
        record.written(&inode, 0, b"within");
        assert_eq!(record.incomplete(), None);
        record.written(&inode, i64::MAX, b"far beyond");
        assert!(record.incomplete().is_some());
        assert_eq!(inode.content().current, b"within");
    }

    #[test]
    fn too_many_names_without_a_sync_make_the_record_incomplete() {
        let mut record = Record::default();
        let path = Path::new("/file");
        // Beside the first two there are the names from before.
        for _ in 1..NAMINGS_MAX / 2 {
            record.created(path);
            record.deleted(path);
        }
        assert_eq!(record.incomplete(), None);
        record.created(path);
        record.deleted(path);
        assert!(record.incomplete().is_some());
    }

    #[test]
    fn a_power_cut_leaves_whole_sectors_of_a_write() {
        // 12 bytes to the end of the first sector, then as many as half of the write has room for.
        for (bytes, left) in [(2000, 12 + 512), (10, 0), (24, 12), (23, 0), (4096, 12 + 3 * 512)] {
            let mut record = Record::default();
            let inode = record.created(Path::new("/file"));
            record.torn(&inode, 500, &vec![1; bytes]);
            let left = if left == 0 { 0 } else { 500 + left };
            assert_eq!(inode.content().current.len(), left, "{bytes}");
        }
    }

    #[test]
    fn a_file_that_is_made_anew_has_nothing_of_the_old_one() {
        let mut record = Record::default();
        let path = Path::new("/file");
        let old = record.created(path);
        record.written(&old, 0, b"old");
        record.synced(path, &old);
        record.deleted(path);
        let new = record.created(path);
        // A connection that still has the old one open.
        record.written(&old, 0, b"OLD");
        record.synced(path, &old);
        assert_eq!(record.paths[path].len(), 3);
        record.synced(path, &new);
        assert_eq!(record.paths[path].len(), 1);
        assert!(new.content().durable.is_empty());
    }
}
