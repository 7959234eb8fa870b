//! An overlay in use: fetches what it lacks, without waiting for a disk on the thread of a guest.
//!
//! Invariant: the lock is held while the overlay computes, never while anything is read or written; except after a commit,
//! when no guest runs.

use std::ffi::OsString;
use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::FileType;
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::base::{Base, Wait};
use super::content::Piece;
use super::node::NodeId;
use super::overlay::{Before, Need, Overlay, Ready, Spill, Supply, Unready};

/// What one operation may lack, one after the other: something for each step of two paths, and more than enough for a file.
const NEEDS_MAX: usize = 100_000;
/// Of those, between two moments at which the call can be stopped.
const NEEDS_BETWEEN: usize = 4;
/// Names in the listings that one call holds.
const LISTED_MAX: u64 = 1 << 20;
/// Read at once (bytes).
pub(crate) const READ_BYTES_MAX: usize = 1 << 20;

/// One call's view of a workspace.
#[derive(Debug)]
pub(crate) struct Files {
    pub(super) base: Arc<Base>,
    overlay: Mutex<Overlay>,
    /// What the overlay was before each of the calls that work on it now, one invoked by the other.
    before: Mutex<Vec<Before>>,
    /// Those of the call, and those of this workspace.
    tally: Arc<Tally>,
    own: Tally,
    /// Something was changed by others since it was read.
    lost: OnceLock<String>,
    spill: Mutex<Arc<SpillFile>>,
    /// Names in listings that somebody holds.
    listed: AtomicU64,
    io: Handle,
}

/// What is in a directory, for as long as somebody reads it.
#[derive(Debug)]
pub(crate) struct Listing {
    files: Arc<Files>,
    names: u64,
    left: std::vec::IntoIter<(OsString, FileType)>,
}

impl Iterator for Listing {
    type Item = (OsString, FileType);

    fn next(&mut self) -> Option<Self::Item> {
        self.left.next()
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.files.listed.fetch_sub(self.names, Ordering::Relaxed);
    }
}

/// Work on a thread that may wait, of which nobody wants to hear any more: if it has not begun, it never does.
struct Abandoned<T>(JoinHandle<T>);

impl<T> Drop for Abandoned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
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
    fn new(folder: PathBuf) -> Arc<Self> {
        Arc::new(Self { folder, file: OnceLock::new() })
    }

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
        let spill = Mutex::new(SpillFile::new(spill_folder));
        let (own, lost) = (Tally::default(), OnceLock::new());
        let (overlay, before) = (Mutex::new(overlay), Mutex::default());
        Arc::new(Self { base, overlay, before, tally, own, lost, spill, listed: AtomicU64::new(0), io })
    }

    pub(crate) fn overlay(&self) -> MutexGuard<'_, Overlay> {
        self.overlay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counted<T>(&self, work: impl FnOnce(&mut Overlay) -> T) -> T {
        let mut overlay = self.overlay();
        let before = overlay.changes();
        let done = work(&mut overlay);
        let after = overlay.changes();
        self.tally.add(before, after);
        self.own.add(before, after);
        if let Some(what) = overlay.lost() {
            self.lost.get_or_init(|| what.to_owned());
        }
        done
    }

    /// Names and files changed, and the bytes of that; without waiting for whoever works on the overlay.
    pub(crate) fn changed(&self) -> (u64, u64) {
        self.own.get()
    }

    /// What was changed by others since it was read.
    pub(crate) fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }

    fn spill(&self) -> Arc<SpillFile> {
        Arc::clone(&self.spill.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What came of it, or what it lacks.
    fn attempt<T>(&self, work: impl FnOnce(&mut Overlay) -> Ready<T>) -> Result<Result<T, Need>, Errno> {
        match self.counted(work) {
            Ok(done) => Ok(Ok(done)),
            Err(Unready::Need(need)) => Ok(Err(need)),
            Err(Unready::Error(error)) => Err(error),
        }
    }

    /// Does something to the overlay, once everything that it lacks is there.
    pub(crate) async fn run<T>(&self, mut work: impl FnMut(&mut Overlay) -> Ready<T>) -> Result<T, Errno> {
        for number in 1..=NEEDS_MAX {
            let need = match self.attempt(&mut work)? {
                Ok(done) => return Ok(done),
                Err(need) => need,
            };
            let supply = match fetch_now(&self.base, &need) {
                Some(supply) => supply,
                None => {
                    let (base, spill, need) = (Arc::clone(&self.base), self.spill(), need.clone());
                    self.blocking(move || fetch(&base, &spill, &need)).await
                }
            };
            self.counted(|overlay| overlay.supply(need, supply))?;
            if number % NEEDS_BETWEEN == 0 {
                // A long path is begun again for each part of it that is not known yet.
                tokio::task::yield_now().await;
            }
        }
        Err(Errno::IO)
    }

    /// As `run`, on a thread that may wait.
    pub(crate) fn run_here<T>(&self, mut work: impl FnMut(&mut Overlay) -> Ready<T>) -> Result<T, Errno> {
        for _ in 0..NEEDS_MAX {
            let need = match self.attempt(&mut work)? {
                Ok(done) => return Ok(done),
                Err(need) => need,
            };
            let supply = fetch(&self.base, &self.spill(), &need);
            self.counted(|overlay| overlay.supply(need, supply))?;
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
        let (spill, rest) = (self.spill(), rest.to_vec());
        self.blocking(move || gather(data, &rest, &spill)).await
    }

    /// As `read`, on a thread that may wait.
    pub(crate) fn read_here(&self, node: NodeId, offset: u64, bytes: usize) -> Result<Vec<u8>, Errno> {
        let bytes = bytes.min(READ_BYTES_MAX);
        let pieces = self.run_here(|overlay| overlay.read(node, offset, bytes))?;
        gather(Vec::with_capacity(bytes), &pieces, &self.spill())
    }

    /// A call that is invoked by the one that has this works on it. Copies the tree, so not on the thread of a guest.
    pub(super) fn begin(&self, is_read_only: bool) {
        let before = self.overlay().begin(is_read_only);
        self.before.lock().unwrap_or_else(PoisonError::into_inner).push(before);
    }

    /// That call is released. If it is not `kept`, everything is as it was before it.
    pub(super) fn end(&self, is_kept: bool) {
        let before = self.before.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(before) = before {
            self.counted(|overlay| overlay.end(before, is_kept));
        }
    }

    /// The base has become what the overlay shows.
    pub(super) fn rebase(&self) {
        if self.counted(|overlay| overlay.rebase(&self.base)) {
            // Whoever still writes to the old one disturbs nobody.
            let mut spill = self.spill.lock().unwrap_or_else(PoisonError::into_inner);
            *spill = SpillFile::new(spill.folder.clone());
        }
    }

    /// What is in a directory. It may be much, so it is put together on a thread that may take its time.
    pub(crate) async fn list(self: &Arc<Self>, node: NodeId) -> Result<Listing, Errno> {
        let files = Arc::clone(self);
        let listed = self.blocking(move || files.run_here(|overlay| overlay.list(node))).await?;
        let names = listed.len() as u64;
        let listing = Listing { files: Arc::clone(self), names, left: listed.into_iter() };
        if self.listed.fetch_add(names, Ordering::Relaxed) + names > LISTED_MAX {
            Err(Errno::NOMEM)
        } else {
            Ok(listing)
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Errno> + Send + 'static,
    ) -> Result<T, Errno> {
        let mut working = Abandoned(self.io.spawn_blocking(work));
        (&mut working.0).await.unwrap_or(Err(Errno::IO))
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
        Need::List { path, names_max, .. } => Supply::Listed(base.list(path, *names_max)?),
        Need::Target { path, .. } => Supply::Target(base.link(path)?),
        Need::File { path, stamp, .. } => Supply::File(base.file(path, stamp, Wait::Allowed)?),
        Need::MayWrite { path, .. } => Supply::MayWrite(base.may_write(path)?),
        Need::Block { file, at, bytes, .. } => Supply::Bytes(exactly(file, *at, *bytes)?),
        Need::Unspill { slot, .. } => {
            let file = spill.file().map_err(errno)?;
            Supply::Bytes(exactly(file, slot.at, slot.bytes as usize)?)
        }
        Need::Spill { blocks, .. } => {
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

/// Copies what a file holds, holes as holes. `left_bytes`: how much may still be written.
pub(super) fn copy_here(
    files: &Files,
    node: NodeId,
    size: u64,
    to: &File,
    left_bytes: &mut u64,
    is_stopped: &dyn Fn() -> bool,
) -> Result<(), Errno> {
    to.set_len(size).map_err(errno)?;
    let spill = files.spill();
    let mut at = 0;
    while at < size {
        if is_stopped() {
            return Err(Errno::CANCELED);
        }
        let bytes = READ_BYTES_MAX.min(usize::try_from(size - at).unwrap_or(READ_BYTES_MAX));
        let pieces = files.run_here(|overlay| overlay.read(node, at, bytes))?;
        let mut here = at;
        for piece in &pieces {
            if let Piece::Zeroes(zeroes) = piece {
                here += *zeroes as u64;
                continue;
            }
            let data = gather(Vec::new(), std::slice::from_ref(piece), &spill)?;
            *left_bytes = left_bytes.checked_sub(data.len() as u64).ok_or(Errno::DQUOT)?;
            to.write_all_at(&data, here).map_err(errno)?;
            here += data.len() as u64;
        }
        if here == at {
            return Err(Errno::IO);
        }
        at = here;
    }
    Ok(())
}
