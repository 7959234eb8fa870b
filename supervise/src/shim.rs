//! The step between the supervisor and the supervised program.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::{cgroup, failed};

/// The environment variable that tells [`shim`] which `cgroup.procs` to enter before it becomes
/// the command, so that nothing can be forked outside the group.
pub const JOIN: &str = "ESTOP_TREE_JOIN";

/// Becomes `command`, and makes it die when the supervisor does. Returns only when that failed.
///
/// The supervisor starts itself again, as `/proc/self/exe exec-shim PARENT_PID -- COMMAND…`, under
/// [`Tree::spawn`](crate::Tree::spawn), and the `exec-shim` subcommand calls this with the
/// `PARENT_PID` it was given.
///
/// # What this covers
///
/// The kernel sends SIGKILL to the command when its parent ends in any way, `kill -9` included.
/// Should the parent be gone already, nothing is executed.
///
/// # What it does not
///
/// * What the command started lives on after `kill -9` of the supervisor: the setting is not
///   inherited over fork, and there is nobody left to walk the tree. It still carries its mark
///   ([`MARK`](crate::MARK)), and its control group, named `estop-` and the id in the mark, stays
///   until somebody removes it.
/// * Executing a setuid or setgid program, or one with capabilities, clears the setting, and any
///   program may clear it for itself.
pub fn shim(parent: u32, command: &mut Command) -> io::Error {
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return failed("asking for SIGKILL on the death of the supervisor", error);
    }
    // A parent that died before the setting was made sends nothing.
    let now = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if i64::from(now) != i64::from(parent) {
        return io::Error::new(
            io::ErrorKind::NotFound,
            format!("the supervisor, process {parent}, is gone (the parent is {now})"),
        );
    }
    if let Some(procs) = std::env::var_os(JOIN) {
        // The supervisor moves us too and falls back to walking when it cannot.
        let _ = cgroup::join(Path::new(&procs), 0);
        command.env_remove(JOIN);
    }
    let program = command.get_program().to_string_lossy().into_owned();
    failed(format!("executing {program}"), command.exec())
}
