//! An overlay in use: fetches what it lacks, without waiting for a disk on the thread of a guest.
//!
//! Invariant: the lock is held while the overlay computes, never while anything is read or written.

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::runtime::Handle;

use super::base::{Base, Listed, Wait};
use super::content::Piece;
use super::node::NodeId;
use super::overlay::{Need, Overlay, Ready, Spill, Supply, Unready};

/// What one operation may lack, one after the other: a path has at most some 80,000 steps with all links followed.
const NEEDS_MAX: usize = 100_000;
/// Read at once (bytes).
pub(crate) const READ_BYTES_MAX: usize = 1 << 20;

/// One call's view of a workspace.
#[derive(Debug)]
pub(crate) struct Files {
    pub(super) base: Arc<Base>,
    overlay: Mutex<Overlay>,
    tally: Arc<Tally>,
    spill: Arc<SpillFile>,
    io: Handle,
}

/// What a call has changed and not committed, in all its workspaces, for whoever looks on.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    files: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    /// Names and files changed, and the bytes of that.
    pub(crate) fn get(&self) -> (u64, u64) {
        (self.files.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// One workspace has come from here to there. By the call's worker, or for it.
    fn add(&self, before: (u64, u64), after: (u64, u64)) {
        if before != after {
            self.files.fetch_add(after.0.wrapping_sub(before.0), Ordering::Relaxed);
            self.bytes.fetch_add(after.1.wrapping_sub(before.1), Ordering::Relaxed);
        }
    }
}

/// A file without a name for what does not stay in memory, made when it is needed.
#[derive(Debug)]
struct SpillFile {
    folder: PathBuf,
    file: OnceLock<File>,
}

impl SpillFile {
    fn file(&self) -> std::io::Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = tempfile::tempfile_in(&self.folder)?;
        Ok(self.file.get_or_init(|| file))
    }
}

impl Files {
    pub(crate) fn new(
        base: Arc<Base>,
        overlay: Overlay,
        tally: Arc<Tally>,
        spill_folder: PathBuf,
        io: Handle,
    ) -> Arc<Self> {
        let spill = Arc::new(SpillFile { folder: spill_folder, file: OnceLock::new() });
        Arc::new(Self { base, overlay: Mutex::new(overlay), tally, spill, io })
    }

    pub(crate) fn overlay(&self) -> MutexGuard<'_, Overlay> {
        self.overlay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counted<T>(&self, work: impl FnOnce(&mut Overlay) -> T) -> T {
        let mut overlay = self.overlay();
        let before = overlay.changes();
        let done = work(&mut overlay);
        self.tally.add(before, overlay.changes());
        done
    }

    /// Does something to the overlay, once everything that it lacks is there.
    pub(crate) async fn run<T>(&self, mut work: impl FnMut(&mut Overlay) -> Ready<T>) -> Result<T, Errno> {
        for _ in 0..NEEDS_MAX {
            let need = match self.counted(&mut work) {
                Ok(done) => return Ok(done),
                Err(Unready::Error(error)) => return Err(error),
                Err(Unready::Need(need)) => need,
            };
            let supply = match fetch_now(&self.base, &need) {
                Some(supply) => supply,
                None => {
                    let (base, spill, need) = (Arc::clone(&self.base), Arc::clone(&self.spill), need.clone());
                    self.blocking(move || fetch(&base, &spill, &need)).await
                }
            };
            self.overlay().supply(need, supply)?;
        }
        Err(Errno::IO)
    }

    /// As `run`, on a thread that may wait.
    pub(crate) fn run_here<T>(&self, mut work: impl FnMut(&mut Overlay) -> Ready<T>) -> Result<T, Errno> {
        for _ in 0..NEEDS_MAX {
            let need = match self.counted(&mut work) {
                Ok(done) => return Ok(done),
                Err(Unready::Error(error)) => return Err(error),
                Err(Unready::Need(need)) => need,
            };
            let supply = fetch(&self.base, &self.spill, &need);
            self.overlay().supply(need, supply)?;
        }
        Err(Errno::IO)
    }

    /// Reads what is there, up to so many bytes. Nothing: the file ends here.
    pub(crate) async fn read(&self, node: NodeId, offset: u64, bytes: usize) -> Result<Vec<u8>, Errno> {
        let bytes = bytes.min(READ_BYTES_MAX);
        let pieces = self.run(|overlay| overlay.read(node, offset, bytes)).await?;
        let (data, rest) = gather_now(&pieces);
        if rest.is_empty() {
            return Ok(data);
        }
        let (spill, rest) = (Arc::clone(&self.spill), rest.to_vec());
        self.blocking(move || gather(data, &rest, &spill)).await
    }

    /// As `read`, on a thread that may wait.
    pub(crate) fn read_here(&self, node: NodeId, offset: u64, bytes: usize) -> Result<Vec<u8>, Errno> {
        let bytes = bytes.min(READ_BYTES_MAX);
        let pieces = self.run_here(|overlay| overlay.read(node, offset, bytes))?;
        gather(Vec::with_capacity(bytes), &pieces, &self.spill)
    }

    /// The base has become what the overlay shows.
    pub(super) fn rebase(&self) {
        self.counted(|overlay| overlay.rebase(&self.base));
    }

    /// What is in a directory. It may be much, so it is put together on a thread that may take its time.
    pub(crate) async fn list(self: &Arc<Self>, node: NodeId) -> Result<Listed, Errno> {
        let files = Arc::clone(self);
        self.blocking(move || files.run_here(|overlay| overlay.list(node))).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Errno> + Send + 'static,
    ) -> Result<T, Errno> {
        self.io.spawn_blocking(work).await.unwrap_or(Err(Errno::IO))
    }
}

/// What is in the kernel's memory already; `None`, if that has to be waited for.
fn fetch_now(base: &Base, need: &Need) -> Option<Result<Supply, Errno>> {
    let supply = match need {
        Need::Look { path, .. } => base.look(path, Wait::Never).map(Supply::Found),
        Need::File { path, stamp, .. } => base.file(path, stamp, Wait::Never).map(Supply::File),
        Need::Block { file, at, bytes, .. } => {
            let mut data = vec![0; *bytes];
            match preadv2(file, &mut [IoSliceMut::new(&mut data)], *at, ReadWriteFlags::NOWAIT) {
                Ok(read) if read == *bytes => Ok(Supply::Bytes(data)),
                _ => return None,
            }
        }
        _ => return None,
    };
    // Not there, or a kernel that cannot say.
    (!matches!(supply, Err(Errno::AGAIN | Errno::INVAL))).then_some(supply)
}

fn fetch(base: &Base, spill: &SpillFile, need: &Need) -> Result<Supply, Errno> {
    Ok(match need {
        Need::Look { path, .. } => Supply::Found(base.look(path, Wait::Allowed)?),
        Need::List { path, .. } => Supply::Listed(base.list(path)?),
        Need::Target { path, .. } => Supply::Target(base.link(path)?),
        Need::File { path, stamp, .. } => Supply::File(base.file(path, stamp, Wait::Allowed)?),
        Need::MayWrite { path, .. } => Supply::MayWrite(base.may_write(path)?),
        Need::Block { file, at, bytes, .. } => Supply::Bytes(exactly(file, *at, *bytes)?),
        Need::Unspill { slot, .. } => {
            let file = spill.file().map_err(errno)?;
            Supply::Bytes(exactly(file, slot.at, slot.bytes as usize)?)
        }
        Need::Spill(blocks) => {
            let file = spill.file().map_err(errno)?;
            blocks.iter().try_for_each(|block| write_block(file, block)).map_err(errno)?;
            Supply::Spilled
        }
    })
}

fn write_block(file: &File, Spill { slot, data, .. }: &Spill) -> std::io::Result<()> {
    file.write_all_at(data, slot.at)?;
    // What was here before may not show through.
    let padding = vec![0; slot.bytes as usize - data.len()];
    file.write_all_at(&padding, slot.at + data.len() as u64)
}

/// Others may have cut the file, which the commit will find; here it has the length that it had.
fn exactly(file: &File, at: u64, bytes: usize) -> Result<Vec<u8>, Errno> {
    let mut data = vec![0; bytes];
    let mut done = 0;
    while done < bytes {
        match file.read_at(&mut data[done..], at + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(errno(error)),
        }
    }
    Ok(data)
}

/// What can be had without waiting, and the pieces after that.
fn gather_now(pieces: &[Piece]) -> (Vec<u8>, &[Piece]) {
    let mut data = Vec::new();
    for (number, piece) in pieces.iter().enumerate() {
        match piece {
            Piece::Memory(block, range) => data.extend_from_slice(&block[range.clone()]),
            Piece::Zeroes(bytes) => data.resize(data.len() + bytes, 0),
            Piece::Base { file, at, bytes } => {
                let before = data.len();
                data.resize(before + bytes, 0);
                let read = preadv2(file, &mut [IoSliceMut::new(&mut data[before..])], *at, ReadWriteFlags::NOWAIT);
                let read = read.unwrap_or(0);
                if read < *bytes {
                    // A shorter answer is an answer.
                    data.truncate(before + read);
                    return if data.is_empty() { (data, &pieces[number..]) } else { (data, &[]) };
                }
            }
            Piece::Spilled { .. } => return if data.is_empty() { (data, &pieces[number..]) } else { (data, &[]) },
        }
    }
    (data, &[])
}

fn gather(mut data: Vec<u8>, pieces: &[Piece], spill: &SpillFile) -> Result<Vec<u8>, Errno> {
    for piece in pieces {
        match piece {
            Piece::Memory(block, range) => data.extend_from_slice(&block[range.clone()]),
            Piece::Zeroes(bytes) => data.resize(data.len() + bytes, 0),
            Piece::Base { file, at, bytes } => data.extend(exactly(file, *at, *bytes)?),
            Piece::Spilled { at, bytes } => data.extend(exactly(spill.file().map_err(errno)?, *at, *bytes)?),
        }
    }
    Ok(data)
}

pub(super) fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// Copies what a file holds.
pub(super) fn copy_here(files: &Files, node: NodeId, size: u64, to: &mut File) -> Result<(), Errno> {
    let mut at = 0;
    while at < size {
        let data = files.read_here(node, at, READ_BYTES_MAX)?;
        if data.is_empty() {
            return Err(Errno::IO);
        }
        to.write_all(&data).map_err(errno)?;
        at += data.len() as u64;
    }
    Ok(())
}
