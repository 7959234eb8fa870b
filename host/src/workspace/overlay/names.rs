//! What is in directories: opening, making, renaming, removing.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::{Last, NAME_BYTES, NAME_LISTED, Need, Overlay, Place, Ready, Unready};
use crate::workspace::base::{Listed, Time};
use crate::workspace::content::Content;
use crate::workspace::node::{Directory, Kind, Node, NodeId};
use crate::workspace::path::Step;

/// Length of what a symbolic link says (bytes), as in the kernel.
const TARGET_BYTES_MAX: usize = 4095;

/// Directories in one another: a path through more of them could not be named to the kernel.
const DEPTH_MAX: usize = 2048;

/// How something is opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Open {
    pub(crate) follow: bool,
    pub(crate) create: bool,
    pub(crate) exclusive: bool,
    pub(crate) directory: bool,
    pub(crate) truncate: bool,
    pub(crate) write: bool,
}

/// What can be asked about something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) kind: FileType,
    pub(crate) size: u64,
    pub(crate) links: u64,
    pub(crate) accessed: Time,
    pub(crate) modified: Time,
    pub(crate) changed: Time,
}

impl Overlay {
    /// Opens what is at a path. Whoever gets it has to close it.
    pub(crate) fn open_at(&mut self, from: NodeId, path: &[u8], how: Open, at: Time) -> Ready<NodeId> {
        if how.directory && (how.create || how.exclusive || how.truncate) {
            return Err(Errno::INVAL.into());
        }
        let is_written = how.create || how.truncate || how.write;
        if is_written && self.is_read_only {
            return Err(Errno::ROFS.into());
        }
        let last = if how.create && how.exclusive { Last::Name } else { Last::of(how.follow) };
        let place = self.walk(from, path, last)?;
        let id = match place.node {
            _ if how.create && place.must_be_directory && matches!(place.name, Step::Name(_)) => {
                return Err(Errno::ISDIR.into());
            }
            None if !how.create => return Err(Errno::NOENT.into()),
            None => {
                let mut content = Content::default();
                content.is_changed = true;
                self.add(&place, Node::new(Kind::File(content), at), at)?
            }
            Some(_) if how.create && how.exclusive => return Err(Errno::EXIST.into()),
            Some(id) => {
                let node = self.node(id)?;
                match &node.kind {
                    Kind::Directory(_) if is_written => return Err(Errno::ISDIR.into()),
                    Kind::Directory(_) => {}
                    Kind::Link(_) => return Err(Errno::LOOP.into()),
                    _ if how.directory || place.must_be_directory => return Err(Errno::NOTDIR.into()),
                    // Never opened: there is something else behind it than a file.
                    Kind::Special(_) => return Err(Errno::NXIO.into()),
                    Kind::File(_) => {
                        if is_written {
                            self.may_write(id)?;
                        }
                        if how.truncate {
                            self.set_size(id, 0, at)?;
                        } else {
                            // Whoever may not read it hears that here.
                            self.needs_no_file(id)?;
                        }
                    }
                }
                id
            }
        };
        self.open(id)?;
        Ok(id)
    }

    /// Adds something that is new.
    fn add(&mut self, place: &Place, node: Node, at: Time) -> Ready<NodeId> {
        let name = self.may_name(place)?;
        let id = self.nodes.add(node);
        self.give(place.directory, &name, id, at)?;
        Ok(id)
    }

    /// The name that something can be given at a place.
    fn may_name(&mut self, place: &Place) -> Ready<OsString> {
        let Step::Name(name) = place.name.clone() else { return Err(Errno::EXIST.into()) };
        // An open directory that was removed.
        if self.node(place.directory)?.links == 0 {
            return Err(Errno::NOENT.into());
        }
        if name == crate::workspace::HIDDEN {
            return Err(Errno::PERM.into());
        }
        self.may_write(place.directory)?;
        self.room()?;
        Ok(name)
    }

    fn give(&mut self, directory: NodeId, name: &OsStr, id: NodeId, at: Time) -> Result<(), Errno> {
        let node = self.node_mut(id)?;
        if node.is_directory() {
            (node.parent, node.links) = (Some(directory), 1);
        } else {
            node.links += 1;
        }
        node.changed = at;
        self.set(directory, name, Some(id), at)
    }

    pub(crate) fn create_directory(&mut self, from: NodeId, path: &[u8], at: Time) -> Ready<()> {
        let place = self.walk(from, path, Last::Name)?;
        if place.node.is_some() {
            return Err(Errno::EXIST.into());
        }
        if self.depth(place.directory) >= DEPTH_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        self.add(&place, Node::new(Kind::Directory(Directory::default()), at), at).map(drop)
    }

    pub(crate) fn create_link(&mut self, from: NodeId, target: &[u8], path: &[u8], at: Time) -> Ready<()> {
        use std::os::unix::ffi::OsStringExt;
        let place = self.walk(from, path, Last::Name)?;
        match target {
            [] => return Err(Errno::NOENT.into()),
            // It would lead out of the workspace.
            [b'/', ..] => return Err(Errno::PERM.into()),
            long if long.len() > TARGET_BYTES_MAX => return Err(Errno::NAMETOOLONG.into()),
            bytes if bytes.contains(&0) => return Err(Errno::INVAL.into()),
            _ => {}
        }
        if place.node.is_some() {
            return Err(Errno::EXIST.into());
        }
        if place.must_be_directory {
            return Err(Errno::NOENT.into());
        }
        let link = Kind::Link(Some(OsString::from_vec(target.to_vec())));
        self.add(&place, Node::new(link, at), at)?;
        self.entries += target.len() / NAME_BYTES;
        Ok(())
    }

    pub(crate) fn link(&mut self, from: NodeId, path: &[u8], to: NodeId, new_path: &[u8], at: Time) -> Ready<()> {
        let id = self.find(from, path, false)?;
        let new = self.walk(to, new_path, Last::Name)?;
        if new.node.is_some() {
            return Err(Errno::EXIST.into());
        }
        if new.must_be_directory {
            return Err(Errno::NOENT.into());
        }
        if self.node(id)?.is_directory() {
            return Err(Errno::PERM.into());
        }
        let name = self.may_name(&new)?;
        Ok(self.give(new.directory, &name, id, at)?)
    }

    pub(crate) fn rename(&mut self, from: NodeId, path: &[u8], to: NodeId, new_path: &[u8], at: Time) -> Ready<()> {
        let old = self.walk(from, path, Last::Name)?;
        let new = self.walk(to, new_path, Last::Name)?;
        let (Step::Name(old_name), Step::Name(_)) = (&old.name, &new.name) else { return Err(Errno::BUSY.into()) };
        let id = old.node.ok_or(Errno::NOENT)?;
        let is_directory = self.node(id)?.is_directory();
        if !is_directory && (old.must_be_directory || new.must_be_directory) {
            return Err(Errno::NOTDIR.into());
        }
        if is_directory && self.is_within(new.directory, id) {
            return Err(Errno::INVAL.into());
        }
        if new.node == Some(id) {
            return Ok(());
        }
        if let Some(replaced) = new.node {
            match (is_directory, self.node(replaced)?.is_directory()) {
                _ if self.is_within(old.directory, replaced) => return Err(Errno::NOTEMPTY.into()),
                (true, false) => return Err(Errno::NOTDIR.into()),
                (false, true) => return Err(Errno::ISDIR.into()),
                (true, true) if !self.is_empty(replaced)? => return Err(Errno::NOTEMPTY.into()),
                _ => {}
            }
        }
        self.may_write(old.directory)?;
        self.may_leave(old.directory, id)?;
        if let Some(replaced) = new.node {
            self.may_leave(new.directory, replaced)?;
        }
        let new_name = self.may_name(&new)?;
        let links = self.node(id)?.links;
        self.set(old.directory, old_name, None, at)?;
        self.give(new.directory, &new_name, id, at)?;
        self.node_mut(id)?.links = links;
        if let Some(replaced) = new.node {
            self.unlink(replaced, at);
        }
        Ok(())
    }

    pub(crate) fn unlink_file(&mut self, from: NodeId, path: &[u8], at: Time) -> Ready<()> {
        let place = self.walk(from, path, Last::Name)?;
        let id = place.node.ok_or(Errno::NOENT)?;
        if self.node(id)?.is_directory() {
            return Err(Errno::ISDIR.into());
        }
        if place.must_be_directory {
            return Err(Errno::NOTDIR.into());
        }
        self.remove(&place, id, at)
    }

    pub(crate) fn remove_directory(&mut self, from: NodeId, path: &[u8], at: Time) -> Ready<()> {
        let place = self.walk(from, path, Last::Name)?;
        let id = place.node.ok_or(Errno::NOENT)?;
        if !self.node(id)?.is_directory() {
            return Err(Errno::NOTDIR.into());
        }
        match place.name {
            Step::Name(_) => {}
            Step::Here => return Err(Errno::INVAL.into()),
            Step::Up => return Err(Errno::NOTEMPTY.into()),
        }
        if !self.is_empty(id)? {
            return Err(Errno::NOTEMPTY.into());
        }
        self.remove(&place, id, at)
    }

    fn remove(&mut self, place: &Place, id: NodeId, at: Time) -> Ready<()> {
        self.may_write(place.directory)?;
        self.may_leave(place.directory, id)?;
        let Step::Name(name) = &place.name else { return Err(Errno::INVAL.into()) };
        self.set(place.directory, name, None, at)?;
        self.unlink(id, at);
        Ok(())
    }

    /// Whether something may go away from where it is: a commit takes it into the stage first, which changes the `..` of a
    /// directory, and leaves a sticky one alone to the owners.
    fn may_leave(&self, directory: NodeId, id: NodeId) -> Ready<()> {
        let node = self.node(id)?;
        if node.is_directory() {
            self.may_write(id)?;
        }
        if let (Some(from), Some(above)) = (&node.origin, &self.node(directory)?.origin)
            && !from.stamp.may_be_taken_from(&above.stamp)
        {
            return Err(Errno::PERM.into());
        }
        Ok(())
    }

    /// Whether a directory is another one or somewhere below it.
    fn is_within(&self, directory: NodeId, other: NodeId) -> bool {
        let mut here = Some(directory);
        while let Some(id) = here {
            if id == other {
                return true;
            }
            here = self.nodes.get(id).and_then(|node| node.parent);
        }
        false
    }

    fn depth(&self, directory: NodeId) -> usize {
        let above = |id: &NodeId| self.nodes.get(*id).and_then(|node| node.parent);
        std::iter::successors(Some(directory), above).take(DEPTH_MAX).count()
    }

    fn is_empty(&self, id: NodeId) -> Ready<bool> {
        let listed = self.listed(id)?;
        let entries = &self.directory(id)?.entries;
        let is_gone = |name: &OsStr| entries.get(name).is_some_and(|entry| entry.now.is_none());
        Ok(listed.iter().all(|(name, _)| is_gone(name)) && entries.values().all(|entry| entry.now.is_none()))
    }

    /// What the base has in a directory.
    fn listed(&self, id: NodeId) -> Ready<Arc<Listed>> {
        let node = self.node(id)?;
        match (&node.origin, &self.directory(id)?.listed) {
            (None, _) => Ok(Arc::default()),
            (Some(_), Some(listed)) => Ok(Arc::clone(listed)),
            (Some(origin), None) => {
                let names_max = self.limits.entries_max.saturating_sub(self.entries).saturating_mul(NAME_LISTED);
                Err(Unready::Need(Need::List { directory: id, path: origin.path.clone(), names_max }))
            }
        }
    }

    /// What is in a directory, in order.
    pub(crate) fn list(&self, id: NodeId) -> Ready<Listed> {
        let mut all: BTreeMap<OsString, FileType> = self.listed(id)?.iter().cloned().collect();
        for (name, entry) in &self.directory(id)?.entries {
            match entry.now {
                Some(node) => {
                    all.insert(name.clone(), self.node(node)?.file_type());
                }
                None => {
                    all.remove(name);
                }
            }
        }
        Ok(all.into_iter().collect())
    }

    pub(crate) fn status(&mut self, id: NodeId) -> Ready<Status> {
        use std::os::unix::ffi::OsStrExt;
        let size = match &self.node(id)?.kind {
            Kind::File(content) => content.size,
            Kind::Link(_) => self.target(id)?.as_bytes().len() as u64,
            Kind::Directory(_) | Kind::Special(_) => self.node(id)?.origin.as_ref().map_or(0, |from| from.stamp.size),
        };
        let node = self.node(id)?;
        Ok(Status {
            kind: node.file_type(),
            size,
            links: node.links,
            accessed: node.accessed,
            modified: node.modified,
            changed: node.changed,
        })
    }

    pub(crate) fn status_at(&mut self, from: NodeId, path: &[u8], follow: bool) -> Ready<Status> {
        let id = self.find(from, path, follow)?;
        self.status(id)
    }

    pub(crate) fn read_link(&mut self, from: NodeId, path: &[u8]) -> Ready<OsString> {
        let id = self.find(from, path, false)?;
        self.target(id)
    }

    /// `None`: as it is.
    pub(crate) fn set_times(
        &mut self,
        id: NodeId,
        accessed: Option<Time>,
        modified: Option<Time>,
        at: Time,
    ) -> Ready<()> {
        self.may_write(id)?;
        if accessed.is_none() && modified.is_none() {
            return Ok(());
        }
        let node = self.node_mut(id)?;
        let is_first = !std::mem::replace(&mut node.has_times, true);
        node.accessed = accessed.unwrap_or(node.accessed);
        node.modified = modified.unwrap_or(node.modified);
        node.changed = at;
        self.changes += u64::from(is_first);
        Ok(())
    }

    pub(crate) fn set_times_at(
        &mut self,
        from: NodeId,
        path: &[u8],
        follow: bool,
        times: (Option<Time>, Option<Time>),
        at: Time,
    ) -> Ready<()> {
        let id = self.find(from, path, follow)?;
        self.set_times(id, times.0, times.1, at)
    }

    /// The same for the same file or directory, as long as the transaction lasts.
    pub(crate) fn identity(&self, id: NodeId) -> Result<(u64, u64), Errno> {
        let node = self.node(id)?;
        Ok(node.origin.as_ref().map_or((u64::MAX, id.number()), |origin| origin.stamp.identity()))
    }

    pub(crate) fn identity_at(&mut self, from: NodeId, path: &[u8], follow: bool) -> Ready<(u64, u64)> {
        let id = self.find(from, path, follow)?;
        Ok(self.identity(id)?)
    }

    pub(crate) fn kind(&self, id: NodeId) -> Result<FileType, Errno> {
        Ok(self.node(id)?.file_type())
    }
}
