//! Service mode: a host whose folder others can find, with sockets that belong to the groups of their roles.
//!
//! Invariant: whether the process is alive is decided by what its user alone controls. The lock stays its own (whoever can
//! open a file can hold a lock on it, and would make a dead process look alive); others ask whether anybody listens.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::control::protocol::Role;
use crate::user;

/// Which users a host keeps apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One user for everything: it holds against guests and mistakes.
    #[default]
    Personal,
    /// A user for the host, and groups for operators, admins and agents: it holds against programs as well.
    Service,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mode::Personal => "personal",
            Mode::Service => "service",
        })
    }
}

/// Lets those connect who have the role.
pub(super) fn open_socket(socket: &Path, role: Role, mode: Mode) -> io::Result<()> {
    let permissions = match mode {
        Mode::Personal => 0o600,
        Mode::Service => {
            let group = role.group();
            let why = |why: &str| io::Error::other(format!("group `{group}` {why}; `estop setup --system` sees to it"));
            let gid = user::group(group).ok_or_else(|| why("is not there"))?;
            chown(socket, None, Some(gid)).map_err(|error| why(&format!("cannot be given the socket ({error})")))?;
            0o660
        }
    };
    fs::set_permissions(socket, Permissions::from_mode(permissions))
}

/// Lets others look into the host's folder, where they find the sockets.
pub(super) fn open_folder(folder: &Path, mode: Mode) -> io::Result<()> {
    match mode {
        Mode::Personal => Ok(()),
        Mode::Service => fs::set_permissions(folder, Permissions::from_mode(0o755)),
    }
}

/// Whether the process that has bound the sockets here is gone, as far as this user may ask. It does not wait: a process
/// that is frozen has its sockets still.
pub(super) fn nobody_listens(folder: &Path) -> bool {
    for role in [Role::Operator, Role::Admin, Role::Agent] {
        match connect(&folder.join(role.socket())) {
            Err(Errno::CONNREFUSED) => return true,
            Err(Errno::ACCESS | Errno::NOENT) => {}
            // It listens, or has more to answer than it can.
            Ok(()) | Err(_) => return false,
        }
    }
    false
}

fn connect(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
}
