//! A PID namespace for a tree, where a user may make one.
//!
//! Invariant: everything in it descends from its first process, and the kernel kills all of it when that one ends, in any
//! way; the first process has ended once nobody else is left. So a pidfd of the first process tells of the whole tree.

use std::fs;
use std::io;
use std::process::{Child, Command, ExitStatus};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use rustix::fd::OwnedFd;
use rustix::process::{PidfdFlags, WaitOptions, pidfd_open, waitpid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

use crate::failed;

/// Dead processes that are reaped at once, before somebody else is listened to again.
const REAPED_MAX: usize = 256;

/// What this process starts from now on is in a namespace of its own, of which the first child becomes the first process;
/// this process itself stays outside. In the namespace the user has the same number, and no rights beside their own.
///
/// # Errors
/// Where a user may not make one. Some of it may have been done: this process is of no use then. It may have one thread only.
pub fn enter_namespace() -> io::Result<()> {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS;
    unshare(flags).map_err(|error| failed("making a PID namespace", error))?;
    let write = |path: &str, text: String| {
        fs::write(path, text).map_err(|error| failed(format!("writing {path} of a PID namespace"), error))
    };
    // A user may map their group only once they have given up changing groups.
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    write("/proc/self/gid_map", format!("{group} {group} 1"))?;
    // What is mounted in it is nobody else's affair.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(|error| failed("making the mounts of a namespace private", error))?;
    // Its first process has to mount /proc, and executing a program takes the right to do that from an ordinary user.
    let keep = || {
        let mut rights = capabilities(None)?;
        rights.inheritable |= CapabilitySet::SYS_ADMIN;
        set_capabilities(None, rights)?;
        configure_capability_in_ambient_set(CapabilitySet::SYS_ADMIN, true)
    };
    keep().map_err(|error: rustix::io::Errno| failed("keeping the right to mount /proc in a namespace", error))
}

/// Rights that the kernel knows; there is room for as many.
const RIGHTS_MAX: u32 = 64;

/// Gives up all rights in a namespace, also for programs that are executed later.
fn give_up_rights() -> rustix::io::Result<()> {
    for number in 0..RIGHTS_MAX {
        let right = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(right) {
            Ok(false) => {}
            // Without the right to do that there is none to be lost: an ordinary user has only what was kept.
            Ok(true) => drop(remove_capability_from_bounding_set(right)),
            // The kernel knows no more.
            Err(_) => break,
        }
    }
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

/// The first process of a namespace, which is the calling one.
#[derive(Debug)]
pub struct Init {
    leader: Option<Child>,
    status: Option<ExitStatus>,
}

impl Init {
    /// To be called before anything else: an error means that the namespace cannot be used.
    pub fn prepare() -> io::Result<()> {
        if std::process::id() != 1 {
            return Err(failed("supervising a PID namespace", io::Error::other("this process is not its first")));
        }
        // So that nobody in it sees who is outside, and its processes can be counted. Where parts of /proc are hidden
        // already, the kernel does not allow a whole one.
        let hardened = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("proc"), "/proc", Some("proc"), hardened, None::<&str>)
            .map_err(|error| failed("mounting /proc for a PID namespace", error))?;
        give_up_rights().map_err(|error| failed("giving up rights in a namespace", error))
    }

    /// Starts the leader.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        Ok(Self { leader: Some(command.spawn()?), status: None })
    }

    /// A handle on this process, for whoever is outside: readable once the whole namespace is gone.
    pub fn pidfd() -> io::Result<OwnedFd> {
        pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
            .map_err(|error| failed("opening a pidfd of the first process of a namespace", error))
    }

    /// Becomes readable when the leader has exited.
    pub fn leader_pidfd(&self) -> io::Result<OwnedFd> {
        let leader = self.leader.as_ref().ok_or_else(|| io::Error::other("the leader has been waited for"))?;
        pidfd_open(rustix::process::Pid::from_child(leader), PidfdFlags::empty())
            .map_err(|error| failed("opening a pidfd of the leader", error))
    }

    /// Reaps who is dead, and tells how the leader has ended, once it has.
    pub fn reap(&mut self) -> io::Result<Option<ExitStatus>> {
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        for _ in 0..REAPED_MAX {
            // Looked at first: the leader is waited for by its own handle, which tells how it ended.
            let dead = match waitid(Id::All, peek) {
                Ok(status) => status.pid(),
                Err(Errno::ECHILD) => None,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(failed("looking for dead processes in a PID namespace", error)),
            };
            let Some(dead) = dead else { break };
            match self.leader.take_if(|leader| i64::from(leader.id()) == i64::from(dead.as_raw())) {
                Some(mut leader) => self.status = Some(leader.wait()?),
                None => drop(waitpid(rustix::process::Pid::from_raw(dead.as_raw()), WaitOptions::NOHANG)),
            }
        }
        Ok(self.status)
    }

    /// How many there are beside this one.
    pub fn members(&self) -> io::Result<usize> {
        let all = fs::read_dir("/proc").map_err(|error| failed("listing /proc", error))?;
        let is_process = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        Ok(all.flatten().filter(|entry| is_process(&entry.file_name())).count().saturating_sub(1))
    }

    /// SIGTERM to everybody in it.
    pub fn ask(&self) -> io::Result<()> {
        match kill(Pid::from_raw(-1), Signal::SIGTERM) {
            // Nobody is there.
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(failed("asking everybody in a PID namespace to end", error)),
        }
    }
}
