//! One step of a setup: what it does in words, whether that is done, and doing it.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};

use crate::user;

/// A folder itself, and nothing that a link leads to.
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// On a folder whose contents are being handed over. Nothing else in the world has this bit on a folder.
const UNDER_WAY: Mode = Mode::SUID;
/// Folders in folders whose owner is changed.
const DEPTH_MAX: usize = 32;

/// Whom a folder belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    pub(super) user: &'static str,
    pub(super) group: &'static str,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) enum Step {
    AddGroup(&'static str),
    AddUser {
        user: &'static str,
        home: &'static str,
        groups: &'static [&'static str],
    },
    Join {
        user: &'static str,
        group: &'static str,
    },
    /// With whatever is in it, if it belonged to somebody else.
    Folder {
        path: PathBuf,
        mode: u32,
        owner: Owner,
    },
    /// Where the hosts of a user are found.
    RunFolder {
        user: &'static str,
    },
    /// The numbers of users are known when the users are there.
    File {
        path: PathBuf,
        text: fn() -> anyhow::Result<String>,
    },
    Reload,
    Disable(&'static str),
    RemoveFile(PathBuf),
    /// With whatever is in it.
    RemoveFolder(PathBuf),
    /// To root, so that it is not the next user's who gets the number.
    Keep {
        path: PathBuf,
    },
    RemoveUser(String),
    RemoveGroup(String),
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::AddGroup(group) => write!(f, "add group {group}"),
            Step::AddUser { user, home, groups } => {
                write!(f, "add user {user} (system, no login, home {home}, also in {})", groups.join(", "))
            }
            Step::Join { user, group } => write!(f, "add user {user} to group {group}"),
            Step::Folder { path, mode, owner: Owner { user, group } } => {
                write!(f, "folder {} {mode:04o} {user}:{group}", path.display())
            }
            Step::RunFolder { user } => match self.path() {
                Some(path) => write!(f, "folder {} 0755 {user}:{user}", path.display()),
                None => write!(f, "folder /run/estop/(number of {user}) 0755 {user}:{user}"),
            },
            Step::File { path, .. } => write!(f, "file {}", path.display()),
            Step::Reload => f.write_str("systemctl daemon-reload"),
            Step::Disable(unit) => write!(f, "systemctl disable --now {unit}"),
            Step::RemoveFile(path) => write!(f, "remove file {}", path.display()),
            Step::RemoveFolder(path) => write!(f, "remove folder {} and what is in it", path.display()),
            Step::Keep { path } => write!(f, "give {} and what is in it to root", path.display()),
            Step::RemoveUser(user) => write!(f, "remove user {user}"),
            Step::RemoveGroup(group) => write!(f, "remove group {group}"),
        }
    }
}

impl Step {
    /// The folder or file that it makes, as far as that is known.
    fn path(&self) -> Option<PathBuf> {
        match self {
            Step::Folder { path, .. } | Step::File { path, .. } => Some(path.clone()),
            Step::RunFolder { user } => Some(Path::new("/run/estop").join(user::number(user)?.to_string())),
            _ => None,
        }
    }

    /// What undoing finds it by.
    pub(super) fn mark(&self) -> Option<String> {
        let kind = match self {
            Step::AddGroup(group) => return Some(format!("group {group}")),
            Step::AddUser { user, .. } => return Some(format!("user {user}")),
            Step::File { .. } => "file",
            _ => "folder",
        };
        // What is there already was not made by us.
        self.path().filter(|path| !path.exists()).map(|path| format!("{kind} {}", path.display()))
    }

    pub(super) fn is_done(&self) -> bool {
        match self {
            Step::AddGroup(group) => user::group(group).is_some(),
            Step::AddUser { user, .. } => user::number(user).is_some(),
            Step::Join { user, group } => user::is_member(user, group),
            Step::Folder { path, mode, owner } => is_as_it_has_to_be(path, *mode, *owner),
            Step::RunFolder { user } => {
                self.path().is_some_and(|path| is_as_it_has_to_be(&path, 0o755, Owner { user, group: user }))
            }
            // What is there is somebody's: a configuration is never written over.
            Step::File { path, .. } => path.exists(),
            Step::Reload => !has_systemd(),
            Step::Disable(unit) => !has_systemd() || !Path::new("/etc/systemd/system").join(unit).exists(),
            Step::RemoveFile(path) | Step::RemoveFolder(path) => fs::symlink_metadata(path).is_err(),
            Step::Keep { path } => fs::symlink_metadata(path)
                .is_ok_and(|found| found.uid() == 0 && found.gid() == 0 && found.mode() & UNDER_WAY.as_raw_mode() == 0),
            Step::RemoveUser(user) => user::number(user).is_none(),
            Step::RemoveGroup(group) => user::group(group).is_none(),
        }
    }

    pub(super) fn run(&self) -> anyhow::Result<()> {
        match self {
            Step::AddGroup(group) => tool("groupadd", &["--system", group]),
            Step::AddUser { user, home, groups } => {
                let groups = groups.join(",");
                let place = ["--gid", user, "--groups", &groups, "--home-dir", home, "--no-create-home"];
                tool("useradd", &[&["--system", "--shell", "/usr/sbin/nologin"][..], &place, &[user]].concat())
            }
            Step::Join { user, group } => tool("usermod", &["--append", "--groups", group, user]),
            Step::Folder { path, mode, owner } => folder(path, *mode, *owner),
            Step::RunFolder { user } => {
                let path = self.path().with_context(|| format!("there is no user {user}"))?;
                folder(&path, 0o755, Owner { user, group: user })
            }
            Step::File { path, text } => write(path, &text()?),
            Step::Reload => tool("systemctl", &["daemon-reload"]),
            Step::Disable(unit) => tool("systemctl", &["disable", "--now", unit]),
            Step::RemoveFile(path) => Ok(fs::remove_file(path)?),
            Step::RemoveFolder(path) => Ok(fs::remove_dir_all(path)?),
            Step::Keep { path } => {
                Ok(hand_over(&rustix::fs::open(path, FOLDER, Mode::empty())?, Uid::ROOT, Gid::ROOT, Mode::RWXU)?)
            }
            Step::RemoveUser(user) => tool("userdel", &[user]),
            // A user's own group may have gone with the user.
            Step::RemoveGroup(group) if user::group(group).is_none() => Ok(()),
            Step::RemoveGroup(group) => tool("groupdel", &[group]),
        }
    }
}

/// Whether systemd runs here, as sd_booted(3) has it.
fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

fn tool(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let ran = Command::new(program).args(args).stdin(Stdio::null()).stdout(Stdio::null()).output();
    let output = match ran {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("there is no `{program}` (Debian: package `passwd`; also look whether PATH has /usr/sbin)")
        }
        ran => ran.with_context(|| format!("cannot run `{program}`"))?,
    };
    if !output.status.success() {
        bail!("`{program} {}`: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn is_as_it_has_to_be(path: &Path, mode: u32, owner: Owner) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| {
        found.is_dir()
            && found.mode() & 0o7777 == mode
            && user::number(owner.user) == Some(found.uid())
            && user::group(owner.group) == Some(found.gid())
    })
}

fn folder(path: &Path, mode: u32, owner: Owner) -> anyhow::Result<()> {
    let uid = user::number(owner.user).with_context(|| format!("there is no user {}", owner.user))?;
    let gid = user::group(owner.group).with_context(|| format!("there is no group {}", owner.group))?;
    // Nobody else gets in before it is as it has to be.
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
        _ => {}
    }
    // By descriptor from here on: what belongs to somebody else may be changed at any moment.
    let opened = rustix::fs::open(path, FOLDER, Mode::empty());
    let opened = opened.with_context(|| format!("`{}` is there, and is no folder", path.display()))?;
    let found = rustix::fs::fstat(&opened)?;
    let (user, group, mode) = (Uid::from_raw(uid), Gid::from_raw(gid), Mode::from_raw_mode(mode));
    // What is in a folder of root's has steps of its own.
    if (found.st_uid == uid && found.st_mode & UNDER_WAY.as_raw_mode() == 0) || user.is_root() {
        rustix::fs::fchown(&opened, Some(user), Some(group))?;
        // After the owner: changing that may take bits away.
        return Ok(rustix::fs::fchmod(&opened, mode)?);
    }
    Ok(hand_over(&opened, user, group, mode)?)
}

/// Gives somebody a folder with everything in it. One that was broken off looks like that, and is gone on with.
fn hand_over(folder: &OwnedFd, uid: Uid, gid: Gid, mode: Mode) -> io::Result<()> {
    // The folder first: whoever had it cannot put anything there any more.
    rustix::fs::fchown(folder, Some(uid), Some(gid))?;
    rustix::fs::fchmod(folder, Mode::RWXU | UNDER_WAY)?;
    give(folder, uid, gid, DEPTH_MAX)?;
    Ok(rustix::fs::fchmod(folder, mode)?)
}

/// Changes the owner of everything in a folder, and follows no links, also if somebody moves things about meanwhile.
fn give(folder: &OwnedFd, uid: Uid, gid: Gid, depth: usize) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::other(format!("there are folders more than {DEPTH_MAX} deep in it")));
    }
    rustix::fs::fchown(folder, Some(uid), Some(gid))?;
    for entry in rustix::fs::Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
            // Somebody has just removed it.
            Err(rustix::io::Errno::NOENT) => continue,
            found => found?,
        };
        let stat = rustix::fs::fstat(&found)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            give(&rustix::fs::openat(&found, ".", FOLDER, Mode::empty())?, uid, gid, depth - 1)?;
        } else if stat.st_nlink == 1 {
            // One with other names may be somebody's who never gave it away.
            rustix::fs::chownat(&found, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        }
    }
    Ok(())
}

/// There entirely or not at all.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().context("a file is in a folder")?;
    if !folder.is_dir() {
        // A machine without systemd, which has no use for the file.
        fs::create_dir_all(folder)?;
    }
    let mut file = tempfile::Builder::new().prefix(".estop").tempfile_in(folder)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path)?;
    Ok(())
}
