//! The content of one file as a call sees it: blocks that it has written, over what the base has.
//!
//! Invariant: a block that is here is complete, so what it holds never depends on the base any more; and nothing is ever
//! taken from the base beyond `base_size`, which only shrinks.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use rustix::io::Errno;

/// Length of a block (bytes).
pub(super) const BLOCK_BYTES: usize = 64 << 10;
/// As large as the kernel's own files.
pub(super) const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// The content of one file.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) size: u64,
    /// How much of the base's content shows through (bytes).
    pub(super) base_size: u64,
    blocks: BTreeMap<u64, Block>,
    pub(super) is_changed: bool,
    /// The base's file, while somebody has this one open.
    pub(super) file: Option<Arc<File>>,
}

/// Bytes after the end of one in memory are zero.
#[derive(Clone, Debug)]
pub(super) enum Block {
    Memory(Arc<Vec<u8>>),
    Spilled(Slot),
}

/// What a block costs beside its bytes, so that many short ones are not for nothing (bytes).
pub(super) const BLOCK_OVERHEAD_BYTES: usize = 256;

/// A place for one block in the spill file, for as long as that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot {
    /// No other has this.
    pub(crate) number: u64,
    pub(crate) at: u64,
    /// A power of two. What the block does not fill is zero.
    pub(crate) bytes: u32,
}

/// What has to be there before a write can be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// A block of the base.
    Base(u64),
    Spilled(Slot, u64),
}

/// A part of what was asked for.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Memory(Arc<Vec<u8>>, Range<usize>),
    Base { file: Arc<File>, at: u64, bytes: usize },
    Spilled { at: u64, bytes: usize },
    Zeroes(usize),
}

/// What a change did to the memory that is in use.
#[derive(Debug, Default)]
pub(super) struct Delta {
    pub(super) bytes: i64,
    pub(super) new_blocks: Vec<u64>,
    pub(super) freed: Vec<Slot>,
}

impl Content {
    pub(super) fn of_base(size: u64) -> Self {
        Self { size, base_size: size, ..Self::default() }
    }

    /// Where the bytes are; `None`, if the base's file has to be opened first.
    pub(super) fn pieces(&self, offset: u64, bytes: usize) -> Option<Vec<Piece>> {
        let end = offset.saturating_add(bytes as u64).min(self.size);
        let (mut at, mut pieces) = (offset, Vec::new());
        while at < end {
            let (number, within) = (at / BLOCK_BYTES as u64, (at % BLOCK_BYTES as u64) as usize);
            let length = (BLOCK_BYTES - within).min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let length = match self.blocks.get(&number) {
                Some(Block::Memory(data)) => {
                    let there = data.len().saturating_sub(within).min(length);
                    if there > 0 {
                        pieces.push(Piece::Memory(Arc::clone(data), within..within + there));
                    }
                    if there < length {
                        pieces.push(Piece::Zeroes(length - there));
                    }
                    length
                }
                Some(Block::Spilled(slot)) => {
                    let there = (slot.bytes as usize).saturating_sub(within).min(length);
                    if there > 0 {
                        pieces.push(Piece::Spilled { at: slot.at + within as u64, bytes: there });
                    }
                    if there < length {
                        pieces.push(Piece::Zeroes(length - there));
                    }
                    length
                }
                None => {
                    // All that is not written up to the next block that is.
                    let next =
                        self.blocks.range(number..).next().map_or(u64::MAX, |(next, _)| next * BLOCK_BYTES as u64);
                    let until = next.min(end);
                    if at < self.base_size {
                        let until = until.min(self.base_size);
                        let bytes = usize::try_from(until - at).unwrap_or(usize::MAX);
                        pieces.push(Piece::Base { file: Arc::clone(self.file.as_ref()?), at, bytes });
                        bytes
                    } else {
                        let bytes = usize::try_from(until - at).unwrap_or(usize::MAX);
                        pieces.push(Piece::Zeroes(bytes));
                        bytes
                    }
                }
            };
            at += length as u64;
        }
        Some(pieces)
    }

    /// What has to be supplied before these bytes can be written.
    pub(super) fn missing(&self, offset: u64, bytes: usize) -> Option<Missing> {
        let end = offset.saturating_add(bytes as u64);
        // Only the first and the last block can be written in part.
        let edges = [offset / BLOCK_BYTES as u64, end.saturating_sub(1) / BLOCK_BYTES as u64];
        edges.into_iter().find_map(|number| {
            let from = number * BLOCK_BYTES as u64;
            let there = from + BLOCK_BYTES as u64;
            match self.blocks.get(&number) {
                Some(Block::Memory(_)) => None,
                Some(Block::Spilled(slot)) => {
                    let covered = offset <= from && end >= there.min(self.size);
                    (!covered).then_some(Missing::Spilled(*slot, number))
                }
                None => {
                    let covered = offset <= from && end >= there.min(self.base_size);
                    (from < self.base_size && !covered).then_some(Missing::Base(number))
                }
            }
        })
    }

    /// Puts in place what was missing.
    pub(super) fn supply(&mut self, number: u64, data: Vec<u8>) -> Delta {
        let mut delta = Delta::default();
        self.put(number, data, &mut delta);
        delta
    }

    /// How much of a block the base has (bytes).
    pub(super) fn base_part(&self, number: u64) -> (u64, usize) {
        let from = number * BLOCK_BYTES as u64;
        (from, usize::try_from(self.base_size.saturating_sub(from)).unwrap_or(usize::MAX).min(BLOCK_BYTES))
    }

    /// Writes. Nothing may be missing.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<Delta, Errno> {
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= FILE_BYTES_MAX).ok_or(Errno::FBIG)?;
        let mut delta = Delta::default();
        let mut rest = bytes;
        let mut at = offset;
        while !rest.is_empty() {
            let (number, within) = (at / BLOCK_BYTES as u64, (at % BLOCK_BYTES as u64) as usize);
            let (chunk, after) = rest.split_at(rest.len().min(BLOCK_BYTES - within));
            match self.blocks.get_mut(&number) {
                Some(Block::Memory(data)) => {
                    let data = Arc::make_mut(data);
                    let before = data.len();
                    data.resize(before.max(within + chunk.len()), 0);
                    data[within..within + chunk.len()].copy_from_slice(chunk);
                    delta.bytes += (data.len() - before) as i64;
                }
                _ => {
                    let mut data = vec![0; within];
                    data.extend_from_slice(chunk);
                    self.put(number, data, &mut delta);
                }
            }
            (at, rest) = (at + chunk.len() as u64, after);
        }
        self.size = self.size.max(end);
        self.is_changed = true;
        Ok(delta)
    }

    fn put(&mut self, number: u64, data: Vec<u8>, delta: &mut Delta) {
        delta.bytes += cost(&data);
        match self.blocks.insert(number, Block::Memory(Arc::new(data))) {
            Some(Block::Spilled(slot)) => delta.freed.push(slot),
            Some(Block::Memory(old)) => delta.bytes -= cost(&old),
            None => {}
        }
        delta.new_blocks.push(number);
    }

    /// What has to be supplied before the file can be given this size.
    pub(super) fn missing_for_size(&self, size: u64) -> Option<Missing> {
        let number = size / BLOCK_BYTES as u64;
        match self.blocks.get(&number) {
            Some(Block::Spilled(slot)) if size < self.size && !size.is_multiple_of(BLOCK_BYTES as u64) => {
                Some(Missing::Spilled(*slot, number))
            }
            _ => None,
        }
    }

    pub(super) fn set_size(&mut self, size: u64) -> Result<Delta, Errno> {
        if size > FILE_BYTES_MAX {
            return Err(Errno::FBIG);
        }
        let mut delta = Delta::default();
        if size < self.size {
            let beyond = self.blocks.split_off(&size.div_ceil(BLOCK_BYTES as u64));
            for block in beyond.into_values() {
                match block {
                    Block::Memory(data) => delta.bytes -= cost(&data),
                    Block::Spilled(slot) => delta.freed.push(slot),
                }
            }
            if let Some(Block::Memory(data)) = self.blocks.get_mut(&(size / BLOCK_BYTES as u64)) {
                let before = data.len();
                Arc::make_mut(data).truncate((size % BLOCK_BYTES as u64) as usize);
                delta.bytes -= (before - data.len()) as i64;
            }
            self.base_size = self.base_size.min(size);
        }
        self.is_changed |= size != self.size;
        self.size = size;
        Ok(delta)
    }

    /// Whether a block is still not there, and this is what the base has of it.
    pub(super) fn lacks(&self, number: u64, at: u64, bytes: usize) -> bool {
        !self.blocks.contains_key(&number) && self.base_part(number) == (at, bytes)
    }

    /// Whether a block is still in this slot.
    pub(super) fn is_in(&self, number: u64, slot: Slot) -> bool {
        matches!(self.blocks.get(&number), Some(Block::Spilled(now)) if *now == slot)
    }

    /// The block, if it is in memory.
    pub(super) fn in_memory(&self, number: u64) -> Option<&Arc<Vec<u8>>> {
        match self.blocks.get(&number) {
            Some(Block::Memory(data)) => Some(data),
            _ => None,
        }
    }

    /// The block was written to the spill file, unless it was changed meanwhile. How much memory that frees (bytes).
    pub(super) fn spilled(&mut self, number: u64, data: &Arc<Vec<u8>>, slot: Slot) -> Option<u64> {
        let block = self.blocks.get_mut(&number)?;
        match block {
            Block::Memory(now) if Arc::ptr_eq(now, data) => {
                *block = Block::Spilled(slot);
                Some(cost(data).unsigned_abs())
            }
            _ => None,
        }
    }

    /// Its blocks, in memory or not.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> {
        self.blocks.keys().copied()
    }

    /// What it holds in memory (bytes) and in the spill file, when it goes.
    pub(super) fn held(&self) -> Delta {
        let mut delta = Delta::default();
        for block in self.blocks.values() {
            match block {
                Block::Memory(data) => delta.bytes -= cost(data),
                Block::Spilled(slot) => delta.freed.push(*slot),
            }
        }
        delta
    }
}

/// What a block in memory counts (bytes).
fn cost(data: &[u8]) -> i64 {
    (data.len() + BLOCK_OVERHEAD_BYTES) as i64
}
