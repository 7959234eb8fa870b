//! Halts on the disk: one file each, in `latched`; and the inbox, where a dropped file is a halt.
//!
//! Invariants:
//! - A halt's file is there entirely or not at all, and synced before anybody is told.
//! - Whatever lies in `latched` is a halt: one that cannot be read covers everything.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::inotify;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{Halt, HaltError, HaltScope};
use crate::ids::HaltId;
use crate::user;

/// Halts of the whole machine: every host reads them, whatever its home.
pub(crate) const MACHINE: &str = "/var/lib/estop/halts";
/// Halts in one folder. More count as one of everything.
const HALTS_MAX: usize = 1000;
/// A halt's file, or a dropped one (bytes). What is longer is cut.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A folder with halts.
pub(super) struct Folder {
    latched: PathBuf,
    /// None for those of the machine: these are made by whoever may write there.
    inbox: Option<PathBuf>,
}

/// Whoever drops a file has written it by then.
pub(super) const SETTLES_WITHIN: Duration = Duration::from_millis(50);

/// What a dropped file may say. Whatever it says otherwise is the reason, and it covers everything.
#[derive(Deserialize)]
struct Dropped {
    scope: HaltScope,
    #[serde(default)]
    reason: String,
}

impl Folder {
    /// That of a home.
    pub(super) fn new(halts: PathBuf) -> Self {
        Self { latched: halts.join("latched"), inbox: Some(halts.join("inbox")) }
    }

    /// That of the machine, which may not be there.
    pub(super) fn of_the_machine() -> Self {
        Self { latched: Path::new(MACHINE).join("latched"), inbox: None }
    }

    /// Asks for news of what is here. Asking again changes nothing.
    pub(super) fn watch(&self, news: &OwnedFd) {
        use inotify::WatchFlags;
        let changes = WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        for folder in [Some(&self.latched), self.inbox.as_ref()].into_iter().flatten() {
            // Where it is not there yet, the folder in which it would be made says so.
            let there = folder.ancestors().find(|folder| inotify::add_watch(news, *folder, changes).is_ok());
            if there.is_none() {
                tracing::warn!(path = %folder.display(), "halts made here are seen a second later only");
            }
        }
    }

    /// What is latched here. An error says why nobody knows.
    pub(super) fn read(&self) -> Result<Vec<Halt>, String> {
        let unreadable = |error: io::Error| {
            format!("the halts in `{}` cannot be read, so everything counts as halted: {error}", self.latched.display())
        };
        let entries = match fs::read_dir(&self.latched) {
            // Nobody has ever halted the machine. A home makes its folder when it is opened.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.inbox.is_none() => return Ok(Vec::new()),
            entries => entries.map_err(unreadable)?,
        };
        let mut halts = Vec::new();
        for entry in entries {
            let entry = entry.map_err(unreadable)?;
            // Being written, or not a halt's.
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if halts.len() == HALTS_MAX {
                return Err(unreadable(io::Error::other(format!("there are more than {HALTS_MAX}"))));
            }
            match read(&entry.path()) {
                Ok(halt) => halts.push(halt),
                // Lifted meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => halts.push(illegible(&entry.path(), &error)),
            }
        }
        Ok(halts)
    }

    /// Puts a halt on the disk. Whether it was not there.
    pub(super) fn latch(&self, halt: &Halt) -> Result<bool, HaltError> {
        let path = self.file(halt.halt);
        let failed = |error| HaltError::NotOnDisk { path: path.display().to_string(), error };
        if path.exists() {
            return Ok(false);
        }
        let write = || {
            let mut file = tempfile::Builder::new().prefix(".").tempfile_in(&self.latched)?;
            serde_json::to_writer(&mut file, halt)?;
            file.write_all(b"\n")?;
            if self.inbox.is_none() {
                // Every host of the machine has to read it.
                file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
            }
            file.as_file().sync_all()?;
            let created = match file.persist_noclobber(&path) {
                Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => false,
                done => done.map(|_| true).map_err(|error| error.error)?,
            };
            File::open(&self.latched)?.sync_all()?;
            Ok(created)
        };
        write().map_err(failed)
    }

    /// Takes a halt from the disk, if it is here.
    pub(super) fn lift(&self, halt: HaltId) -> Result<(), HaltError> {
        let removed = match fs::remove_file(self.file(halt)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| File::open(&self.latched)?.sync_all()),
        };
        let path = self.file(halt);
        removed.map_err(|error| HaltError::StillInForce { halt, why: format!("`{}`: {error}", path.display()) })
    }

    /// What people have dropped into the inbox, with the files that say so; and whether somebody may still be writing one.
    pub(super) fn dropped(&self) -> (Vec<(Halt, PathBuf)>, bool) {
        let Some(entries) = self.inbox.as_ref().and_then(|inbox| fs::read_dir(inbox).ok()) else {
            return Default::default();
        };
        let (mut halts, mut unsettled) = (Vec::new(), false);
        for path in entries.flatten().map(|entry| entry.path()).take(HALTS_MAX) {
            let Ok(found) = fs::symlink_metadata(&path) else { continue };
            if found.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age < SETTLES_WITHIN)) {
                unsettled = true;
            } else {
                halts.push((dropped(&path, &found), path));
            }
        }
        (halts, unsettled)
    }

    fn file(&self, halt: HaltId) -> PathBuf {
        self.latched.join(format!("{halt}.json"))
    }
}

fn read(path: &Path) -> io::Result<Halt> {
    let halt: Halt = serde_json::from_str(&text(path)?)?;
    let named = path.file_stem().and_then(|name| name.to_str()).is_some_and(|name| name == halt.halt.to_string());
    if named { Ok(halt) } else { Err(io::Error::other("it is named otherwise than the halt in it")) }
}

fn text(path: &Path) -> io::Result<String> {
    let no_links = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = fs::OpenOptions::new().read(true).custom_flags(no_links.bits().cast_signed()).open(path)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A halt that is there and says nothing that can be understood.
fn illegible(path: &Path, error: &io::Error) -> Halt {
    let reason = format!("`{}` cannot be read as a halt, so it covers everything: {error}", path.display());
    let named = path.file_stem().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    let found = fs::symlink_metadata(path).ok();
    let halt = Halt::new(HaltScope::All, owner(found.as_ref()), reason);
    Halt { halt: named.unwrap_or_else(|| identified(path, found.as_ref())), at: made(found.as_ref()), ..halt }
}

/// What a dropped file says. Whoever takes it, and however often, it is one halt.
fn dropped(path: &Path, found: &fs::Metadata) -> Halt {
    let text = text(path).unwrap_or_default();
    let Dropped { scope, reason } = serde_json::from_str(&text)
        .unwrap_or_else(|_| Dropped { scope: HaltScope::All, reason: text.trim().to_owned() });
    let halt = Halt::new(scope, owner(Some(found)), reason);
    Halt { halt: identified(path, Some(found)), at: made(Some(found)), ..halt }
}

fn owner(found: Option<&fs::Metadata>) -> String {
    found.map_or_else(|| "nobody known".into(), |found| user::name(found.uid()))
}

fn made(found: Option<&fs::Metadata>) -> SystemTime {
    found.and_then(|found| found.modified().ok()).unwrap_or_else(SystemTime::now)
}

/// The same for every process that looks at the same file, also while somebody writes it.
fn identified(path: &Path, found: Option<&fs::Metadata>) -> HaltId {
    let mut hash = Sha256::new();
    hash.update(path.as_os_str().as_encoded_bytes());
    let born = found.and_then(|found| found.created().ok()).unwrap_or_else(|| made(found));
    if let Some(found) = found {
        [found.dev(), found.ino()].iter().for_each(|number| hash.update(number.to_le_bytes()));
        let born_ns = born.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        hash.update(born_ns.to_le_bytes());
    }
    HaltId::derived(born, hash.finalize().into())
}
