//! Ending a host process that does not confirm a halt.
//!
//! Invariant: a signal goes to the process whose folder it is, or to nobody: by a handle on the process that is taken while
//! the process still holds the lock in its folder. And only if the process is that of the user whose folder it is: anybody
//! can make a folder that is named after somebody else's process.

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::halt::GONE_WITHIN;
use super::hosts::Unseen;
use crate::control::place::Found;

/// Kills these. Who is gone; and of what was left, what still is.
pub(super) fn all(hosts: &[Found], left: Vec<Unseen>) -> (Vec<u32>, Vec<Unseen>) {
    let mut killed: Vec<u32> = hosts.iter().filter(|host| kill(host)).map(|host| host.pid).collect();
    killed.dedup();
    let left = left.into_iter().filter(|unseen| unseen.pid.is_none_or(|pid| !killed.contains(&pid))).collect();
    (killed, left)
}

/// Whether it is gone.
fn kill(host: &Found) -> bool {
    let pid = i32::try_from(host.pid).ok().and_then(Pid::from_raw);
    let Some(handle) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { return host.is_gone() };
    // The lock is the process's own: as long as it is held, the number has not been given to another one.
    if host.is_gone() || !is_of(host.pid, host.owner) || pidfd_send_signal(&handle, Signal::KILL).is_err() {
        return host.is_gone();
    }
    let timeout = Timespec { tv_sec: GONE_WITHIN.as_secs().cast_signed(), tv_nsec: 0 };
    let mut ended = [PollFd::new(&handle, PollFlags::IN)];
    rustix::event::poll(&mut ended, Some(&timeout)).is_ok_and(|ended| ended > 0)
}

/// Whether a process runs as this user.
fn is_of(pid: u32, user: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    // The real one, and the effective one.
    uids.split_whitespace().take(2).any(|uid| uid.parse() == Ok(user))
}
