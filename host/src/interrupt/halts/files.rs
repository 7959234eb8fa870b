//! Halts on the disk: one file each, in `latched`; and the inbox, where a dropped file is a halt.
//!
//! Invariants:
//! - A halt's file is there entirely or not at all, and synced before anybody is told.
//! - Whatever lies in `latched` or in the inbox is a halt: one that cannot be read covers everything. (Names that begin with
//!   a dot are drafts.)
//! - What is dropped is read before what is latched, and latched before it is taken from the inbox: whoever reads meanwhile
//!   meets it in one of the two.
//! - Who may keep halts here is the owner of `latched`, and root: nobody else takes what is dropped, or lifts.

use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::inotify;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Halt, HaltError, HaltScope};
use crate::ids::HaltId;
use crate::user;

/// Halts of the whole machine: every host reads them, whatever its home.
pub(crate) const MACHINE: &str = "/var/lib/estop/halts";
/// Halts in one folder. More count as one of everything.
pub(super) const HALTS_MAX: usize = 1000;
/// A halt's file, or a dropped one (bytes). What is longer is cut.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A folder with halts.
pub(super) struct Folder {
    latched: PathBuf,
    inbox: PathBuf,
    is_machine: bool,
}

/// What is in force because of a folder.
#[derive(Default)]
pub(super) struct Found {
    /// Latched, and dropped ones that are not latched yet.
    pub(super) halts: Vec<Halt>,
    /// The dropped ones, with the files that say so.
    pub(super) dropped: Vec<(Halt, PathBuf)>,
    /// Somebody may still be writing one.
    pub(super) unsettled: bool,
}

/// Whoever drops a file has written it by then.
pub(super) const SETTLES_WITHIN: Duration = Duration::from_millis(50);

/// What a dropped file may say. Whatever it says otherwise is the reason, and it covers everything.
#[derive(Serialize, Deserialize)]
struct Dropped {
    scope: HaltScope,
    #[serde(default)]
    reason: String,
    /// As whoever has dropped it calls it. Hosts that were asked with this id as well mean the same halt.
    #[serde(default)]
    halt: Option<HaltId>,
}

impl Folder {
    /// That of a home.
    pub(super) fn new(halts: PathBuf) -> Self {
        Self { latched: halts.join("latched"), inbox: halts.join("inbox"), is_machine: false }
    }

    /// That of the machine, which may not be there.
    pub(super) fn of_the_machine() -> Self {
        Self { is_machine: true, ..Self::new(MACHINE.into()) }
    }

    pub(super) fn is_machine(&self) -> bool {
        self.is_machine
    }

    /// Whether it belongs to the user of this process: then all halts of the process are kept here.
    pub(super) fn is_own(&self) -> bool {
        fs::metadata(&self.latched).is_ok_and(|found| found.uid() == rustix::process::geteuid().as_raw())
    }

    /// Whether this process may put halts here and take them away.
    pub(super) fn is_kept_by_us(&self) -> bool {
        let is_root = rustix::process::geteuid().is_root();
        !self.is_machine || self.is_own() || is_root && self.latched.is_dir()
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
        for folder in [&self.latched, &self.inbox] {
            // Where it is not there yet, the folder in which it would be made says so.
            let there = folder.ancestors().find(|folder| inotify::add_watch(news, *folder, changes).is_ok());
            if there.is_none() {
                tracing::warn!(path = %folder.display(), "halts made here are seen a second later only");
            }
        }
    }

    /// What is in force here. An error says why nobody knows.
    pub(super) fn read(&self) -> Result<Found, String> {
        let mut found = self.dropped()?;
        let mut latched = self.latched()?;
        for (halt, path) in &mut found.dropped {
            // Somebody else's halt is called like this already.
            if latched.iter().any(|other| other.halt == halt.halt && other.scope != halt.scope) {
                halt.halt = identified(path, fs::symlink_metadata(&*path).ok().as_ref());
            }
        }
        let dropped = found.dropped.iter().map(|(halt, _)| halt);
        let new: Vec<_> = dropped.filter(|halt| latched.iter().all(|other| !other.is(halt))).cloned().collect();
        latched.extend(new);
        latched.iter_mut().for_each(|halt| halt.machine = self.is_machine);
        found.dropped.iter_mut().for_each(|(halt, _)| halt.machine = self.is_machine);
        Ok(Found { halts: latched, ..found })
    }

    fn latched(&self) -> Result<Vec<Halt>, String> {
        let mut halts = Vec::new();
        for path in files(&self.latched, self.is_machine)? {
            match read(&path) {
                Ok(halt) => halts.push(halt),
                // Lifted meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => halts.push(illegible(&path, &error)),
            }
        }
        Ok(halts)
    }

    /// Without those that somebody may still be writing.
    fn dropped(&self) -> Result<Found, String> {
        let mut all = Found::default();
        for path in files(&self.inbox, true)? {
            // Taken meanwhile.
            let Ok(found) = fs::symlink_metadata(&path) else { continue };
            match dropped(&path, &found) {
                Some(halt) => all.dropped.push((halt, path)),
                None => all.unsettled = true,
            }
        }
        Ok(all)
    }

    /// Whether a halt of this name is here, latched or dropped by `drop_in`.
    pub(super) fn has(&self, halt: HaltId) -> bool {
        self.file(halt).exists() || self.inbox.join(file_name(halt)).exists()
    }

    /// Whether this process may drop files.
    #[cfg(feature = "cli")]
    pub(super) fn takes_files(&self) -> bool {
        use rustix::fs::Access;
        // Not `access`, which looks at who called a set-user-id program.
        let flags = rustix::fs::AtFlags::EACCESS;
        rustix::fs::accessat(rustix::fs::CWD, &self.inbox, Access::WRITE_OK | Access::EXEC_OK, flags).is_ok()
    }

    /// Drops a halt into the inbox, for whoever keeps the folder. It is in force as long as it lies there.
    #[cfg(feature = "cli")]
    pub(super) fn drop_in(&self, halt: &Halt) -> Result<(), HaltError> {
        let Halt { halt, scope, reason, .. } = halt.clone();
        put(&self.inbox, halt, &Dropped { scope, reason, halt: Some(halt) }, true).map(drop)
    }

    /// Puts a halt on the disk. Whether it was not there.
    pub(super) fn latch(&self, halt: &Halt) -> Result<bool, HaltError> {
        let created = put(&self.latched, halt.halt, halt, self.is_machine)?;
        if !created && read(&self.file(halt.halt)).is_ok_and(|other| other.scope != halt.scope) {
            let error = io::Error::other("another halt has this name");
            return Err(HaltError::NotOnDisk { path: self.file(halt.halt).display().to_string(), error });
        }
        Ok(created)
    }

    /// Takes a halt from the disk, if it is here.
    pub(super) fn lift(&self, halt: HaltId) -> Result<(), HaltError> {
        let failed = |path: &Path, why: &dyn std::fmt::Display| HaltError::StillInForce {
            halt,
            why: format!("`{}`: {why}", path.display()),
        };
        let dropped = self.dropped().map_err(|why| failed(&self.inbox, &why))?.dropped;
        for (_, path) in dropped.iter().filter(|(other, _)| other.halt == halt) {
            remove(path).map_err(|error| failed(path, &error))?;
        }
        remove(&self.file(halt)).map_err(|error| failed(&self.file(halt), &error))
    }

    fn file(&self, halt: HaltId) -> PathBuf {
        self.latched.join(file_name(halt))
    }
}

fn file_name(halt: HaltId) -> String {
    format!("{halt}.json")
}

/// What is in a folder and not a draft.
fn files(folder: &Path, may_be_missing: bool) -> Result<Vec<PathBuf>, String> {
    let unreadable = |error: io::Error| {
        format!("the halts in `{}` cannot be read, so everything counts as halted: {error}", folder.display())
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && may_be_missing => return Ok(Vec::new()),
        entries => entries.map_err(unreadable)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(unreadable)?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if files.len() == HALTS_MAX {
            return Err(unreadable(io::Error::other(format!("there are more than {HALTS_MAX}"))));
        }
        files.push(entry.path());
    }
    Ok(files)
}

/// Writes a halt's file. Whether it was not there.
fn put(folder: &Path, halt: HaltId, said: &impl Serialize, for_everybody: bool) -> Result<bool, HaltError> {
    let path = folder.join(file_name(halt));
    let failed = |error| HaltError::NotOnDisk { path: path.display().to_string(), error };
    if path.exists() {
        return Ok(false);
    }
    let write = || {
        let mut file = tempfile::Builder::new().prefix(".").tempfile_in(folder)?;
        serde_json::to_writer(&mut file, said)?;
        file.write_all(b"\n")?;
        if for_everybody {
            // Every host of the machine has to read it.
            file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        }
        file.as_file().sync_all()?;
        let created = match file.persist_noclobber(&path) {
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => false,
            done => done.map(|_| true).map_err(|error| error.error)?,
        };
        File::open(folder)?.sync_all()?;
        Ok(created)
    };
    write().map_err(failed)
}

/// A file that is gone after a power cut, too.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| File::open(path.parent().unwrap_or(path))?.sync_all()),
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

/// What a dropped file says. Whoever takes it, and however often, it is one halt. None: somebody may still be writing it.
fn dropped(path: &Path, found: &fs::Metadata) -> Option<Halt> {
    let text = text(path);
    let parsed = text.as_ref().ok().and_then(|text| serde_json::from_str(text).ok());
    let is_young = found.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age < SETTLES_WITHIN));
    // A whole object is whole, however young it is.
    if is_young && parsed.is_none() {
        return None;
    }
    let Dropped { scope, reason, halt: named } = parsed.unwrap_or_else(|| {
        let reason = match text {
            Ok(text) => text.trim().to_owned(),
            Err(error) => format!("`{}` cannot be read, so it covers everything: {error}", path.display()),
        };
        Dropped { scope: HaltScope::All, reason, halt: None }
    });
    let halt = Halt::new(scope, owner(Some(found)), reason);
    Some(Halt { halt: named.unwrap_or_else(|| identified(path, Some(found))), at: made(Some(found)), ..halt })
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
