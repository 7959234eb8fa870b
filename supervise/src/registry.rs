//! Which trees this process has.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use crate::failed;
use crate::process::Key;

/// The environment variable that marks the processes of a tree: the random ids of the tree and of
/// the trees its supervisor is itself in, outermost first, separated by colons.
pub const MARK: &str = "ESTOP_TREE";

/// What the id begins with that marks children that the host starts for itself: who reads a mark
/// without knowing the registry has to tell them from those of a tree.
const APART: &str = "apart-";

/// What is known of one tree.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub leader: Key,
    /// Members found by evidence in some look and not gone since.
    pub seen: BTreeSet<Key>,
    /// The directory of its control group.
    pub cgroup: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub(crate) struct Registry {
    pub trees: BTreeMap<String, Entry>,
    /// Children the host started for itself, and what descends from them.
    pub apart: BTreeSet<Key>,
    pub apart_id: Option<String>,
    pub owns_all: bool,
    /// Spawns under way: their children are not registered yet.
    pub spawning: usize,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    trees: BTreeMap::new(),
    apart: BTreeSet::new(),
    apart_id: None,
    owns_all: false,
    spawning: 0,
});

/// Locked for moments only, never across anything that could wait.
pub(crate) fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A random id from the kernel.
pub(crate) fn new_id() -> io::Result<String> {
    let path = "/proc/sys/kernel/random/uuid";
    fs::read_to_string(path)
        .map(|id| id.trim().replace('-', ""))
        .map_err(|error| failed(format!("reading a random id from {path}"), error))
}

/// The mark for a tree made here: it keeps the ids of the trees this process is in, so that an
/// outer supervisor still knows the processes as its own.
pub(crate) fn mark_for(id: &str) -> OsString {
    let mut mark = std::env::var_os(MARK).unwrap_or_default();
    if !mark.is_empty() {
        mark.push(":");
    }
    mark.push(id);
    mark
}

/// A value for [`MARK`] that no other process has, for a child that supervises trees itself. It keeps the ids of the trees
/// that this process is in.
pub fn fresh_mark() -> io::Result<String> {
    let mark = mark_for(&new_id()?).into_string();
    mark.map_err(|mark| failed(format!("reading {MARK}"), io::Error::other(format!("{} is no text", mark.display()))))
}

/// The trees that a mark names which the process with the mark `outer` has made, and not somebody
/// outside of it.
pub(crate) fn inner_ids<'m>(mark: &'m str, outer: &str) -> impl Iterator<Item = &'m str> {
    let inner = match outer {
        "" => Some(mark),
        outer => mark.strip_prefix(outer).and_then(|inner| inner.strip_prefix(':')),
    };
    let ids = inner.into_iter().flat_map(|inner| inner.split(':'));
    ids.take_while(|id| !id.starts_with(APART)).filter(|id| !id.is_empty())
}

/// The mark for children the host starts for itself.
pub(crate) fn apart_mark() -> io::Result<OsString> {
    let fresh = format!("{APART}{}", new_id()?);
    Ok(mark_for(registry().apart_id.get_or_insert(fresh)))
}

/// A spawn under way. While there is one, a child of ours that nobody knows may be its child.
pub(crate) struct Pending(());

impl Pending {
    pub(crate) fn begin() -> Pending {
        registry().spawning += 1;
        Pending(())
    }

    /// Ends it with the leader of a tree.
    pub(crate) fn tree(self, id: &str, entry: Entry) {
        registry().trees.insert(id.to_owned(), entry);
    }

    /// Ends it with a child that belongs to no tree.
    pub(crate) fn apart(self, child: Key) {
        registry().apart.insert(child);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut registry = registry();
        registry.spawning = registry.spawning.saturating_sub(1);
    }
}

/// Forgets a tree.
pub(crate) fn forget(id: &str) {
    registry().trees.remove(id);
}

/// Declares that this process starts all its children through this module, as trees or with
/// [`spawn_apart`](crate::spawn_apart). From then on, dead orphans that no look saw alive are
/// reaped by whichever tree looks next.
///
/// Without it they stay zombies, for they could be children whose exit status the host waits for;
/// a tree that forks without end then fills the process table and slows every look. A program that
/// does nothing but supervise should always call this.
pub fn own_all_children() {
    registry().owns_all = true;
}

#[cfg(test)]
mod tests {
    use super::inner_ids;

    #[test]
    fn a_mark_names_the_trees_that_were_made_inside() {
        let ids = |mark, outer| inner_ids(mark, outer).collect::<Vec<_>>();
        assert_eq!(ids("a:b", ""), ["a", "b"]);
        assert_eq!(ids("a:b", "a"), ["b"]);
        assert_eq!(ids("a", "a"), [""; 0]);
        assert_eq!(ids("ab:c", "a"), [""; 0]);
        assert_eq!(ids("", ""), [""; 0]);
        // The host's own children, and trees that those have made.
        assert_eq!(ids("apart-x:c", ""), [""; 0]);
        assert_eq!(ids("apart-x:c", "apart-x"), ["c"]);
    }
}
