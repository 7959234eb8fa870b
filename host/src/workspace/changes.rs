//! What a commit would change, for whoever has to agree to it.
//!
//! Invariant: the list is complete up to [`CHANGES_MAX`], and says if there is more; what is too large to be shown is there
//! with its size.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::base::{Found, Wait};
use super::files::Files;
use super::node::{Kind, Node, NodeId};
use super::plan::Survey;

/// Changes in one list (count).
pub const CHANGES_MAX: usize = 10_000;
/// What a list holds of the contents of files (bytes).
const CONTENT_BYTES_MAX: u64 = 64 << 20;
/// What it holds of one file (bytes).
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What the workspaces of a call would become.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// By path. A directory that goes stands for everything in it, and so does one that is moved.
    pub files: Vec<FileChange>,
    /// There are more than [`CHANGES_MAX`].
    pub more: bool,
}

/// One path, before and after. The same means that only its times change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileChange {
    /// In the workspace.
    pub path: PathBuf,
    /// The folder of the workspace.
    pub workspace: PathBuf,
    /// Where it was before, if it was moved.
    pub from: Option<PathBuf>,
    /// What is there.
    pub before: Option<Shown>,
    /// What would be there.
    pub after: Option<Shown>,
}

/// Something in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A file, with its content.
    File(Vec<u8>),
    /// A file that is too large to be held.
    Large {
        /// Its length (bytes).
        bytes: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link, and where it leads.
    Link(PathBuf),
    /// A pipe, a socket or a device.
    Special,
}

impl Files {
    /// What a commit would change, now. On a thread that may wait.
    pub(super) fn changes(self: &Arc<Self>, into: &mut Changes, held: &mut u64) -> Result<(), Errno> {
        let survey = Survey::of(&self.overlay())?;
        let mut paths: BTreeMap<PathBuf, (bool, Option<NodeId>)> = BTreeMap::new();
        for path in survey.gone.keys() {
            paths.entry(path.clone()).or_default().0 = true;
        }
        {
            let overlay = self.overlay();
            for (id, placed) in &survey.placed {
                let Some(node) = overlay.nodes.get(*id) else { continue };
                let is_changed = node.has_times || matches!(&node.kind, Kind::File(content) if content.is_changed);
                for placed in placed.iter().filter(|placed| is_changed || !placed.in_place) {
                    let path = paths.entry(placed.path.clone().into()).or_default();
                    path.0 |= placed.in_place;
                    path.1 = Some(*id);
                }
            }
        }
        for (path, (was, now)) in paths {
            if into.files.len() == CHANGES_MAX {
                into.more = true;
                break;
            }
            let found = if was { self.base.look(&path, Wait::Allowed)? } else { None };
            let before = found.map(|found| self.shown_before(&path, &found, held)).transpose()?;
            let after = now.map(|id| self.shown_after(id, held)).transpose()?;
            let from = now.and_then(|id| self.moved_from(id, &path));
            into.files.push(FileChange { path, workspace: self.base.path().to_owned(), from, before, after });
        }
        Ok(())
    }

    fn moved_from(&self, id: NodeId, path: &Path) -> Option<PathBuf> {
        let overlay = self.overlay();
        let origin = overlay.nodes.get(id)?.origin.as_ref()?;
        (origin.path != path).then(|| origin.path.clone())
    }

    fn shown_before(&self, path: &Path, found: &Found, held: &mut u64) -> Result<Shown, Errno> {
        let node = Node::of_base(path.to_owned(), *found);
        Ok(match node.kind {
            Kind::Directory(_) => Shown::Directory,
            Kind::Link(_) => Shown::Link(self.base.link(path)?.into()),
            Kind::Special(_) => Shown::Special,
            Kind::File(content) if is_too_large(content.size, held) => Shown::Large { bytes: content.size },
            Kind::File(_) => {
                use std::io::Read;
                let (mut file, mut data) = (self.base.file(path, &found.stamp, Wait::Allowed)?, Vec::new());
                file.read_to_end(&mut data).map_err(super::files::errno)?;
                Shown::File(data)
            }
        })
    }

    fn shown_after(&self, id: NodeId, held: &mut u64) -> Result<Shown, Errno> {
        let size = {
            let overlay = self.overlay();
            match &overlay.nodes.get(id).ok_or(Errno::BADF)?.kind {
                Kind::Directory(_) => return Ok(Shown::Directory),
                Kind::Special(_) => return Ok(Shown::Special),
                Kind::Link(_) => None,
                Kind::File(content) => Some(content.size),
            }
        };
        let Some(size) = size else {
            return Ok(Shown::Link(self.run_here(|overlay| overlay.target(id))?.into()));
        };
        if is_too_large(size, held) {
            return Ok(Shown::Large { bytes: size });
        }
        let mut data = Vec::new();
        while (data.len() as u64) < size {
            let part = self.read_here(id, data.len() as u64, super::READ_BYTES_MAX)?;
            if part.is_empty() {
                break;
            }
            data.extend(part);
        }
        Ok(Shown::File(data))
    }
}

fn is_too_large(bytes: u64, held: &mut u64) -> bool {
    let is_too_large = bytes > FILE_BYTES_MAX || *held + bytes > CONTENT_BYTES_MAX;
    *held += if is_too_large { 0 } else { bytes };
    is_too_large
}
