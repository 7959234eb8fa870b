//! What has to be done to the base so that it becomes what the call sees.
//!
//! Invariant: carried out in this order, each step finds what it needs: takes from the inside out, before anything is put;
//! puts from the outside in. Whatever is taken or put exists once, so a step that finds nothing was done before.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::base::{Listed, Stamp, Time};
use super::node::{Kind, Node, NodeId};
use super::overlay::Overlay;

/// Length of a path from the folder (bytes): one that is longer could not be named to the kernel.
const PATH_BYTES_MAX: usize = 4000;

/// Length of all paths of one commit together (bytes).
const PATHS_BYTES_MAX: usize = 64 << 20;

/// Steps that can be begun again at any point.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// From the folder into the stage.
    pub(super) takes: Vec<Move>,
    /// From the stage into the folder, over what may be there.
    pub(super) puts: Vec<Move>,
    pub(super) times: Vec<Times>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Move {
    pub(super) from: String,
    pub(super) to: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Times {
    pub(super) path: String,
    pub(super) accessed: Time,
    pub(super) modified: Time,
}

/// Something that has to be in the stage before the plan is carried out.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) name: String,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    File {
        node: NodeId,
        size: u64,
        origin: Option<(PathBuf, Stamp)>,
        accessed: Time,
        modified: Time,
    },
    Directory,
    Link(OsString),
    /// One more name for a file of the base.
    OfBase(PathBuf, Stamp),
    /// One more name for something that was made before.
    Again(String),
}

/// What a commit of the overlay relies on, and what it does.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) reads: Vec<(PathBuf, Option<Stamp>)>,
    pub(super) listings: Vec<(PathBuf, Arc<Listed>)>,
    pub(super) made: Vec<Made>,
    pub(super) plan: Plan,
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.takes.is_empty() && self.puts.is_empty() && self.times.is_empty()
    }
}

/// One name in the tree of the call.
pub(super) struct Placed {
    pub(super) path: String,
    pub(super) in_place: bool,
}

/// What differs between the tree of the call and the base.
#[derive(Default)]
pub(super) struct Survey {
    pub(super) placed: BTreeMap<NodeId, Vec<Placed>>,
    /// What is not any more where it was in the base; and whether something is put over it that may be.
    pub(super) gone: BTreeMap<PathBuf, bool>,
    change: Change,
    paths_bytes: usize,
}

impl Overlay {
    pub(super) fn change(&self) -> Result<Change, Errno> {
        Survey::of(self)?.plan(self)
    }
}

impl Survey {
    pub(super) fn of(overlay: &Overlay) -> Result<Self, Errno> {
        let mut survey = Self::default();
        survey.change.reads.clone_from(&overlay.seen);
        survey.change.listings.clone_from(&overlay.seen_listings);
        let mut left = vec![(overlay.root, String::new())];
        while let Some((id, path)) = left.pop() {
            survey.directory(overlay, id, &path, &mut left)?;
        }
        survey.open_but_gone(overlay);
        Ok(survey)
    }

    fn directory(
        &mut self,
        overlay: &Overlay,
        id: NodeId,
        path: &str,
        left: &mut Vec<(NodeId, String)>,
    ) -> Result<(), Errno> {
        let Some(Node { kind: Kind::Directory(directory), origin, .. }) = overlay.nodes.get(id) else {
            return Ok(());
        };
        self.read(origin.as_ref().map(|origin| &*origin.path), directory);
        for (name, entry) in &directory.entries {
            let from = origin.as_ref().map(|origin| origin.path.join(name));
            let now = entry.now.and_then(|now| Some((now, overlay.nodes.get(now)?)));
            let in_place = entry.was.is_some()
                && now.as_ref().zip(from.as_ref()).is_some_and(|((_, node), from)| node.is_from(from));
            if let (Some(from), Some(was), false) = (from, entry.was, in_place) {
                let over =
                    was.kind() != FileType::Directory && now.as_ref().is_some_and(|(_, node)| !node.is_directory());
                self.gone.insert(from, over);
            }
            let Some((now, node)) = now else { continue };
            let name = name.to_str().ok_or(Errno::ILSEQ)?;
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            self.paths_bytes += path.len();
            if path.len() > PATH_BYTES_MAX {
                return Err(Errno::NAMETOOLONG);
            }
            if self.paths_bytes > PATHS_BYTES_MAX {
                return Err(Errno::NOMEM);
            }
            if node.is_directory() {
                left.push((now, path.clone()));
            }
            self.placed.entry(now).or_default().push(Placed { path, in_place });
        }
        Ok(())
    }

    fn read(&mut self, origin: Option<&Path>, directory: &super::node::Directory) {
        let Some(origin) = origin else { return };
        let names = directory.entries.iter().map(|(name, entry)| (origin.join(name), entry.was));
        self.change.reads.extend(names);
        let listed = directory.listed.as_ref().map(|listed| (origin.to_owned(), Arc::clone(listed)));
        self.change.listings.extend(listed);
    }

    /// Directories that were removed and are still open: what was read there counts.
    fn open_but_gone(&mut self, overlay: &Overlay) {
        for id in overlay.nodes.open() {
            if id == overlay.root || self.placed.contains_key(&id) {
                continue;
            }
            if let Some(Node { kind: Kind::Directory(directory), origin, .. }) = overlay.nodes.get(id) {
                self.read(origin.as_ref().map(|origin| &*origin.path), directory);
            }
        }
    }

    fn plan(mut self, overlay: &Overlay) -> Result<Change, Errno> {
        let mut moved = HashSet::new();
        for (id, placed) in std::mem::take(&mut self.placed) {
            let Some(node) = overlay.nodes.get(id) else { continue };
            self.place(id, node, &placed, &mut moved);
        }
        self.trash(&moved);
        let Plan { takes, puts, .. } = &mut self.change.plan;
        takes.sort_by_key(|step| std::cmp::Reverse(depth(&step.from)));
        puts.sort_by_key(|step| depth(&step.to));
        Ok(self.change)
    }

    /// What has to be done so that something is where it is to be, by all its names.
    fn place(&mut self, id: NodeId, node: &Node, placed: &[Placed], moved: &mut HashSet<PathBuf>) {
        let (plan, made) = (&mut self.change.plan, &mut self.change.made);
        let put = |plan: &mut Plan, from: &str, to: &Placed| {
            plan.puts.push(Move { from: from.to_owned(), to: to.path.clone() });
        };
        let is_changed = matches!(&node.kind, Kind::File(content) if content.is_changed);
        let origin = node.origin.as_ref();
        if node.has_times
            && !is_changed
            && let Some(first) = placed.first()
        {
            let (accessed, modified) = (node.accessed, node.modified);
            plan.times.push(Times { path: first.path.clone(), accessed, modified });
        }
        let stays = placed.iter().any(|placed| placed.in_place) && !is_changed;
        let mut others = placed.iter().filter(|placed| is_changed || !placed.in_place);
        // The first name gets the thing itself, the others are further names of it.
        let first = match (stays, origin) {
            (true, _) => None,
            (false, Some(origin)) if !is_changed => {
                let Some(to) = others.next() else { return };
                let name = format!("m{}", plan.takes.len());
                let from = origin.path.to_string_lossy().into_owned();
                plan.takes.push(Move { from, to: name.clone() });
                moved.insert(origin.path.clone());
                put(plan, &name, to);
                None
            }
            (false, _) => {
                let what = match &node.kind {
                    Kind::File(content) => What::File {
                        node: id,
                        size: content.size,
                        origin: origin.map(|origin| (origin.path.clone(), origin.stamp)),
                        accessed: node.accessed,
                        modified: node.modified,
                    },
                    Kind::Directory(_) => What::Directory,
                    Kind::Link(target) => What::Link(target.clone().unwrap_or_default()),
                    // Only the base has such.
                    Kind::Special(_) => return,
                };
                let Some(to) = others.next() else { return };
                let name = format!("n{}", made.len());
                made.push(Made { name: name.clone(), what });
                put(plan, &name, to);
                Some(name)
            }
        };
        for to in others {
            let name = format!("n{}", made.len());
            let what = match (&first, origin) {
                (Some(first), _) => What::Again(first.clone()),
                (None, Some(origin)) => What::OfBase(origin.path.clone(), origin.stamp),
                (None, None) => return,
            };
            made.push(Made { name: name.clone(), what });
            put(plan, &name, to);
        }
    }

    /// Takes away what is nowhere any more.
    fn trash(&mut self, moved: &HashSet<PathBuf>) {
        // With a directory goes what is in it; what was moved out of it was taken before.
        let trashed: HashMap<&PathBuf, bool> =
            self.gone.iter().filter(|(path, _)| !moved.contains(*path)).map(|(path, over)| (path, *over)).collect();
        // The nearest of them decides: what is in a directory that was moved out goes nowhere with what that was in.
        let within = |path: &Path| {
            let goes = |above: &Path| match (moved.contains(above), trashed.contains_key(&above.to_path_buf())) {
                (true, _) => Some(false),
                (false, true) => Some(true),
                (false, false) => None,
            };
            path.ancestors().skip(1).find_map(goes).unwrap_or(false)
        };
        let mut names: Vec<_> =
            trashed.iter().filter(|(path, over)| !**over && !within(path)).map(|(path, _)| *path).collect();
        names.sort_unstable();
        for path in names {
            let takes = &mut self.change.plan.takes;
            let name = format!("t{}", takes.len());
            takes.push(Move { from: path.to_string_lossy().into_owned(), to: name });
        }
    }
}

fn depth(path: &str) -> usize {
    path.matches('/').count()
}
