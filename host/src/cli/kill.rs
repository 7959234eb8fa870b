//! Ending a host process that does not confirm a halt, and the trees of processes that it supervises.
//!
//! Invariant: a signal goes to the process whose folder it is, or to nobody: by a handle on the process that is taken while
//! the process still holds the lock in its folder. And only if the process is that of the user whose folder it is: anybody
//! can make a folder that is named after somebody else's process. What it supervises is told by marks that it
//! has made; see `estop_supervise::Foreign`.

use std::time::Duration;

use estop_supervise::{Foreign, Stopped};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::halt::GONE_WITHIN;
use super::hosts::Unseen;
use crate::control::place::Found;

/// How long the trees of a process are killed before the process is, and once more after that.
const TREES_WITHIN: Duration = Duration::from_secs(3);

/// What came of killing.
#[derive(Default)]
pub(super) struct Killed {
    /// Host processes that are gone.
    pub(super) hosts: Vec<u32>,
    /// How many processes that they supervised were killed with them.
    pub(super) supervised: usize,
    /// What nobody can tell about, and what is not gone.
    pub(super) left: Vec<Unseen>,
}

/// Kills these. Of what was left, what still is.
pub(super) fn all(hosts: &[Found], left: Vec<Unseen>) -> Killed {
    let mut killed = Killed { left, ..Killed::default() };
    for host in hosts {
        let end = kill(host, &mut killed);
        if end == End::Killed {
            killed.hosts.push(host.pid);
        }
        if end != End::Left {
            // By its folder: the number in it is what whoever made it likes.
            killed.left.retain(|unseen| unseen.place != host.folder || unseen.pid != Some(host.pid));
        }
    }
    killed.hosts.dedup();
    killed
}

/// What became of a host.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    /// Its folder is gone, or nobody is in it any more, and no signal was sent.
    Gone,
    Left,
}

fn by_itself(host: &Found) -> End {
    if host.is_gone() { End::Gone } else { End::Left }
}

fn kill(host: &Found, killed: &mut Killed) -> End {
    let pid = i32::try_from(host.pid).ok().and_then(Pid::from_raw);
    let Some(handle) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return by_itself(host);
    };
    // The lock is the process's own: as long as it is held, the number has not been given to another one.
    if !host.is_alive() || !is_of(host.pid, host.owner) {
        return by_itself(host);
    }
    // Its trees first, while it is there for orphans to come to, and does nothing.
    let is_stopped = pidfd_send_signal(&handle, Signal::STOP).is_ok();
    let trees = is_stopped.then(|| Foreign::of(host.pid));
    let mut trees = match trees {
        Some(Ok(trees)) if !trees.is_empty() => Some(trees),
        Some(Err(error)) => {
            killed.left.push(unseen(host, format!("it is not known what it supervises: {error}")));
            None
        }
        _ => None,
    };
    killed.supervised += trees.as_mut().map_or(0, |trees| trees.end(TREES_WITHIN).killed);
    if pidfd_send_signal(&handle, Signal::KILL).is_err() {
        return by_itself(host);
    }
    let timeout = Timespec { tv_sec: GONE_WITHIN.as_secs().cast_signed(), tv_nsec: 0 };
    let mut ended = [PollFd::new(&handle, PollFlags::IN)];
    let is_gone = rustix::event::poll(&mut ended, Some(&timeout)).is_ok_and(|ended| ended > 0);
    if let Some(mut trees) = trees {
        let Stopped { killed: late, left, trouble, .. } = trees.end(TREES_WITHIN);
        killed.supervised += late;
        for process in left {
            let why = format!(
                "{} (state {}) was started under process {} and is not gone",
                process.name, process.state, host.pid
            );
            let how = format!("`kill -9 {}` as root", process.pid);
            killed.left.push(Unseen { place: host.folder.clone(), pid: Some(process.pid), host: None, why, how });
        }
        killed.left.extend(
            trouble.map(|error| unseen(host, format!("not all that it supervises is verified to be gone: {error}"))),
        );
    }
    if is_gone { End::Killed } else { End::Left }
}

/// Something about a host that is gone itself.
fn unseen(host: &Found, why: String) -> Unseen {
    let how = format!("look for processes with `{}` in their environment", estop_supervise::MARK);
    Unseen { place: host.folder.clone(), pid: None, host: None, why: format!("process {}: {why}", host.pid), how }
}

/// Whether a process runs as this user.
fn is_of(pid: u32, user: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    // The real one, and the effective one.
    uids.split_whitespace().take(2).any(|uid| uid.parse() == Ok(user))
}
