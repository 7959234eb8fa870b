//! Ends a program together with everything it started, and verifies that it did.
//!
//! # Invariant
//!
//! When [`Tree::stop`] returns with [`Stopped::complete`], no process of the tree was alive in
//! several consecutive looks at the whole process table, and, with [`Containment::Cgroup`], the
//! kernel called the control group unpopulated. Whatever could not be ended or verified is named
//! in [`Stopped::left`] and [`Stopped::trouble`]; it is never passed over in silence.
//!
//! # Who belongs to a tree
//!
//! The process that uses this module is a child subreaper ([`become_subreaper`]), so a descendant
//! cannot leave it by `setsid`, by a double fork or by the death of its parent: it stays a
//! descendant of ours. All descendants of the leader are members. A child of ours that is no
//! leader (an orphan that came to us) is attributed by the first of these that decides:
//!
//! 1. it is in the control group of a tree;
//! 2. an earlier look saw it as a member of a tree, by pid and start time;
//! 3. the variable [`MARK`] in its environment names a tree;
//! 4. its process group or session is that of a tree's leader or of a member seen earlier;
//! 5. otherwise nobody knows. A process can wipe its environment, so an unknown process that is
//!    not older than the leader is taken for a member of **whichever tree is asked**. For an
//!    emergency stop, a stranger killed is the lesser harm against a runaway left running.
//!
//! The price of rule 5: in a process with several trees, stopping one can kill an orphan of
//! another that wiped its environment, and a child that the host started past this module. Start
//! such children with [`spawn_apart`]; they and what they start are then never members.
//!
//! # What is not covered
//!
//! * Linux before 5.3, which has no pidfds: spawning fails. Before 5.14 there is no control group.
//! * Processes started on request by somebody outside the tree: systemd, cron, a container
//!   daemon, another session.
//! * Processes the caller may not signal (setuid programs, for a caller without privilege) and
//!   processes in uninterruptible sleep: they end up in [`Stopped::left`].
//! * Processes hidden by a `/proc` mounted with `hidepid`.
//! * A process that reads another tree's mark, or that of [`spawn_apart`], can forge it and, once
//!   orphaned, is spared when its own tree stops. It is killed when that other tree stops; with
//!   the mark of [`spawn_apart`], never. A control group closes this, for who may not leave it.
//! * Without a control group, a chain in which each process forks once and exits at once has to be
//!   hit between two forks. The rounds repeat until the bound; if it is missed in all of them, the
//!   new corpses it leaves are noticed and [`Stopped::trouble`] says that nothing is verified.
//! * Want of file descriptors in the host: looking and signalling need a handful. It shows in
//!   [`Stopped::trouble`].
//! * `kill -9` of the supervisor: see [`shim`](shim()). Whoever kills it on purpose ends its trees
//!   first, with [`Foreign`].
//! * Children that the process had before it used this module are spared, being older than every
//!   tree. Orphans that those leave later are not: without a mark they fall under rule 5. A
//!   supervisor is best a process that was started for that.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[cfg(not(target_os = "linux"))]
compile_error!("supervise reads /proc and uses pidfds: Linux only");

mod attribution;
mod cgroup;
mod foreign;
mod namespace;
mod process;
mod registry;
mod shim;
mod spawner;
mod stop;
mod tree;

pub use cgroup::has_cgroups;
pub use foreign::Foreign;
pub use namespace::{Init, enter_namespace};
pub use registry::{MARK, fresh_mark, own_all_children};
pub use shim::{JOIN, shim};
pub use spawner::spawn_apart;
pub use stop::{Left, Stopped};
pub use tree::{Containment, Member, Pipes, Tree};

use std::io;

/// An error of the operating system with what it happened to.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct Failure {
    what: String,
    source: io::Error,
}

/// Says what an I/O error happened to and keeps its kind.
pub(crate) fn failed(what: impl Into<String>, source: impl Into<io::Error>) -> io::Error {
    let source = source.into();
    let what = what.into();
    io::Error::new(source.kind(), Failure { what, source })
}

/// What this process has opened is closed when it executes another program, whatever whoever opened it has said; but for
/// the standard streams.
pub fn close_descriptors_on_exec() {
    close_fds::set_fds_cloexec(3, &[]);
}

/// Makes this process the reaper of its descendants' orphans. Call it once, before the first
/// [`Tree::spawn`]. It holds for the whole process, not only for the calling thread.
pub fn become_subreaper() -> io::Result<()> {
    // Any pid stands for "on": the kernel only looks whether the argument is zero.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| failed("making this process a child subreaper", error))
}
