//! Where host processes are found: a folder for each, with its sockets.
//!
//! Invariants:
//! - A folder is there under its name only when its sockets answer: it is made under another name first.
//! - Whether its process is alive is a lock that ends with the process, or a socket that does, never a guess. A folder
//!   whose process is gone is left over, and removed by whoever looks and may.

mod service;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};

pub use self::service::Mode;
use super::protocol::Role;

/// Host processes of service mode: a folder for each user, and in it one for each process.
const SERVICES: &str = "/run/estop";
/// Where systemd keeps the run-time folders of users.
const USERS: &str = "/run/user";
/// A socket's path is at most this long (bytes; unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Hosts of one process; more cannot be offered.
const HOSTS_IN_PROCESS_MAX: u32 = 1000;
/// Folders that are looked at in one place.
const FOUND_MAX: usize = 4096;

/// A host cannot be offered to operators.
#[derive(Debug, thiserror::Error)]
#[error("operators could not reach this host through `{}`: {error} (XDG_RUNTIME_DIR names another place)", path.display())]
pub struct PlaceError {
    /// Which folder or socket.
    pub path: PathBuf,
    /// Why.
    pub error: io::Error,
}

/// A host's folder, removed when this is dropped.
pub(crate) struct Offer {
    folder: PathBuf,
    _locked: File,
}

impl Offer {
    /// Makes the folder of a host of this process, with a socket for each of these roles.
    pub(crate) fn make(roles: &[Role]) -> Result<(Self, Vec<(Role, UnixListener)>), PlaceError> {
        let root = own_root();
        let failed = |path: &Path, error| PlaceError { path: path.to_owned(), error };
        open_root(&root).map_err(|error| failed(&root, error))?;
        if mode_in(&root) == Mode::Service {
            // Nobody else may clear away what earlier processes of the service have left.
            hosts_in(&root, rustix::process::geteuid().as_raw(), &mut Vec::new());
        }
        let draft = tempfile::Builder::new().prefix(".").rand_bytes(6).tempdir_in(&root);
        let draft = draft.map_err(|error| failed(&root, error))?.keep();
        let made =
            Self::fill(&draft, roles).and_then(|(locked, sockets)| Ok((Self::name(&root, &draft)?, locked, sockets)));
        match made {
            Ok((folder, locked, sockets)) => Ok((Self { folder, _locked: locked }, sockets)),
            Err(error) => {
                // It has a name that nobody looks at.
                let _ = fs::remove_dir_all(&draft);
                Err(failed(&root, error))
            }
        }
    }

    fn fill(draft: &Path, roles: &[Role]) -> io::Result<(File, Vec<(Role, UnixListener)>)> {
        let mode = mode_in(draft);
        let lock = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft.join("lock"))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let mut sockets = Vec::new();
        for &role in roles {
            let path = draft.join(role.socket());
            if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
                return Err(io::Error::other(format!("a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes")));
            }
            let socket = UnixListener::bind(&path)?;
            socket.set_nonblocking(true)?;
            service::open_socket(&path, role, mode)?;
            sockets.push((role, socket));
        }
        service::open_folder(draft, mode)?;
        Ok((lock, sockets))
    }

    /// Puts the folder where others look.
    fn name(root: &Path, draft: &Path) -> io::Result<PathBuf> {
        let pid = std::process::id();
        for n in 0..HOSTS_IN_PROCESS_MAX {
            let folder = root.join(if n == 0 { pid.to_string() } else { format!("{pid}.{n}") });
            if is_left_over(&folder) {
                // Of an earlier process with the same number.
                let _ = fs::remove_dir_all(&folder);
            }
            match fs::rename(draft, &folder) {
                // Another host of this process.
                Err(error) if is_taken(&error) => {}
                named => return named.map(|()| folder),
            }
        }
        Err(io::Error::other(format!("this process has {HOSTS_IN_PROCESS_MAX} hosts already")))
    }
}

impl Offer {
    /// Where the sockets are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn mode(&self) -> Mode {
        mode_in(&self.folder)
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        // What stays is found to be left over.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A host process that can be asked.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where its sockets are.
    pub folder: PathBuf,
    /// Its process.
    pub pid: u32,
    /// Whose folder it is.
    pub owner: u32,
}

impl Found {
    /// Whether agents can call tools there.
    pub fn serves_agents(&self) -> bool {
        self.folder.join(Role::Agent.socket()).exists()
    }

    /// Who is kept apart there.
    pub fn mode(&self) -> Mode {
        mode_in(&self.folder)
    }

    /// Whether a process holds the lock in the folder. Not the opposite of `is_gone`: that nobody can tell is neither.
    #[cfg(feature = "cli")]
    pub(crate) fn is_alive(&self) -> bool {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let lock = OpenOptions::new().read(true).custom_flags(flags).open(self.folder.join("lock"));
        lock.is_ok_and(|lock| {
            let is_owners = lock.metadata().is_ok_and(|found| found.is_file() && found.uid() == self.owner);
            let locked = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared);
            is_owners && matches!(locked, Err(rustix::io::Errno::WOULDBLOCK))
        })
    }

    /// Whether the process that made the folder is gone.
    pub fn is_gone(&self) -> bool {
        !self.folder.exists() || is_left_over(&self.folder)
    }
}

/// What a look has found, and where it looked.
#[derive(Debug, Default)]
pub struct Looked {
    /// Hosts that are alive.
    pub hosts: Vec<Found>,
    /// The folders that were looked at.
    pub places: Vec<PathBuf>,
    /// What could not be looked at, and why.
    pub unseen: Vec<(PathBuf, io::Error)>,
}

/// Every host process that this user can see: root looks everywhere, others where their own are and where services are.
pub fn look() -> Looked {
    let mut looked = Looked::default();
    let user = rustix::process::geteuid().as_raw();
    let mut roots = vec![(own_root(), user)];
    let mut named = |folder: &Path, prefix| {
        let is_users = |path: &Path| named_after(path, prefix).is_some_and(|owner| is_folder_of(path, owner));
        let found = folders(folder, is_users, &mut looked.unseen);
        found.into_iter().filter_map(|root| named_after(&root, prefix).map(|owner| (root, owner))).collect::<Vec<_>>()
    };
    roots.extend(named(Path::new(SERVICES), ""));
    if user == 0 {
        roots.extend(named(Path::new(USERS), "").into_iter().map(|(user, owner)| (user.join("estop"), owner)));
        roots.extend(named(&std::env::temp_dir(), "estop-"));
    }
    roots.sort();
    roots.dedup();
    let own = own_root();
    for (root, owner) in roots {
        // A link, or somebody else's folder, would have this user look at whatever its maker likes.
        if is_folder_of(&root, owner) {
            looked.hosts.extend(hosts_in(&root, owner, &mut looked.unseen));
        } else if root != own {
            continue;
        }
        looked.places.push(root);
    }
    looked
}

/// The hosts of one user in that user's place that are alive. Those that are not are cleared away where they are this
/// user's own: elsewhere somebody may put another folder in the place of one that was looked at.
fn hosts_in(root: &Path, owner: u32, unseen: &mut Vec<(PathBuf, io::Error)>) -> Vec<Found> {
    let mut hosts = Vec::new();
    for folder in folders(root, |folder| is_folder_of(folder, owner), unseen) {
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(Ok(pid)) = name.split('.').next().filter(|pid| !pid.is_empty()).map(str::parse) else { continue };
        if !is_left_over(&folder) {
            hosts.push(Found { folder, pid, owner });
        } else if owner == rustix::process::geteuid().as_raw() {
            let _ = fs::remove_dir_all(&folder);
        }
    }
    hosts
}

/// A folder, no link, that belongs to this user.
fn is_folder_of(path: &Path, owner: u32) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == owner)
}

/// The number of the user that a place is named after.
fn named_after(path: &Path, prefix: &str) -> Option<u32> {
    path.file_name()?.to_str()?.strip_prefix(prefix)?.parse().ok()
}

/// By where it is: services are where root has made a place for them.
fn mode_in(folder: &Path) -> Mode {
    if folder.starts_with(SERVICES) { Mode::Service } else { Mode::Personal }
}

/// Where hosts of this user are offered.
pub(crate) fn own_root() -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    let service = Path::new(SERVICES).join(user.to_string());
    if service.is_dir() {
        return service;
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let runtime = runtime.or_else(|| Some(Path::new(USERS).join(user.to_string())));
    match runtime.filter(|path| path.is_dir()) {
        Some(runtime) => runtime.join("estop"),
        None => std::env::temp_dir().join(format!("estop-{user}")),
    }
}

/// Makes the folder of a user's hosts, or finds it as it has to be.
fn open_root(root: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(root) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(root)?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other("it is not a folder of this user"));
    }
    if found.mode() & 0o022 != 0 {
        return Err(io::Error::other("others may write to it"));
    }
    Ok(())
}

/// The folders in a folder, if there is one, that are meant. Others may be many: who may write there decides that.
fn folders(path: &Path, is_meant: impl Fn(&Path) -> bool, unseen: &mut Vec<(PathBuf, io::Error)>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let read = fs::read_dir(path).and_then(|entries| {
        for entry in entries {
            let entry = entry?;
            let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            if is_hidden || !is_meant(&entry.path()) {
                continue;
            }
            if found.len() == FOUND_MAX {
                return Err(io::Error::other(format!("there are more than {FOUND_MAX} hosts or users in it")));
            }
            found.push(entry.path());
        }
        Ok(())
    });
    match read {
        Err(error) if error.kind() != io::ErrorKind::NotFound => unseen.push((path.to_owned(), error)),
        _ => {}
    }
    found
}

/// The process that made the folder is gone.
fn is_left_over(folder: &Path) -> bool {
    // Whose folder it is may have put anything there: a pipe would keep whoever opens it waiting.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    match OpenOptions::new().read(true).custom_flags(flags).open(folder.join("lock")) {
        Ok(lock) => rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_ok(),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => service::nobody_listens(folder),
        Err(_) => false,
    }
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Whoever may write in a place of their own could have others take anything for a host.
    #[test]
    fn a_link_is_no_place_and_no_host() {
        let folder = tempfile::tempdir().unwrap();
        let user = rustix::process::geteuid().as_raw();
        let (root, elsewhere) = (folder.path().join("estop"), folder.path().join("elsewhere"));
        for path in [&root, &elsewhere, &elsewhere.join("4711"), &root.join("4712")] {
            fs::create_dir(path).unwrap();
        }
        symlink(elsewhere.join("4711"), root.join("4711")).unwrap();
        let found = |owner| hosts_in(&root, owner, &mut Vec::new());
        assert_eq!(found(user).iter().map(|host| host.pid).collect::<Vec<_>>(), [4712]);
        assert!(found(user + 1).is_empty());
        symlink(&elsewhere, folder.path().join("link")).unwrap();
        assert!(is_folder_of(&elsewhere, user) && !is_folder_of(&folder.path().join("link"), user));
    }

    /// What is killed has to show that it lives: that nothing says otherwise is not enough.
    #[cfg(feature = "cli")]
    #[test]
    fn only_who_holds_the_lock_is_alive() {
        let folder = tempfile::tempdir().unwrap();
        let owner = rustix::process::geteuid().as_raw();
        let host = Found { folder: folder.path().to_owned(), pid: 1, owner };
        assert!(!host.is_alive() && !host.is_gone());
        let lock = File::create(folder.path().join("lock")).unwrap();
        assert!(!host.is_alive() && host.is_gone());
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(host.is_alive() && !host.is_gone());
        assert!(!Found { owner: owner + 1, ..host }.is_alive());
    }
}
