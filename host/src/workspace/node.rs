//! Files, directories and links as a call sees them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FileType;

use super::base::{Found, Listed, Stamp, Time};
use super::content::Content;

/// One of the nodes of an overlay. Never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(u64);

impl NodeId {
    pub(super) fn number(self) -> u64 {
        self.0
    }
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    /// Where it is in the base, and what it was there.
    pub(super) origin: Option<Origin>,
    /// Its names.
    pub(super) links: u64,
    /// Descriptors that are open.
    pub(super) open: u32,
    pub(super) accessed: Time,
    pub(super) modified: Time,
    pub(super) changed: Time,
    /// Somebody has set its times.
    pub(super) has_times: bool,
    /// The directory that it is in, if it is one.
    pub(super) parent: Option<NodeId>,
    /// Whether this process may change what the base has there, once that was asked.
    pub(super) may_write: Option<bool>,
}

#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) path: PathBuf,
    pub(super) stamp: Stamp,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Directory(Directory),
    File(Content),
    /// `None`: it is the base's, and was not read yet.
    Link(Option<OsString>),
    /// Something that can be seen and removed, and nothing else.
    Special(FileType),
}

/// What is known of a directory: everything, if it is not in the base.
#[derive(Clone, Debug, Default)]
pub(super) struct Directory {
    pub(super) entries: BTreeMap<OsString, Entry>,
    /// What the base has, once that was listed.
    pub(super) listed: Option<Arc<Listed>>,
}

/// What is known about one name.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// What the base had, when it was looked at.
    pub(super) was: Option<Stamp>,
    pub(super) now: Option<NodeId>,
}

impl Node {
    pub(super) fn new(kind: Kind, now: Time) -> Self {
        Self {
            kind,
            origin: None,
            links: 0,
            open: 0,
            accessed: now,
            modified: now,
            changed: now,
            has_times: false,
            parent: None,
            may_write: None,
        }
    }

    pub(super) fn of_base(path: PathBuf, found: Found) -> Self {
        let stamp = found.stamp;
        let kind = match stamp.kind() {
            FileType::Directory => Kind::Directory(Directory::default()),
            FileType::RegularFile => Kind::File(Content::of_base(stamp.size)),
            FileType::Symlink => Kind::Link(None),
            kind => Kind::Special(kind),
        };
        Self {
            kind,
            origin: Some(Origin { path, stamp }),
            links: found.links,
            open: 0,
            accessed: found.accessed,
            modified: stamp.modified,
            changed: stamp.changed,
            has_times: false,
            parent: None,
            may_write: None,
        }
    }

    pub(super) fn file_type(&self) -> FileType {
        match &self.kind {
            Kind::Directory(_) => FileType::Directory,
            Kind::File(_) => FileType::RegularFile,
            Kind::Link(_) => FileType::Symlink,
            Kind::Special(kind) => *kind,
        }
    }

    pub(super) fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory(_))
    }

    /// Something in it has changed.
    pub(super) fn touch(&mut self, now: Time) {
        (self.modified, self.changed) = (now, now);
    }

    /// It is the base's, at this path.
    pub(super) fn is_from(&self, path: &Path) -> bool {
        self.origin.as_ref().is_some_and(|origin| origin.path == path)
    }
}

/// All nodes.
#[derive(Clone, Debug, Default)]
pub(super) struct Nodes {
    nodes: HashMap<NodeId, Node>,
    next: u64,
}

impl Nodes {
    pub(super) fn add(&mut self, node: Node) -> NodeId {
        let id = NodeId(self.next);
        self.next += 1;
        self.nodes.insert(id, node);
        id
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(&id)
    }

    pub(super) fn remove(&mut self, id: NodeId) -> Option<Node> {
        self.nodes.remove(&id)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().map(|(id, node)| (*id, node))
    }

    /// What these others have used as an id is not used again.
    pub(super) fn go_on_from(&mut self, others: &Nodes) {
        self.next = self.next.max(others.next);
    }

    pub(super) fn open(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, node)| node.open > 0).map(|(id, _)| *id).collect()
    }

    pub(super) fn retain(&mut self, keep: impl Fn(NodeId) -> bool) {
        self.nodes.retain(|id, _| keep(*id));
    }
}
