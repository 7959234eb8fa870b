//! What is in files: reading, writing, and where it is kept.

use std::collections::HashSet;
use std::sync::Arc;

use rustix::io::Errno;

use super::{Need, OPEN_FILES_MAX, Overlay, Ready, Spill, Unready};
use crate::workspace::base::Time;
use crate::workspace::content::{BLOCK_BYTES, BLOCK_OVERHEAD_BYTES, Content, FILE_BYTES_MAX, Missing, Piece, Slot};
use crate::workspace::node::{Kind, Node, NodeId};

/// What may stay in memory at least (bytes): half of it stays, so that what a write needs is never what leaves.
pub(super) const MEMORY_BYTES_MIN: u64 = 8 * BLOCK_BYTES as u64;
/// What leaves the memory at once, at most (bytes).
const SPILL_BYTES: u64 = 4 << 20;
/// The smallest place in the spill file (bytes).
const SLOT_BYTES_MIN: usize = 4 << 10;
/// Blocks in memory, before anybody looks which of them are still there.
pub(super) const SWEEP_MIN: usize = 4096;

impl Overlay {
    fn content(&self, id: NodeId) -> Result<&Content, Errno> {
        match &self.node(id)?.kind {
            Kind::File(content) => Ok(content),
            Kind::Directory(_) => Err(Errno::ISDIR),
            Kind::Link(_) | Kind::Special(_) => Err(Errno::BADF),
        }
    }

    fn content_mut(&mut self, id: NodeId) -> Result<&mut Content, Errno> {
        match &mut self.node_mut(id)?.kind {
            Kind::File(content) => Ok(content),
            _ => Err(Errno::BADF),
        }
    }

    pub(crate) fn size(&self, id: NodeId) -> Result<u64, Errno> {
        Ok(self.content(id)?.size)
    }

    /// Where these bytes are; fewer, where the file ends.
    pub(crate) fn read(&self, id: NodeId, offset: u64, bytes: usize) -> Ready<Vec<Piece>> {
        let node = self.node(id)?;
        match self.content(id)?.pieces(offset, bytes) {
            Some(pieces) => Ok(pieces),
            None => Err(self.needs_file(id, node)),
        }
    }

    /// Nothing of the base's file is read any more, or it is open.
    pub(super) fn needs_no_file(&self, id: NodeId) -> Ready<()> {
        let content = self.content(id)?;
        if content.base_size == 0 || content.file.is_some() { Ok(()) } else { Err(self.needs_file(id, self.node(id)?)) }
    }

    fn needs_file(&self, id: NodeId, node: &Node) -> Unready {
        match &node.origin {
            None => Unready::Error(Errno::BADF),
            Some(_) if self.open_files >= OPEN_FILES_MAX => Unready::Error(Errno::MFILE),
            Some(origin) => Unready::Need(Need::File { node: id, path: origin.path.clone(), stamp: origin.stamp }),
        }
    }

    /// Writes, and says where it did: at the end, if no offset is given.
    pub(crate) fn write(&mut self, id: NodeId, offset: Option<u64>, bytes: &[u8], at: Time) -> Ready<u64> {
        let size = self.size(id)?;
        let offset = offset.unwrap_or(size);
        if bytes.is_empty() {
            return Ok(offset);
        }
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > FILE_BYTES_MAX) {
            return Err(Errno::FBIG.into());
        }
        self.make_room(bytes.len())?;
        let missing = self.content(id)?.missing(offset, bytes.len());
        self.missing(id, missing)?;
        let content = self.content_mut(id)?;
        let is_first = !content.is_changed;
        let delta = content.write(offset, bytes)?;
        self.account(id, delta);
        self.changed(id, is_first, at)?;
        Ok(offset)
    }

    pub(crate) fn set_size(&mut self, id: NodeId, size: u64, at: Time) -> Ready<()> {
        let content = self.content(id)?;
        if content.size == size {
            return Ok(());
        }
        let missing = content.missing_for_size(size);
        self.missing(id, missing)?;
        let content = self.content_mut(id)?;
        let is_first = !content.is_changed;
        let delta = content.set_size(size)?;
        self.account(id, delta);
        self.changed(id, is_first, at)?;
        Ok(())
    }

    fn changed(&mut self, id: NodeId, is_first: bool, at: Time) -> Result<(), Errno> {
        self.changes += u64::from(is_first);
        self.node_mut(id)?.touch(at);
        Ok(())
    }

    fn missing(&self, id: NodeId, missing: Option<Missing>) -> Ready<()> {
        let Some(missing) = missing else { return Ok(()) };
        let content = self.content(id)?;
        Err(match missing {
            Missing::Spilled(slot, number) => Unready::Need(Need::Unspill { node: id, number, slot }),
            Missing::Base(number) => match &content.file {
                None => self.needs_file(id, self.node(id)?),
                Some(file) => {
                    let (at, bytes) = content.base_part(number);
                    Unready::Need(Need::Block { node: id, number, file: Arc::clone(file), at, bytes })
                }
            },
        })
    }

    /// `is_wanted`: it may have been written, cut or put elsewhere since it was asked for.
    pub(super) fn filled(&mut self, id: NodeId, number: u64, data: Vec<u8>, is_wanted: impl FnOnce(&Content) -> bool) {
        let Ok(content) = self.content_mut(id) else { return };
        if is_wanted(content) {
            let delta = content.supply(number, data);
            self.account(id, delta);
        }
    }

    /// Room for this much more, at most.
    fn make_room(&mut self, bytes: usize) -> Ready<()> {
        if self.memory_bytes > self.limits.memory_bytes_max {
            let blocks = self.oldest(self.memory_bytes - self.limits.memory_bytes_max / 2);
            if !blocks.is_empty() {
                return Err(Unready::Need(Need::Spill { blocks, age: self.age }));
            }
        }
        if self.held_bytes() + self.unused_bytes + bytes as u64 > self.limits.bytes_max {
            return Err(Errno::DQUOT.into());
        }
        Ok(())
    }

    /// Takes the oldest blocks off the list of those in memory, and finds a place for them.
    fn oldest(&mut self, bytes_max: u64) -> Vec<Spill> {
        let (mut blocks, mut bytes) = (Vec::new(), 0);
        while bytes < bytes_max.min(SPILL_BYTES) {
            let Some((node, number)) = self.in_memory.pop_front() else { break };
            let Some(data) = self.content(node).ok().and_then(|content| content.in_memory(number)).cloned() else {
                continue;
            };
            bytes += (data.len() + BLOCK_OVERHEAD_BYTES) as u64;
            blocks.push(Spill { node, number, slot: self.slot(data.len()), data });
        }
        blocks
    }

    fn slot(&mut self, bytes: usize) -> Slot {
        let bytes = bytes.next_power_of_two().clamp(SLOT_BYTES_MIN, BLOCK_BYTES) as u32;
        self.spilled_bytes += u64::from(bytes);
        self.slots += 1;
        let number = self.slots;
        if let Some(at) = self.free.iter().rposition(|slot| slot.bytes == bytes) {
            return Slot { number, ..self.free.swap_remove(at) };
        }
        let slot = Slot { number, at: self.spill_end, bytes };
        self.spill_end += u64::from(bytes);
        slot
    }

    pub(super) fn spilled(&mut self, blocks: Vec<Spill>) {
        for Spill { node, number, slot, data } in blocks {
            let freed = self.content_mut(node).ok().and_then(|content| content.spilled(number, &data, slot));
            match freed {
                Some(bytes) => self.memory_bytes = self.memory_bytes.saturating_sub(bytes),
                // Changed meanwhile.
                None => {
                    self.give_back(slot);
                    self.remember(node, [number]);
                }
            }
        }
    }

    pub(super) fn remember(&mut self, node: NodeId, blocks: impl IntoIterator<Item = u64>) {
        self.in_memory.extend(blocks.into_iter().map(|number| (node, number)));
        if self.in_memory.len() < self.sweep_at {
            return;
        }
        let mut there = HashSet::new();
        let mut all = std::mem::take(&mut self.in_memory);
        all.retain(|(node, number)| {
            let is_there = self.content(*node).is_ok_and(|content| content.in_memory(*number).is_some());
            is_there && there.insert((*node, *number))
        });
        self.sweep_at = SWEEP_MIN.max(2 * all.len());
        self.in_memory = all;
    }
}
