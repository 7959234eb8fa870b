//! The home: the folder where everything that outlives a process is kept. Any number of host processes share one.
//!
//! Invariant: nobody but its owner can look into it, and whether a host that uses it is alive is a lock that ends with
//! its process, never a guess.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;

use crate::ids::HostId;

/// What a host has left behind is not touched before this: it may just be on its way to say that it is alive.
const SWEPT_AFTER: Duration = Duration::from_secs(3600);

/// A home cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// It cannot be made or read.
    #[error("cannot use the home `{}`: {error}", path.display())]
    Io {
        /// Which folder or file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Others may look into it.
    #[error("the home `{}` is open to other users (mode {mode:03o}): `chmod 700` it, or choose another", path.display())]
    Open {
        /// Which folder.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error("the home `{}` belongs to user {owner}, and this process runs as {user}", path.display())]
    Foreign {
        /// Which folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who asks.
        user: u32,
    },
    /// There is no place for one.
    #[error("there is no home: set ESTOP_HOME, or XDG_STATE_HOME, or HOME to an absolute path")]
    Nowhere,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Home {
    path: PathBuf,
}

impl Home {
    /// The home at this path, made if it is not there.
    ///
    /// # Errors
    /// It cannot be made, belongs to another user, or is open to others.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, HomeError> {
        let path = path.into();
        let failed = |error| HomeError::Io { path: path.clone(), error };
        if !path.exists() {
            DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
        }
        let found = fs::metadata(&path).map_err(failed)?;
        let user = rustix::process::geteuid().as_raw();
        if !found.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        if found.uid() != user {
            return Err(HomeError::Foreign { path, owner: found.uid(), user });
        }
        if found.mode() & 0o077 != 0 {
            return Err(HomeError::Open { path, mode: found.mode() & 0o777 });
        }
        let path = path.canonicalize().map_err(failed)?;
        let home = Self { path };
        let halts = home.halts();
        let folders =
            [home.run(), home.cache(), home.alternate(), halts.clone(), halts.join("latched"), halts.join("inbox")];
        for folder in folders {
            match DirBuilder::new().mode(0o700).create(&folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(HomeError::Io { path: folder, error });
                }
                _ => {}
            }
        }
        Ok(home)
    }

    /// Where the home is if nobody says: `ESTOP_HOME`, else `estop` under `XDG_STATE_HOME` or `~/.local/state`.
    ///
    /// # Errors
    /// None of these is set to an absolute path.
    pub fn default_path() -> Result<PathBuf, HomeError> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        absolute("ESTOP_HOME")
            .or_else(|| absolute("XDG_STATE_HOME").map(|state| state.join("estop")))
            .or_else(|| absolute("HOME").map(|home| home.join(".local/state/estop")))
            .ok_or(HomeError::Nowhere)
    }

    /// Where it is, absolute and without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.path.join("estop.db")
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.path.join("cache")
    }

    pub(crate) fn alternate(&self) -> PathBuf {
        self.path.join("alternate")
    }

    pub(crate) fn halts(&self) -> PathBuf {
        self.path.join("halts")
    }

    fn run(&self) -> PathBuf {
        self.path.join("run")
    }

    /// Held while the database is opened or made: one process at a time.
    pub(crate) fn opening(&self) -> PathBuf {
        self.run().join("opening")
    }

    fn sign_of_life(&self, host: HostId) -> PathBuf {
        self.run().join(host.to_string())
    }

    /// Says that this host is alive, until the file is dropped or the process ends.
    pub(crate) fn live(&self, host: HostId) -> io::Result<Alive> {
        let path = self.sign_of_life(host);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Alive { path, _locked: file })
    }

    /// Whether this host's process is gone.
    pub(crate) fn is_dead(&self, host: HostId) -> io::Result<bool> {
        let file = match File::open(self.sign_of_life(host)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            opened => opened?,
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes what hosts have left behind that were killed while they came or went: their entries are in the log, or
    /// there was nothing to enter. Files of hosts that are alive, or may just be coming, stay.
    pub(crate) fn sweep(&self) {
        for folder in [self.run(), self.alternate()] {
            let Ok(entries) = fs::read_dir(folder) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let host = name.to_str().map(|name| name.strip_suffix(".jsonl").unwrap_or(name)).map(str::parse);
                let Some(Ok(host)) = host else { continue };
                let Ok(found) = entry.metadata() else { continue };
                let is_old = found.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > SWEPT_AFTER));
                // What has something in it may belong to a host that died a moment ago and is not entered yet.
                if is_old && found.len() == 0 && self.is_dead(host).is_ok_and(|dead| dead) {
                    // What stays is swept by the next one.
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
    }

    /// Once it is entered that this host is dead.
    pub(crate) fn bury(&self, host: HostId) {
        // What is left is found dead again, and nothing is entered twice.
        let _ = fs::remove_file(self.sign_of_life(host));
    }
}

/// A host's sign of life.
pub(crate) struct Alive {
    path: PathBuf,
    _locked: File,
}

impl Drop for Alive {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_that_others_can_look_into_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("home");
        Home::open(&path).expect("a home is made");
        assert_eq!(fs::metadata(&path).expect("it is there").mode() & 0o777, 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("permissions are changed");
        assert!(matches!(Home::open(&path), Err(HomeError::Open { mode: 0o755, .. })));
    }

    #[test]
    fn a_host_is_alive_as_long_as_its_sign_of_life() {
        let folder = tempfile::tempdir().expect("a folder");
        let home = Home::open(folder.path().join("home")).expect("a home");
        let host = HostId::generate();
        let alive = home.live(host).expect("a sign of life");
        assert!(!home.is_dead(host).expect("it can be asked"));
        drop(alive);
        assert!(home.is_dead(host).expect("it can be asked"));
    }

    #[test]
    fn what_killed_hosts_have_left_is_swept_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let home = Home::open(folder.path().join("home")).expect("a home");
        let (old, young, alive) = (HostId::generate(), HostId::generate(), HostId::generate());
        let _alive = home.live(alive).expect("a sign of life");
        let long_ago = std::time::SystemTime::now() - 2 * SWEPT_AFTER;
        let paths = [home.run().join(old.to_string()), home.alternate().join(format!("{old}.jsonl"))];
        for path in paths.iter().chain([&home.run().join(young.to_string()), &home.run().join("opening")]) {
            File::create(path).expect("a file");
        }
        for path in paths.iter().chain([&home.run().join(alive.to_string()), &home.run().join("opening")]) {
            File::open(path).and_then(|file| file.set_modified(long_ago)).expect("it is made older");
        }
        home.sweep();
        assert!(paths.iter().all(|path| !path.exists()));
        for name in [young.to_string(), alive.to_string(), "opening".into()] {
            assert!(home.run().join(&name).exists(), "{name}");
        }
    }
}
