//! Room on the disk that is kept for the worst moment: so that a full disk does not keep a stop out of the log.
//!
//! Invariant: while the disk is nearly full, nothing new is begun; when it is entirely full, the reserve is given up, and
//! calls are refused until it is back.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;

/// What is kept back (bytes): ends and interrupts of some ten thousand calls.
const RESERVE_BYTES: u64 = 16 << 20;
/// With less than this left on the disk nothing new is begun (bytes).
const FREE_BYTES_MIN: u64 = 64 << 20;
/// Between two looks at the disk.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Reserve {
    path: PathBuf,
    free_bytes_min: u64,
    looked: Option<Instant>,
    shortage: Option<String>,
}

impl Reserve {
    pub(super) fn new(path: PathBuf, free_bytes_min: Option<u64>) -> Self {
        let free_bytes_min = free_bytes_min.unwrap_or(FREE_BYTES_MIN);
        Self { path, free_bytes_min, looked: None, shortage: None }
    }

    /// Gives the room back to the disk. Whether there was any.
    pub(super) fn release(&mut self) -> bool {
        self.looked = None;
        let had = fs::metadata(&self.path).is_ok_and(|found| found.len() > 0);
        // Removing a file frees its room even where nothing can be written.
        had && fs::remove_file(&self.path).is_ok()
    }

    /// Why nothing new should be begun, as of at most [`LOOK_EVERY`] ago; takes the room back if it can be had.
    pub(super) fn shortage(&mut self) -> Option<String> {
        if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
            self.looked = Some(Instant::now());
            self.shortage = self.look();
        }
        self.shortage.clone()
    }

    fn look(&self) -> Option<String> {
        let free_bytes = match rustix::fs::statvfs(self.path.parent()?) {
            Ok(found) => found.f_bavail.saturating_mul(found.f_frsize),
            Err(error) => return Some(format!("the disk of `{}` cannot be looked at: {error}", self.path.display())),
        };
        let missing = !fs::metadata(&self.path).is_ok_and(|found| found.len() == RESERVE_BYTES);
        let needed = self.free_bytes_min + if missing { RESERVE_BYTES } else { 0 };
        if free_bytes < needed {
            let (free, needed) = (free_bytes >> 20, needed >> 20);
            return Some(format!(
                "only {free} MiB are left on the disk of `{}`, and {needed} MiB have to be; free some",
                self.path.display()
            ));
        }
        match missing.then(|| self.allocate()) {
            Some(Err(error)) => {
                Some(format!("no room can be kept for emergencies at `{}`: {error}", self.path.display()))
            }
            _ => None,
        }
    }

    fn allocate(&self) -> io::Result<()> {
        let file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.path)?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES) {
            // Some file systems cannot; then the limit on what is left has to do.
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(RESERVE_BYTES),
            allocated => allocated.map_err(Into::into),
        }
    }
}
