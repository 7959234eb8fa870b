//! The durable store: state and log in one SQLite database, which any number of processes share.
//!
//! Invariants:
//! - One thread of a host writes, others read, and nobody holds a database transaction while a guest runs.
//! - Between processes it is optimistic: whoever commits first wins, the other one is told of a conflict.

mod database;
mod look;
mod prune;
mod read;
mod recover;
mod reserve;
mod write;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use rusqlite::{Connection, params};

use self::database::Place;
pub use self::look::{KeyInfo, Look, SpaceInfo};
pub use self::prune::{PruneError, Pruned};
use self::read::Readers;
use self::reserve::Reserve;
pub use self::write::CHECKPOINT_EVERY;
use self::write::{Failure, Writer};
use super::{Commit, Decisions, Key, Listing, Space, Store, StoreError, Verdict, Versioned};
use crate::home::{Alive, Home};
use crate::ids::{HomeId, HostId};
use crate::log::checkpoint::Signer;
use crate::log::{Checkpoint, CheckpointTo, Checkpoints, Entry, EntryKind};

/// See the module's documentation.
pub struct Sqlite {
    home: Home,
    id: String,
    place: Place,
    writer: Mutex<Writer>,
    /// For whoever looks at the log.
    looker: Mutex<Option<Connection>>,
    readers: Readers,
    /// The signs of life of the hosts that use this.
    alive: Mutex<HashMap<HostId, Alive>>,
    checkpoints: Option<Checkpoints>,
}

/// How a database is used.
pub struct SqliteOptions {
    home: Home,
    vfs: Option<String>,
    free_bytes_min: Option<u64>,
    checkpoint_to: Option<CheckpointTo>,
}

impl SqliteOptions {
    /// Reaches the files through a VFS of SQLite that is registered under this name.
    #[must_use]
    pub fn vfs(mut self, name: impl Into<String>) -> Self {
        self.vfs = Some(name.into());
        self
    }

    /// Calls are refused while less than this is left on the disk (bytes). 64 MiB by default.
    #[must_use]
    pub fn free_bytes_min(mut self, bytes: u64) -> Self {
        self.free_bytes_min = Some(bytes);
        self
    }

    /// Sends every checkpoint there, so that the log can be checked against whoever has its key.
    #[must_use]
    pub fn checkpoint_to(mut self, to: CheckpointTo) -> Self {
        self.checkpoint_to = Some(to);
        self
    }

    /// Opens the database, and makes or migrates it if need be.
    ///
    /// # Errors
    /// It cannot be opened, is of a newer version, is not ours, or is held by another process.
    pub fn open(self) -> Result<Sqlite, StoreError> {
        let Self { home, vfs, free_bytes_min, checkpoint_to } = self;
        let place = Place::new(&home, vfs);
        let mut writer = Writer::new(place.again(), Reserve::new(home.path().join("reserve"), free_bytes_min));
        let named = writer.transact(|batch| match batch.meta("home")? {
            Some(id) => Ok(id),
            None => {
                let id = HomeId::generate().to_string();
                batch.set_meta("home", &id).map(|()| id)
            }
        });
        let id = named.map_err(Failure::into_error)?;
        let thread = |error: std::io::Error| StoreError::Io(format!("cannot start a thread: {error}"));
        Ok(Sqlite {
            readers: Readers::start(place.again()).map_err(thread)?,
            checkpoints: checkpoint_to.map(Checkpoints::start).transpose().map_err(thread)?,
            home,
            id,
            place,
            writer: Mutex::new(writer),
            looker: Mutex::new(None),
            alive: Mutex::default(),
        })
    }
}

impl Sqlite {
    /// The database of a home, made if it is not there.
    ///
    /// # Errors
    /// See [`SqliteOptions::open`].
    pub fn open(home: &Home) -> Result<Self, StoreError> {
        Self::options(home).open()
    }

    /// As `open`, with more to say.
    pub fn options(home: &Home) -> SqliteOptions {
        SqliteOptions { home: home.clone(), vfs: None, free_bytes_min: None, checkpoint_to: None }
    }

    /// The home that it is in.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Makes a new key sign the log from here on. The old one vouches for it in the log.
    ///
    /// # Errors
    /// The store cannot be written, or the key that signs now is not there.
    pub fn rotate_key(&self) -> Result<(), StoreError> {
        let rotated = self.writer().transact(|batch| {
            // Under the lock of the transaction: nobody else makes or takes a key meanwhile.
            let signer = batch.signer()?;
            let next = Signer::next(self.home.path()).map_err(|error| StoreError::Io(error.to_string()))?;
            let kind = EntryKind::KeyRotated(signer.rotation(&batch.head(), next.clone()));
            batch.append(&Entry { at: SystemTime::now(), host: HostId::generate(), kind })?;
            batch.set_meta("log-key", &next)
        });
        rotated.map_err(Failure::into_error)?;
        // Now the log names it: this puts it in place, and shows that it signs.
        self.checkpoint()
    }

    /// Signs what is in the log, if anything was added since it was signed last.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.sign(HostId::generate())
    }

    fn sign(&self, host: HostId) -> Result<(), StoreError> {
        // One line after the checkpoint is what there is if nothing has happened.
        let signed = self.writer().transact(|batch| batch.sign(host, 1)).map_err(Failure::into_error)?;
        self.send(signed);
        Ok(())
    }

    fn send(&self, checkpoint: Option<Checkpoint>) {
        if let (Some(to), Some(checkpoint)) = (&self.checkpoints, checkpoint) {
            to.send(checkpoint);
        }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self) -> MutexGuard<'_, HashMap<HostId, Alive>> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Sqlite {
    fn get<'a>(&'a self, space: &'a Space, key: &'a Key) -> BoxFuture<'a, Result<Versioned, StoreError>> {
        self.readers.get(space, key)
    }

    fn list<'a>(
        &'a self,
        space: &'a Space,
        bucket: &'a Arc<str>,
        keys_max: usize,
    ) -> BoxFuture<'a, Result<Listing, StoreError>> {
        self.readers.list(space, bucket, keys_max)
    }

    fn write(&self, commits: &mut [Commit<'_>], entries: &[Entry]) -> Result<Vec<Verdict>, StoreError> {
        let written = self.writer().write(commits, entries)?;
        self.send(written.checkpoint);
        Ok(written.verdicts)
    }

    fn write_now(&self, commits: &mut [Commit<'_>], entries: &[Entry]) -> Option<Result<Vec<Verdict>, StoreError>> {
        let written = self.writer.try_lock().ok()?.write_now(commits, entries)?;
        Some(written.map(|written| {
            self.send(written.checkpoint);
            written.verdicts
        }))
    }

    fn entries(&self, from: u64, count_max: usize) -> Result<Vec<Entry>, StoreError> {
        let mut looker = self.looker.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = read::on(&self.place, &mut looker, |connection| Ok(Ok(read::lines(connection, from, count_max)?)))?;
        lines.iter().map(|(_, line)| read::entry(line)).collect()
    }

    fn attach(&self, host: HostId) -> Result<(), StoreError> {
        let alive = self.home.live(host);
        let alive = alive.map_err(|error| StoreError::Io(format!("cannot give a sign of life: {error}")))?;
        let dead = self.writer().transact(|batch| {
            let dead = recover::dead_hosts(batch, &self.home, host)?;
            let (pid, version) = (std::process::id(), env!("CARGO_PKG_VERSION").into());
            let kind = EntryKind::Opened { pid, version };
            let first_seq = batch.append(&Entry { at: SystemTime::now(), host, kind })?;
            let row = "INSERT INTO host (id, pid, first_seq) VALUES (?1, ?2, ?3)";
            batch.execute(row, params![host.to_string(), pid, first_seq])?;
            Ok(dead)
        });
        recover::bury(&self.home, &dead.map_err(Failure::into_error)?);
        self.home.sweep();
        self.alive().insert(host, alive);
        Ok(())
    }

    fn detach(&self, host: HostId, complete: bool) {
        if !complete {
            tracing::error!(%host, "the log could not be completed; the next host that opens the home will");
            self.alive().remove(&host);
            return;
        }
        let closed = self.writer().transact(|batch| {
            batch.append(&Entry { at: SystemTime::now(), host, kind: EntryKind::Closed })?;
            batch.execute("DELETE FROM host WHERE id = ?1", [host.to_string()])?;
            batch.sign(host, 1)
        });
        match closed {
            Ok(checkpoint) => {
                self.send(checkpoint);
                // Whoever waits for this host to have ended may end the process next.
                if let Some(to) = &self.checkpoints {
                    to.settle();
                }
                recover::remove_empty_alternate(&self.home, host);
            }
            // Then the host is found dead by the next one, which is the truth as far as the log knows.
            Err(failure) => tracing::error!(error = %failure.into_error(), "the end of the host is not in the log"),
        }
        self.alive().remove(&host);
    }

    fn decisions(&self) -> Option<&dyn Decisions> {
        Some(self)
    }

    fn shortage(&self) -> Option<String> {
        self.writer().shortage()
    }

    fn home(&self) -> Option<&Home> {
        Some(&self.home)
    }

    fn alternate(&self, host: HostId) -> Option<PathBuf> {
        Some(recover::alternate_path(&self.home, host))
    }
}

impl Decisions for Sqlite {
    fn store(&self) -> &str {
        &self.id
    }

    fn place(&self) -> String {
        self.home.path().display().to_string()
    }

    fn resolve(&self, id: &str, workspace: &Path) -> Result<Option<String>, StoreError> {
        self.writer().transact_surely(|batch| batch.resolve_workspace(id, workspace))
    }

    fn forget(&self, id: &str) -> Result<(), StoreError> {
        self.writer().transact_surely(|batch| batch.forget_workspace(id))
    }
}
