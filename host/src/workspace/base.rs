//! Reading the folder under a workspace.
//!
//! Invariant: nothing here changes the folder, and nothing is opened outside of it: names are resolved by the kernel beneath the
//! folder's own descriptor, without following a symbolic link and without leaving its file system. Nothing but regular
//! files is ever opened for reading, so nothing waits for whoever is at the other end of a pipe.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// How often a path is resolved that others are renaming at the same time.
const RESOLVE_TRIES_MAX: u32 = 8;

/// Whether to wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Answers `EAGAIN` instead.
    Never,
    Allowed,
}

/// What something in the folder is, and when it changed: the same stamp later means the same thing, unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    dev: u64,
    ino: u64,
    owner: u32,
    pub(crate) mode: u32,
    pub(crate) size: u64,
    pub(crate) modified: Time,
    pub(crate) changed: Time,
}

/// What does not belong to a stamp: reading changes it, or somebody's other name for the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) stamp: Stamp,
    pub(crate) accessed: Time,
    pub(crate) links: u64,
}

/// Seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub(crate) struct Time {
    pub(crate) s: i64,
    pub(crate) ns: u32,
}

impl Stamp {
    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// Whether it is the same thing. Of a directory more is not asked: what is in it is looked at by name.
    pub(crate) fn is(&self, other: &Stamp) -> bool {
        let same = (self.dev, self.ino, self.kind()) == (other.dev, other.ino, other.kind());
        same && (self.kind() == FileType::Directory || self == other)
    }

    /// Whether this process may take it out of a directory that it may write: of a sticky one only its own.
    pub(crate) fn may_be_taken_from(&self, directory: &Stamp) -> bool {
        let user = rustix::process::geteuid();
        let is_ours = |stamp: &Stamp| stamp.owner == user.as_raw();
        directory.mode & Mode::SVTX.as_raw_mode() == 0 || user.is_root() || is_ours(self) || is_ours(directory)
    }

    /// The same for the same file, as long as it lives.
    pub(crate) fn identity(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }
}

impl From<Stat> for Found {
    fn from(stat: Stat) -> Self {
        #[allow(clippy::unnecessary_cast, reason = "the types differ between machines")]
        let time = |s: i64, ns: u64| Time { s, ns: u32::try_from(ns).unwrap_or(0) };
        #[allow(clippy::unnecessary_cast, reason = "the types differ between machines")]
        let stamp = Stamp {
            dev: stat.st_dev as u64,
            ino: stat.st_ino as u64,
            owner: stat.st_uid as u32,
            mode: stat.st_mode as u32,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: time(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            changed: time(stat.st_ctime as i64, stat.st_ctime_nsec as u64),
        };
        #[allow(clippy::unnecessary_cast, reason = "the types differ between machines")]
        Found { stamp, accessed: time(stat.st_atime as i64, stat.st_atime_nsec as u64), links: stat.st_nlink as u64 }
    }
}

/// What is in a directory, in order.
pub(crate) type Listed = Vec<(OsString, FileType)>;

/// A folder.
#[derive(Debug)]
pub(crate) struct Base {
    root: OwnedFd,
    dev: u64,
    path: PathBuf,
    /// A name that is not part of it, wherever it is.
    hidden: &'static str,
}

impl Base {
    /// # Errors
    /// There is no such directory, or it may not be read.
    pub(crate) fn open(path: &Path, hidden: &'static str) -> std::io::Result<Self> {
        let path = path.canonicalize()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root = fs::openat(CWD, &path, flags, Mode::empty())?;
        let dev = Found::from(fs::fstat(&root)?).stamp.dev;
        Ok(Self { root, dev, path, hidden })
    }

    /// Where it is, without symbolic links.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// What is at this path from the folder; `None`, if nothing is.
    pub(crate) fn look(&self, path: &Path, wait: Wait) -> Result<Option<Found>, Errno> {
        if path.file_name().is_some_and(|name| name == self.hidden) {
            return Ok(None);
        }
        match self.resolve(path, OFlags::PATH | OFlags::NOFOLLOW, wait) {
            Ok(fd) => {
                let found = Found::from(fs::fstat(fd)?);
                // A part of a file system that is one for renaming, too.
                let is_another = found.stamp.kind() == FileType::Directory && found.stamp.dev != self.dev;
                if is_another { Err(Errno::XDEV) } else { Ok(Some(found)) }
            }
            // Also beneath something that is no directory any more.
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A regular file that is still what it was. `ESTALE`: it is not.
    pub(crate) fn file(&self, path: &Path, stamp: &Stamp, wait: Wait) -> Result<File, Errno> {
        // A pipe that has taken its place is not waited for.
        let fd = self.resolve(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY, wait);
        let fd = fd.map_err(|error| if matches!(error, Errno::NOENT | Errno::LOOP) { Errno::STALE } else { error })?;
        let found = Found::from(fs::fstat(&fd)?);
        if found.stamp.kind() == FileType::RegularFile && found.stamp.is(stamp) {
            Ok(fd.into())
        } else {
            Err(Errno::STALE)
        }
    }

    /// What a symbolic link says.
    pub(crate) fn link(&self, path: &Path) -> Result<OsString, Errno> {
        let fd = self.resolve(path, OFlags::PATH | OFlags::NOFOLLOW, Wait::Allowed)?;
        let target = fs::readlinkat(fd, "", Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// What is in a directory, by name.
    pub(crate) fn list(&self, path: &Path, names_max: usize) -> Result<Listed, Errno> {
        let fd = self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY, Wait::Allowed)?;
        let mut entries = Vec::new();
        for entry in Dir::new(fd)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." || name == self.hidden {
                continue;
            }
            if entries.len() >= names_max {
                return Err(Errno::NOMEM);
            }
            let kind = match entry.file_type() {
                // Some file systems do not say.
                FileType::Unknown => {
                    let found = self.look(&path.join(name), Wait::Allowed).ok().flatten();
                    found.map_or(FileType::Unknown, |found| found.stamp.kind())
                }
                kind => kind,
            };
            entries.push((name.to_owned(), kind));
        }
        entries.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Ok(entries)
    }

    /// Whether this process may write to what is there.
    pub(crate) fn may_write(&self, path: &Path) -> Result<bool, Errno> {
        let at = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        match fs::accessat(&self.root, at, fs::Access::WRITE_OK, AtFlags::EACCESS | AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) => Ok(true),
            Err(Errno::ACCESS | Errno::ROFS | Errno::PERM) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn resolve(&self, path: &Path, flags: OFlags, wait: Wait) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let open = |how| fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), beneath | how);
        if wait == Wait::Never {
            return open(ResolveFlags::CACHED);
        }
        // The kernel says so if something was renamed meanwhile.
        for _ in 1..RESOLVE_TRIES_MAX {
            match open(ResolveFlags::empty()) {
                Err(Errno::AGAIN) => {}
                done => return done,
            }
        }
        open(ResolveFlags::empty())
    }
}
