//! The tree that a call sees: the base, and what the call has changed.
//!
//! An operation that lacks something of the base changes nothing and names it. Whoever runs the overlay fetches that
//! outside of the lock, supplies it, and begins the operation again.
//!
//! Invariants:
//! - Whatever of the base an answer depended on is remembered with its stamp, absence and listings included, so that a
//!   commit can see whether it still is so.
//! - Rollback is dropping the overlay: the base was never touched.

mod data;
mod names;
mod nested;
mod rebase;

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;

pub(crate) use self::names::{Open, Status};
pub(super) use self::nested::Before;
use super::base::{Found, Listed, Stamp, Time};
use super::content::{Delta, Slot};
use super::node::{Directory, Entry, Kind, Node, NodeId, Nodes};
use super::path::{Step, steps};

/// Symbolic links in one path, as in the kernel.
const LINKS_MAX: u32 = 40;
/// Files of the base that one call has open: each is one of the process's, which has few.
const OPEN_FILES_MAX: usize = 128;
/// Steps of one path, with those of all links in it.
const STEPS_MAX: usize = 4096;
/// A name counts as much as this much of another text (bytes), or as so many names of a listing.
const NAME_BYTES: usize = 256;
const NAME_LISTED: usize = 4;

/// Bounds on what one call may keep of one workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceLimits {
    /// What it has written and not committed (bytes; of the spill file whole blocks count).
    pub bytes_max: u64,
    /// Files, directories and names that it has looked at or changed. The target of a link counts as one for each 256 bytes,
    /// and so do four names of a listing.
    pub entries_max: usize,
    /// What of `bytes_max` stays in memory (bytes); the rest is in a private file that has no name.
    pub memory_bytes_max: u64,
}

impl Default for WorkspaceLimits {
    fn default() -> Self {
        Self { bytes_max: 256 << 20, entries_max: 200_000, memory_bytes_max: 16 << 20 }
    }
}

/// Something that an operation lacks.
#[derive(Clone, Debug)]
pub(crate) enum Need {
    Look {
        directory: NodeId,
        name: OsString,
        path: PathBuf,
    },
    List {
        directory: NodeId,
        path: PathBuf,
        names_max: usize,
    },
    Target {
        link: NodeId,
        path: PathBuf,
    },
    File {
        node: NodeId,
        path: PathBuf,
        stamp: Stamp,
    },
    MayWrite {
        node: NodeId,
        path: PathBuf,
    },
    Block {
        node: NodeId,
        number: u64,
        file: Arc<File>,
        at: u64,
        bytes: usize,
    },
    Unspill {
        node: NodeId,
        number: u64,
        slot: Slot,
    },
    /// `age`: what this overlay began with then.
    Spill {
        blocks: Vec<Spill>,
        age: u64,
    },
}

/// A block that is to leave the memory.
#[derive(Clone, Debug)]
pub(crate) struct Spill {
    pub(crate) node: NodeId,
    pub(crate) number: u64,
    pub(crate) slot: Slot,
    pub(crate) data: Arc<Vec<u8>>,
}

/// What was lacking.
#[derive(Debug)]
pub(crate) enum Supply {
    Found(Option<Found>),
    Listed(Listed),
    Target(OsString),
    File(File),
    MayWrite(bool),
    Bytes(Vec<u8>),
    Spilled,
}

/// Why an operation did nothing.
#[derive(Debug)]
pub(crate) enum Unready {
    Need(Need),
    Error(Errno),
}

impl From<Errno> for Unready {
    fn from(error: Errno) -> Self {
        Unready::Error(error)
    }
}

pub(crate) type Ready<T> = Result<T, Unready>;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(crate) struct Overlay {
    pub(super) nodes: Nodes,
    pub(super) root: NodeId,
    is_read_only: bool,
    limits: WorkspaceLimits,
    /// Names that were looked at or made.
    entries: usize,
    /// Files of the base that are open.
    open_files: usize,
    /// Names that were made, given to something else or removed, and files whose content has changed.
    changes: u64,
    memory_bytes: u64,
    /// In the spill file: what is in use, and where it ends.
    spilled_bytes: u64,
    spill_end: u64,
    /// Slots that there have been.
    slots: u64,
    /// How often it has begun anew: what was asked for before is not for now.
    age: u64,
    free: Vec<Slot>,
    /// Slots up to this number may be somebody's who has a copy of this.
    protected: u64,
    /// Such ones that are not needed here any more.
    held_back: Vec<Slot>,
    /// In the spill file, and neither in use nor free (bytes).
    unused_bytes: u64,
    /// Blocks in memory, oldest first; also some that are not there any more.
    in_memory: VecDeque<(NodeId, u64)>,
    /// When those are looked for (count).
    sweep_at: usize,
    /// Read in directories that are gone.
    pub(super) seen: Vec<(PathBuf, Option<Stamp>)>,
    pub(super) seen_listings: Vec<(PathBuf, Arc<Listed>)>,
    /// Something was changed by others since it was read, so that nothing can be committed any more.
    lost: Option<String>,
}

/// What becomes of a symbolic link at the end of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    Follow,
    /// It stands for itself, unless there is a slash behind it.
    Look,
    /// The name counts, whatever it is.
    Name,
}

impl Last {
    fn of(follow: bool) -> Self {
        if follow { Last::Follow } else { Last::Look }
    }
}

/// Where a path leads.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: NodeId,
    /// Never [`Step::Up`] out of it.
    pub(super) name: Step,
    pub(super) node: Option<NodeId>,
    pub(super) must_be_directory: bool,
}

impl Overlay {
    pub(crate) fn new(root: Found, is_read_only: bool, mut limits: WorkspaceLimits) -> Self {
        limits.memory_bytes_max = limits.memory_bytes_max.max(data::MEMORY_BYTES_MIN);
        let mut nodes = Nodes::default();
        let root = nodes.add(Node::of_base(PathBuf::new(), root));
        Self {
            nodes,
            root,
            is_read_only,
            limits,
            entries: 0,
            open_files: 0,
            changes: 0,
            memory_bytes: 0,
            spilled_bytes: 0,
            spill_end: 0,
            slots: 0,
            age: 0,
            free: Vec::new(),
            protected: 0,
            held_back: Vec::new(),
            unused_bytes: 0,
            in_memory: VecDeque::new(),
            sweep_at: data::SWEEP_MIN,
            seen: Vec::new(),
            seen_listings: Vec::new(),
            lost: None,
        }
    }

    pub(crate) fn root(&self) -> NodeId {
        self.root
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// Names and files changed, and bytes that are kept for that.
    pub(crate) fn changes(&self) -> (u64, u64) {
        (self.changes, self.held_bytes())
    }

    /// See [`WorkspaceLimits`].
    pub(super) fn bytes_max(&self) -> u64 {
        self.limits.bytes_max
    }

    pub(crate) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    fn held_bytes(&self) -> u64 {
        self.memory_bytes + self.spilled_bytes
    }

    fn node(&self, id: NodeId) -> Result<&Node, Errno> {
        self.nodes.get(id).ok_or(Errno::BADF)
    }

    fn node_mut(&mut self, id: NodeId) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(id).ok_or(Errno::BADF)
    }

    fn directory(&self, id: NodeId) -> Result<&Directory, Errno> {
        match &self.node(id)?.kind {
            Kind::Directory(directory) => Ok(directory),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn directory_mut(&mut self, id: NodeId) -> Result<&mut Directory, Errno> {
        match &mut self.node_mut(id)?.kind {
            Kind::Directory(directory) => Ok(directory),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Follows a path from a directory.
    pub(super) fn walk(&mut self, from: NodeId, path: &[u8], last: Last) -> Ready<Place> {
        if self.lost.is_some() {
            return Err(Errno::STALE.into());
        }
        let (mut left, mut must_be_directory) = steps(path)?;
        self.directory(from)?;
        let mut trail = vec![from];
        let (mut links, mut taken) = (0, 0);
        let mut place = Place { directory: from, name: Step::Here, node: Some(from), must_be_directory };
        while let Some(step) = left.pop() {
            taken += 1;
            if taken > STEPS_MAX {
                return Err(Errno::LOOP.into());
            }
            let here = *trail.last().ok_or(Errno::PERM)?;
            let name = match step {
                Step::Here => {
                    place = Place { directory: here, name: Step::Here, node: Some(here), must_be_directory };
                    continue;
                }
                Step::Up => {
                    trail.pop();
                    // Out of what the descriptor is for.
                    let up = *trail.last().ok_or(Errno::PERM)?;
                    place = Place { directory: up, name: Step::Up, node: Some(up), must_be_directory };
                    continue;
                }
                Step::Name(name) => name,
            };
            let is_last = left.is_empty();
            let Some(node) = self.child(here, &name)? else {
                if !is_last {
                    return Err(Errno::NOENT.into());
                }
                return Ok(Place { directory: here, name: Step::Name(name), node: None, must_be_directory });
            };
            match &self.node(node)?.kind {
                Kind::Link(_) if !is_last || last == Last::Follow || (must_be_directory && last == Last::Look) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Errno::LOOP.into());
                    }
                    let target = self.target(node)?;
                    // A guest has no name for what is no text.
                    let target = target.to_str().ok_or(Errno::ILSEQ)?;
                    let (steps, ends) = steps(target.as_bytes())?;
                    must_be_directory |= is_last && ends;
                    left.extend(steps);
                }
                Kind::Directory(_) => {
                    trail.push(node);
                    place = Place { directory: here, name: Step::Name(name), node: Some(node), must_be_directory };
                }
                _ if !is_last => return Err(Errno::NOTDIR.into()),
                _ => return Ok(Place { directory: here, name: Step::Name(name), node: Some(node), must_be_directory }),
            }
        }
        place.must_be_directory = must_be_directory;
        Ok(place)
    }

    /// As `walk`, to something that is there.
    pub(super) fn find(&mut self, from: NodeId, path: &[u8], follow: bool) -> Ready<NodeId> {
        let place = self.walk(from, path, Last::of(follow))?;
        let id = place.node.ok_or(Errno::NOENT)?;
        if place.must_be_directory && !self.node(id)?.is_directory() { Err(Errno::NOTDIR.into()) } else { Ok(id) }
    }

    /// What this name is in a directory.
    fn child(&mut self, directory: NodeId, name: &OsStr) -> Ready<Option<NodeId>> {
        if let Some(entry) = self.directory(directory)?.entries.get(name) {
            return Ok(entry.now);
        }
        let Some(origin) = &self.node(directory)?.origin else { return Ok(None) };
        let path = origin.path.join(name);
        self.room()?;
        Err(Unready::Need(Need::Look { directory, name: name.to_owned(), path }))
    }

    fn room(&self) -> Result<(), Errno> {
        if self.entries >= self.limits.entries_max { Err(Errno::NOMEM) } else { Ok(()) }
    }

    /// Where a symbolic link leads.
    pub(super) fn target(&mut self, link: NodeId) -> Ready<OsString> {
        let node = self.node(link)?;
        match &node.kind {
            Kind::Link(Some(target)) => Ok(target.clone()),
            Kind::Link(None) => {
                let path = node.origin.as_ref().ok_or(Errno::INVAL)?.path.clone();
                Err(Unready::Need(Need::Target { link, path }))
            }
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// Whether something may be changed.
    pub(super) fn may_write(&self, id: NodeId) -> Ready<()> {
        if self.is_read_only {
            return Err(Errno::ROFS.into());
        }
        let node = self.node(id)?;
        match (&node.origin, node.may_write) {
            (None, _) | (_, Some(true)) => Ok(()),
            (_, Some(false)) => Err(Errno::ACCESS.into()),
            (Some(origin), None) => Err(Unready::Need(Need::MayWrite { node: id, path: origin.path.clone() })),
        }
    }

    /// Puts in place what was lacking. If it could not be had, the operation that lacks it fails.
    pub(crate) fn supply(&mut self, need: Need, supply: Result<Supply, Errno>) -> Result<(), Errno> {
        if let (Need::Spill { blocks, age }, Err(_)) = (&need, &supply)
            && *age == self.age
        {
            for block in blocks {
                self.give_back(block.slot);
                self.remember(block.node, [block.number]);
            }
        }
        let supply = match supply {
            Err(Errno::STALE) => {
                if let Need::File { path, .. } = &need {
                    self.lose(format!("`{}` was changed by someone else", path.display()));
                }
                return Err(Errno::STALE);
            }
            supply => supply?,
        };
        match (need, supply) {
            (Need::Look { directory, name, path }, Supply::Found(found)) => self.found(directory, name, path, found),
            (Need::List { directory, .. }, Supply::Listed(listed)) => {
                let names = listed.len() / NAME_LISTED;
                let known = &mut self.directory_mut(directory)?.listed;
                if known.is_none() {
                    *known = Some(Arc::new(listed));
                    self.entries += names;
                }
            }
            (Need::Target { link, .. }, Supply::Target(target)) => {
                if let Kind::Link(known @ None) = &mut self.node_mut(link)?.kind {
                    *known = Some(target);
                }
            }
            (Need::File { node, .. }, Supply::File(file)) => {
                if let Some(Node { kind: Kind::File(content), .. }) = self.nodes.get_mut(node)
                    && content.file.is_none()
                {
                    content.file = Some(Arc::new(file));
                    self.open_files += 1;
                }
            }
            (Need::MayWrite { node, .. }, Supply::MayWrite(may)) => self.node_mut(node)?.may_write = Some(may),
            (Need::Block { node, number, at, bytes, .. }, Supply::Bytes(data)) => {
                self.filled(node, number, data, |content| content.lacks(number, at, bytes));
            }
            (Need::Unspill { node, number, slot }, Supply::Bytes(data)) => {
                self.filled(node, number, data, |content| content.is_in(number, slot));
            }
            (Need::Spill { blocks, age }, Supply::Spilled) if age == self.age => self.spilled(blocks),
            (Need::Spill { .. }, Supply::Spilled) => {}
            _ => debug_assert!(false, "something else was asked for"),
        }
        Ok(())
    }

    fn found(&mut self, directory: NodeId, name: OsString, path: PathBuf, found: Option<Found>) {
        // It may have been made meanwhile, or the directory may be gone.
        if !matches!(self.directory(directory), Ok(known) if !known.entries.contains_key(&name)) {
            return;
        }
        let was = found.map(|found| found.stamp);
        let now = found.map(|found| {
            let mut node = Node::of_base(path, found);
            if node.is_directory() {
                node.parent = Some(directory);
            }
            self.nodes.add(node)
        });
        self.entries += 1;
        if let Ok(known) = self.directory_mut(directory) {
            known.entries.insert(name, Entry { was, now });
        }
    }

    pub(super) fn lose(&mut self, what: String) {
        self.lost.get_or_insert(what);
    }

    /// Gives a name to something, or takes it away. What it was in the base must be known.
    fn set(&mut self, directory: NodeId, name: &OsStr, now: Option<NodeId>, at: Time) -> Result<(), Errno> {
        let known = self.directory_mut(directory)?;
        match known.entries.get_mut(name) {
            Some(entry) => entry.now = now,
            None => {
                known.entries.insert(name.to_owned(), Entry { was: None, now });
                self.entries += 1;
            }
        }
        self.changes += 1;
        self.node_mut(directory)?.touch(at);
        Ok(())
    }

    /// One name less.
    fn unlink(&mut self, id: NodeId, at: Time) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        node.links = if node.is_directory() { 0 } else { node.links.saturating_sub(1) };
        node.changed = at;
        self.let_go(id);
    }

    pub(crate) fn open(&mut self, id: NodeId) -> Result<(), Errno> {
        self.node_mut(id)?.open += 1;
        Ok(())
    }

    pub(crate) fn close(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        node.open = node.open.saturating_sub(1);
        if let (0, Kind::File(content)) = (node.open, &mut node.kind)
            && content.file.take().is_some()
        {
            self.open_files = self.open_files.saturating_sub(1);
        }
        self.let_go(id);
    }

    /// Forgets something that nobody can reach any more, and keeps what was read of it.
    fn let_go(&mut self, id: NodeId) {
        if self.nodes.get(id).is_none_or(|node| node.links > 0 || node.open > 0) {
            return;
        }
        let Some(node) = self.nodes.remove(id) else { return };
        match node.kind {
            Kind::File(content) => {
                let held = content.held();
                self.account(id, held);
            }
            Kind::Directory(directory) => {
                let Some(origin) = node.origin else { return };
                let seen = directory.entries.into_iter().map(|(name, entry)| (origin.path.join(name), entry.was));
                self.seen.extend(seen);
                self.seen_listings.extend(directory.listed.map(|listed| (origin.path, listed)));
            }
            Kind::Link(_) | Kind::Special(_) => {}
        }
    }

    fn account(&mut self, node: NodeId, delta: Delta) {
        self.memory_bytes = self.memory_bytes.saturating_add_signed(delta.bytes);
        self.remember(node, delta.new_blocks);
        for slot in delta.freed {
            self.give_back(slot);
        }
    }

    fn give_back(&mut self, slot: Slot) {
        self.spilled_bytes = self.spilled_bytes.saturating_sub(u64::from(slot.bytes));
        if slot.number > self.protected {
            self.free.push(slot);
        } else {
            self.unused_bytes += u64::from(slot.bytes);
            self.held_back.push(slot);
        }
    }
}
