//! A SQLite VFS that sits under a database and meets its file operations with faults, and that knows what a
//! power cut would leave of the files.
//!
//! The invariant: the record of a [`Faults`] equals its files. Every change that SQLite makes to a named file goes
//! through this VFS, is done to the real file and to the record under one lock, and counts as durable only from
//! the moment that a sync of that file was really done and answered with success. What no sync covers may be in a
//! crash image or not, as [`Survivors`] says; what a sync covers always is.
//!
//! It holds as long as nothing but this VFS changes the files. Temporary files, which SQLite deletes when it
//! closes them, are neither counted nor recorded, and memory shared between connections (`-shm`) is never part of an
//! image, for a power cut leaves none.
//!
//! ```no_run
//! # use estop_faults::{Fault, Faults, On, Plan, Survivors};
//! # use rusqlite::{Connection, OpenFlags};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let faults = Faults::install("the-name-of-this-test");
//! let db = Connection::open_with_flags_and_vfs("/tmp/store/db", OpenFlags::default(), faults.name())?;
//! faults.arm(Plan { at: 3, on: On::WalSync, fault: Fault::PowerCut, lasting: false });
//! // ... until something fails ...
//! drop(db);
//! faults.crash_image("/tmp/store".as_ref(), "/tmp/after".as_ref(), Survivors::Random(7))?;
//! // ... and opens /tmp/after/db with the ordinary VFS.
//! # Ok(())
//! # }
//! ```

mod file;
mod image;
mod plan;
mod record;
mod vfs;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use self::image::Survivors;
use self::plan::{Countdown, Operation};
pub use self::plan::{Fault, On, Plan};
use self::record::Record;

/// One VFS and what it does. Clones are the same VFS.
#[derive(Clone)]
pub struct Faults {
    shim: &'static Shim,
}

impl Faults {
    /// Registers a VFS of this name over the default one. It stays registered, and allocated, until the process ends:
    /// SQLite keeps pointers to it.
    ///
    /// # Panics
    /// If the name has a NUL in it or is some VFS's already, or if SQLite does not initialise.
    pub fn install(name: &str) -> Self {
        // Leaked, because open files and the VFS refer to it for as long as SQLite likes.
        let shim: &'static Shim = Box::leak(Box::new(Shim {
            name: name.to_owned(),
            cut: AtomicBool::new(false),
            state: Mutex::new(State::default()),
        }));
        if let Err(reason) = vfs::register(shim) {
            panic!("VFS `{name}`: {reason}");
        }
        Self { shim }
    }

    /// The name to open connections with.
    pub fn name(&self) -> &str {
        &self.shim.name
    }

    /// How many operations have changed something, or were to, since the last [`arm`](Self::arm), or else since
    /// `install`: writes, truncations, syncs, deletions, and opens that create. Those after a power cut don't count.
    pub fn operations(&self) -> u64 {
        self.shim.lock().countdown.operations()
    }

    /// Replaces the plan, and counts from zero again. A power cut stays: only another VFS has power then.
    pub fn arm(&self, plan: Plan) {
        self.shim.lock().countdown = Countdown::of(plan);
    }

    /// Lets every operation go on as if there were no faults. The counts stay.
    pub fn disarm(&self) {
        self.shim.lock().countdown.disarm();
    }

    /// How many operations have met the fault since it was armed. What fails because the power is gone has not met it.
    pub fn hits(&self) -> u64 {
        self.shim.lock().countdown.hits()
    }

    /// Writes into the directory `to` what a power cut would leave, if it came now, of the files directly in `from`.
    /// If the power is cut already, it's what the cut left.
    ///
    /// Files in `from` that were never opened through this VFS are copied as they are. `to` is created if it isn't
    /// there.
    ///
    /// # Errors
    /// If `to` is not empty, if a file can't be read or written, or if the record is incomplete: it was asked to hold
    /// more than its bounds, or a real operation failed, so that nobody knows how much of it was done.
    pub fn crash_image(&self, from: &Path, to: &Path, survivors: Survivors) -> io::Result<()> {
        // SQLite names files by their path without links.
        let from = from.canonicalize()?;
        let files = image::of(&self.shim.lock().record, &from, survivors)?;
        image::write(&files, &from, to)
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("name", &self.shim.name).finish_non_exhaustive()
    }
}

/// What the VFS, its files and the handles share.
struct Shim {
    name: String,
    /// Written under the lock of `state`; read without it by what changes nothing.
    cut: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    countdown: Countdown,
    record: Record,
}

/// The power is gone.
struct Cut;

impl Shim {
    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock panics halfway through a change; and a test that did must not take others along.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation, if it is one, and tells the fault that it meets. The caller does the operation and records it
    /// before it lets go of the state: that makes the record's order the order of the real operations.
    fn enter(&self, operation: Option<Operation>) -> Result<(MutexGuard<'_, State>, Option<Fault>), Cut> {
        let mut state = self.lock();
        if self.is_cut() {
            return Err(Cut);
        }
        match operation.and_then(|operation| state.countdown.meet(operation)) {
            Some(Fault::Delay(delay)) => {
                // Others go on meanwhile, as they would beside a slow disk.
                drop(state);
                std::thread::sleep(delay);
                let state = self.lock();
                if self.is_cut() { Err(Cut) } else { Ok((state, None)) }
            }
            Some(Fault::PowerCut) => {
                self.cut.store(true, Ordering::Release);
                Ok((state, Some(Fault::PowerCut)))
            }
            fault => Ok((state, fault)),
        }
    }
}
