//! Where a commit is made ready: a hidden directory in the folder, with everything new in it and the plan beside.
//!
//! Invariants:
//! - There is one stage at a time: whoever makes, carries out or removes one holds the lock of the folder.
//! - A stage with a manifest is complete and on the disk. One without was never decided.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::HIDDEN;
use super::base::{Base, Found, Time, Wait};
use super::files::{Files, copy_here};
use super::plan::{Change, Made, Plan, What};
use crate::store::Decisions;
use crate::tools::Hex;

const MANIFEST: &str = "manifest.json";
const UNFINISHED: &str = "manifest.new";
const TAKEN: &str = "taken";
/// A manifest is never longer (bytes): one line for each of the entries that a call may have.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;
/// How long another process may keep the folder.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);
/// How often it is tried: nothing tells when another process lets go.
const LOCK_TRY_EVERY: Duration = Duration::from_millis(1);
/// Files and directories that are synced one by one; more are synced with their whole file system.
const SYNCS_MAX: usize = 16;
/// Things that are looked at between two looks whether the call was stopped.
const LOOKS_BETWEEN: usize = 64;
/// Names that are tried for what is in the way.
const ASIDES_MAX: u32 = 100;

/// Why there is no stage.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StageError {
    #[error("{0}")]
    Conflict(String),
    /// The call was stopped meanwhile.
    #[error("stopped")]
    Stopped,
    #[error("{0}")]
    Failed(String),
}

impl StageError {
    fn failed(what: impl std::fmt::Display, path: &Path, error: Errno) -> Self {
        StageError::Failed(format!("cannot {what} `{}`: {error}", path.display()))
    }
}

/// The folder belongs to whoever has this.
#[derive(Debug)]
pub(super) struct Lock {
    // The lock is the descriptor's.
    _root: OwnedFd,
}

impl Lock {
    /// `shared`: among others who only read.
    pub(super) fn take(base: &Base, shared: bool, is_stopped: &dyn Fn() -> bool) -> Result<Self, StageError> {
        let until = Instant::now() + LOCK_WAIT_MAX;
        loop {
            if let Some(lock) = Self::try_take(base, shared)? {
                return Ok(lock);
            }
            if is_stopped() {
                return Err(StageError::Stopped);
            }
            if Instant::now() > until {
                let (path, wait) = (base.path().display(), LOCK_WAIT_MAX.as_secs());
                return Err(StageError::Failed(format!("another process has kept `{path}` locked for {wait} s")));
            }
            std::thread::sleep(LOCK_TRY_EVERY);
        }
    }

    pub(super) fn try_take(base: &Base, shared: bool) -> Result<Option<Self>, StageError> {
        let failed = |error| StageError::failed("lock", base.path(), error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // A descriptor of its own: those that are copies share their lock.
        let root = fs::openat(base.root(), ".", flags, Mode::empty()).map_err(failed)?;
        let how = if shared { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
        match fs::flock(&root, how) {
            Ok(()) => Ok(Some(Self { _root: root })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}

/// What is to be done, written down.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) version: u32,
    /// Of the decision.
    pub(super) id: String,
    /// Who decides: the store's own name, and where it is.
    pub(super) store: String,
    pub(super) place: String,
    pub(super) plan: Plan,
}

impl Manifest {
    pub(super) const VERSION: u32 = 1;
}

/// The hidden directory.
#[derive(Debug)]
pub(super) struct Stage {
    folder: OwnedFd,
    path: PathBuf,
}

impl Stage {
    /// What another commit has left there.
    pub(super) fn find(base: &Base) -> Result<Option<Self>, StageError> {
        let path = base.path().join(HIDDEN);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match fs::openat(base.root(), HIDDEN, flags, Mode::empty()) {
            Ok(folder) => Ok(Some(Self { folder, path })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(StageError::failed("open", &path, error)),
        }
    }

    fn make(base: &Base) -> Result<Self, StageError> {
        let path = base.path().join(HIDDEN);
        fs::mkdirat(base.root(), HIDDEN, Mode::RWXU).map_err(|error| StageError::failed("make", &path, error))?;
        let shouted = HIDDEN.to_ascii_uppercase();
        if fs::statat(base.root(), &*shouted, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            let _ = fs::unlinkat(base.root(), HIDDEN, AtFlags::REMOVEDIR);
            let why = "does not tell capital letters from small ones: it cannot be a workspace that is written";
            return Err(StageError::Failed(format!("the file system of `{}` {why}", base.path().display())));
        }
        Self::find(base)?.ok_or_else(|| StageError::failed("open", &path, Errno::NOENT))
    }

    /// Makes everything ready for a change. What fails is removed again.
    pub(super) fn fill(
        files: &Files,
        change: &Change,
        id: &str,
        decisions: &dyn Decisions,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<(Self, String), StageError> {
        let stage = Self::make(&files.base)?;
        let filled = stage.write(files, change, id, decisions, is_stopped);
        match filled {
            Ok(digest) => Ok((stage, digest)),
            Err(error) => {
                stage.remove(&files.base);
                Err(error)
            }
        }
    }

    fn write(
        &self,
        files: &Files,
        change: &Change,
        id: &str,
        decisions: &dyn Decisions,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<String, StageError> {
        let mut left_bytes = files.overlay().bytes_max();
        for made in &change.made {
            let staged = self.make_one(files, made, change.made.len() <= SYNCS_MAX, &mut left_bytes, is_stopped);
            staged.map_err(|error| match error {
                Errno::CANCELED => StageError::Stopped,
                Errno::STALE => StageError::Conflict(changed_meanwhile(files, made)),
                error => StageError::failed("stage", &self.path.join(&made.name), error),
            })?;
        }
        let failed = |error| StageError::failed("sync", &self.path, error);
        if change.made.len() > SYNCS_MAX {
            fs::syncfs(&self.folder).map_err(failed)?;
        }
        let manifest = Manifest {
            version: Manifest::VERSION,
            id: id.into(),
            store: decisions.store().into(),
            place: decisions.place(),
            plan: change.plan.clone(),
        };
        let text = serde_json::to_vec(&manifest).map_err(|error| StageError::Failed(error.to_string()))?;
        if text.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(StageError::Failed("the commit has more steps than can be written down".into()));
        }
        // Under its name it is whole, whenever this ends.
        self.write_file(UNFINISHED, &text).map_err(failed)?;
        fs::renameat(&self.folder, UNFINISHED, &self.folder, MANIFEST).map_err(failed)?;
        // The stage, and that it is there.
        fs::fsync(&self.folder).map_err(failed)?;
        fs::fsync(files.base.root()).map_err(failed)?;
        Ok(hex(&text))
    }

    fn make_one(
        &self,
        files: &Files,
        made: &Made,
        sync: bool,
        left_bytes: &mut u64,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<(), Errno> {
        if is_stopped() {
            return Err(Errno::CANCELED);
        }
        let name = made.name.as_str();
        match &made.what {
            What::Directory => fs::mkdirat(&self.folder, name, Mode::from_raw_mode(0o777)),
            What::Link(target) => fs::symlinkat(target.as_os_str(), &self.folder, name),
            What::Again(first) => fs::linkat(&self.folder, first, &self.folder, name, AtFlags::empty()),
            What::OfBase(path, stamp) => {
                fs::linkat(files.base.root(), path, &self.folder, name, AtFlags::empty())?;
                let linked = Found::from(fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW)?);
                if linked.stamp.identity() == stamp.identity() { Ok(()) } else { Err(Errno::STALE) }
            }
            What::File { node, size, origin, accessed, modified } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let file: File = fs::openat(&self.folder, name, flags, Mode::from_raw_mode(0o666))?.into();
                copy_here(files, *node, *size, &file, left_bytes, is_stopped)?;
                if let Some((path, stamp)) = origin {
                    // As it was; but what runs with somebody else's rights does not do so with new contents.
                    fs::fchmod(&file, Mode::from_raw_mode(stamp.mode & 0o777))?;
                    copy_attributes(&files.base.file(path, stamp, Wait::Allowed)?, &file, path);
                }
                fs::futimens(&file, &Timestamps { last_access: spec(*accessed), last_modification: spec(*modified) })?;
                if sync { fs::fsync(&file) } else { Ok(()) }
            }
        }
    }

    fn write_file(&self, name: &str, text: &[u8]) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut file: File = fs::openat(&self.folder, name, flags, Mode::from_raw_mode(0o600))?.into();
        file.write_all(text).map_err(super::files::errno)?;
        fs::fsync(&file)
    }

    /// What is to be done, with its digest; `None`: it was never complete.
    pub(super) fn manifest(&self) -> Result<Option<(Manifest, String)>, StageError> {
        let path = self.path.join(MANIFEST);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file: File = match fs::openat(&self.folder, MANIFEST, flags, Mode::empty()) {
            Ok(file) => file.into(),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(StageError::failed("read", &path, error)),
        };
        let mut text = Vec::new();
        let read = file.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut text);
        read.map_err(|error| StageError::failed("read", &path, super::files::errno(error)))?;
        let broken = |why: String| StageError::Failed(format!("`{}` is no manifest of estop's: {why}", path.display()));
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
        if manifest.version != Manifest::VERSION {
            return Err(broken(format!("version {} is not known here", manifest.version)));
        }
        Ok(Some((manifest, hex(&text))))
    }

    /// Carries a decided plan out, from wherever it was left.
    pub(super) fn apply(&self, base: &Base, plan: &Plan) -> Result<(), StageError> {
        let mut places = Places { base, last: None, touched: Vec::new() };
        let failed = |path: &str, error| StageError::failed("change", &base.path().join(path), error);
        if !self.has(TAKEN)? {
            for step in &plan.takes {
                if self.has(&step.to)? {
                    continue;
                }
                let (parent, name) = match places.parent(&step.from) {
                    // Somebody has taken it away.
                    Err(Errno::NOENT | Errno::NOTDIR) => continue,
                    parent => parent.map_err(|error| failed(&step.from, error))?,
                };
                match fs::renameat(&parent, name, &self.folder, &step.to) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(failed(&step.from, error)),
                }
            }
            if !plan.takes.is_empty() {
                places.sync(&self.folder).map_err(|error| StageError::failed("sync", base.path(), error))?;
            }
            self.write_file(TAKEN, b"").map_err(|error| StageError::failed("write", &self.path, error))?;
            fs::fsync(&self.folder).map_err(|error| StageError::failed("sync", &self.path, error))?;
        }
        for step in &plan.puts {
            if !self.has(&step.from)? {
                continue;
            }
            let (parent, name) = match places.parent(&step.to) {
                Err(Errno::NOENT) => {
                    places.make_parents(&step.to).map_err(|error| failed(&step.to, error))?;
                    places.parent(&step.to)
                }
                parent => parent,
            }
            .map_err(|error| failed(&step.to, error))?;
            match self.put(&step.from, &parent, name) {
                // Somebody has put something else there since it was looked at: that is theirs, and gives way.
                Err(Errno::ISDIR | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                    let aside = aside(&parent, name).map_err(|error| failed(&step.to, error))?;
                    tracing::warn!(path = %step.to, aside, "something was in the way of a commit, and was renamed");
                    self.put(&step.from, &parent, name)
                }
                put => put,
            }
            .map_err(|error| failed(&step.to, error))?;
        }
        for times in &plan.times {
            // Whose they are may say no, which is no reason to keep a folder locked.
            let stamps = Timestamps { last_access: spec(times.accessed), last_modification: spec(times.modified) };
            let set = places
                .parent(&times.path)
                .and_then(|(parent, name)| fs::utimensat(&parent, name, &stamps, AtFlags::SYMLINK_NOFOLLOW));
            if let Err(error) = set {
                tracing::warn!(path = %times.path, %error, "the times of a file could not be set");
            }
        }
        places.sync(&self.folder).map_err(|error| StageError::failed("sync", base.path(), error))
    }

    /// Whether something of the plan was done already.
    pub(super) fn has_begun(&self, plan: &Plan) -> Result<bool, StageError> {
        if self.has(TAKEN)? {
            return Ok(true);
        }
        for step in &plan.takes {
            if self.has(&step.to)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn put(&self, from: &str, parent: &OwnedFd, name: &str) -> Result<(), Errno> {
        fs::renameat(&self.folder, from, parent, name)?;
        // Two names of one file: the kernel leaves both, and calls it done.
        match fs::unlinkat(&self.folder, from, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn has(&self, name: &str) -> Result<bool, StageError> {
        match fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(StageError::failed("look at", &self.path.join(name), error)),
        }
    }

    /// From here on there is nothing to be done any more, whatever is left in the stage.
    pub(super) fn close(&self) -> Result<(), StageError> {
        match fs::unlinkat(&self.folder, MANIFEST, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(StageError::failed("remove", &self.path.join(MANIFEST), error)),
        }
        fs::fsync(&self.folder).map_err(|error| StageError::failed("sync", &self.path, error))
    }

    /// What cannot be removed is removed by whoever comes next.
    pub(super) fn remove(self, base: &Base) {
        // Beneath the descriptor, wherever somebody has moved the folder, or what they have put in its place.
        let here = format!("/proc/self/fd/{}/{HIDDEN}", base.root().as_raw_fd());
        if let Err(error) = std::fs::remove_dir_all(here) {
            tracing::warn!(%error, path = %self.path.display(), "what is left of a commit could not be removed");
        }
    }
}

/// The directories of the steps, the last one kept open.
struct Places<'a> {
    base: &'a Base,
    last: Option<(String, OwnedFd)>,
    touched: Vec<String>,
}

impl Places<'_> {
    fn parent<'p>(&mut self, path: &'p str) -> Result<(OwnedFd, &'p str), Errno> {
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        if let Some((last, folder)) = &self.last
            && last == parent
        {
            return Ok((folder.try_clone().map_err(super::files::errno)?, name));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let folder = fs::openat2(self.base.root(), parent, flags, Mode::empty(), beneath)?;
        self.touched.push(parent.to_owned());
        self.last = Some((parent.to_owned(), folder.try_clone().map_err(super::files::errno)?));
        Ok((folder, name))
    }

    /// Makes the directories on the way: somebody has removed them since they were looked at.
    fn make_parents(&mut self, path: &str) -> Result<(), Errno> {
        let names: Vec<&str> = path.split('/').collect();
        for length in 1..names.len() {
            let directory = names[..length].join("/");
            let (parent, name) = self.parent(&directory)?;
            match fs::mkdirat(&parent, name, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn sync(&mut self, stage: &OwnedFd) -> Result<(), Errno> {
        self.touched.sort_unstable();
        self.touched.dedup();
        let touched = std::mem::take(&mut self.touched);
        self.last = None;
        if touched.len() > SYNCS_MAX {
            return fs::syncfs(stage);
        }
        for parent in &touched {
            // One that was taken since is in the stage.
            match self.parent(&format!("{parent}/.")) {
                Ok((folder, _)) => fs::fsync(folder)?,
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        self.touched.clear();
        fs::fsync(stage)
    }
}

/// A conflict, if anything of the base has changed since it was read; names the first.
pub(super) fn still_as_read(base: &Base, change: &Change, is_stopped: &dyn Fn() -> bool) -> Result<(), StageError> {
    // One more name for a file changes the time of its last change, and these are ours.
    let ours = |made: &Made| if let What::OfBase(path, _) = &made.what { Some(path.clone()) } else { None };
    let ours: HashSet<PathBuf> = change.made.iter().filter_map(ours).collect();
    for (number, (path, was)) in change.reads.iter().enumerate() {
        if number % LOOKS_BETWEEN == 0 && is_stopped() {
            return Err(StageError::Stopped);
        }
        let now = base.look(path, Wait::Allowed).map_err(|error| StageError::failed("look at", path, error))?;
        let same = match (was, now) {
            (None, None) => true,
            (Some(was), Some(now)) if ours.contains(path) => was.identity() == now.stamp.identity(),
            (Some(was), Some(now)) => was.is(&now.stamp),
            _ => false,
        };
        if !same {
            return Err(StageError::Conflict(changed_by_someone(&base.path().join(path))));
        }
    }
    for (path, listed) in &change.listings {
        if is_stopped() {
            return Err(StageError::Stopped);
        }
        let now = match base.list(path, listed.len()) {
            Ok(now) => Some(now),
            // More than there was, or not there.
            Err(Errno::NOMEM | Errno::NOENT | Errno::NOTDIR) => None,
            Err(error) => return Err(StageError::failed("list", path, error)),
        };
        if now.as_ref() != Some(&**listed) {
            let what = format!("what is in {}", changed_by_someone(&base.path().join(path)));
            return Err(StageError::Conflict(what));
        }
    }
    Ok(())
}

/// Renames something that is in the way.
fn aside(parent: &OwnedFd, name: &str) -> Result<String, Errno> {
    for number in 1..=ASIDES_MAX {
        let aside = format!("{name}.before-estop-{number}");
        match fs::renameat_with(parent, name, parent, &aside, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(aside),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::EXIST)
}

fn changed_meanwhile(files: &Files, made: &Made) -> String {
    let path = match &made.what {
        What::File { origin: Some((path, _)), .. } | What::OfBase(path, _) => files.base.path().join(path),
        _ => files.base.path().to_owned(),
    };
    changed_by_someone(&path)
}

fn changed_by_someone(path: &Path) -> String {
    format!("`{}` was changed by someone else", path.display())
}

/// The `user.` attributes and the access list, as far as this process may set them.
fn copy_attributes(file: &File, to: &File, path: &Path) {
    let mut names = vec![0_u8; 64 << 10];
    let Ok(length) = fs::flistxattr(file, &mut names[..]) else { return };
    // Never what gives rights to whoever runs it.
    let is_kept = |name: &&[u8]| name.starts_with(b"user.") || *name == b"system.posix_acl_access";
    for name in names[..length].split(|byte| *byte == 0).filter(is_kept) {
        let mut value = vec![0_u8; 64 << 10];
        if let Ok(length) = fs::fgetxattr(file, name, &mut value[..]) {
            let set = fs::fsetxattr(to, name, &value[..length], fs::XattrFlags::empty());
            if let Err(error) = set {
                tracing::debug!(%error, path = %path.display(), "an attribute of a file is lost at its change");
            }
        }
    }
}

fn spec(time: Time) -> Timespec {
    Timespec { tv_sec: time.s, tv_nsec: time.ns.into() }
}

fn hex(text: &[u8]) -> String {
    Hex::of(&Sha256::digest(text).into()).as_str().to_owned()
}
