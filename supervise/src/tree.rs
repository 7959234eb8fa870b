//! A supervised program with everything it started.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, WaitOptions, pidfd_open, waitpid};

use crate::attribution::{self, Look};
use crate::cgroup::{self, Cgroup};
use crate::process::{Key, Process, as_pid};
use crate::registry::{self, Entry, Pending};
use crate::stop::{self, Stopped};
use crate::{JOIN, failed};

/// How often a waiting tree is looked at, so that its orphans are known and its dead are reaped.
const TEND_EVERY: Duration = Duration::from_secs(1);
/// How often processes that were forked before the leader was in the group are looked for.
const ATTACH_ROUNDS: usize = 5;
/// How long dropping a tree tries to end it.
const DROP_BOUND: Duration = Duration::from_secs(2);

/// How the members of a tree are held together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Containment {
    /// By a control group of its own, which the kernel kills as one; the walk goes on beside it
    /// for members with the privilege to leave the group.
    Cgroup,
    /// By walking `/proc`.
    Walk,
}

/// A live process of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its process id.
    pub pid: u32,
    /// Its parent's process id.
    pub parent: u32,
    /// When it started, in clock ticks since boot; with the pid it names the process for good.
    pub start: u64,
    /// Its name, as the kernel cuts it.
    pub name: String,
    /// Its state, as in proc(5).
    pub state: char,
}

impl From<Process> for Member {
    fn from(process: Process) -> Member {
        Member {
            pid: process.key.pid,
            parent: process.parent,
            start: process.key.start,
            name: process.name,
            state: process.state,
        }
    }
}

/// Our ends of a leader's piped standard streams.
#[derive(Debug)]
pub struct Pipes {
    /// Writes to the leader's standard input.
    pub stdin: Option<ChildStdin>,
    /// Reads the standard output.
    pub stdout: Option<ChildStdout>,
    /// Reads the standard error.
    pub stderr: Option<ChildStderr>,
}

/// A supervised child with everything it spawned. Dropping it kills what is left of the tree, so
/// that nothing runs on that nobody supervises.
#[derive(Debug)]
pub struct Tree {
    id: String,
    child: Child,
    leader: Key,
    /// Of the leader; readable once it has exited.
    pidfd: OwnedFd,
    group: Option<Cgroup>,
}

impl Tree {
    /// Spawns the command, in a control group where one can be made. Standard streams, directory
    /// and the rest are as the command says; the command keeps the added variables [`MARK`] and
    /// [`JOIN`], renewed with every spawn.
    ///
    /// Any thread may call this and end afterwards: a thread of its own does the spawning, one
    /// command after the other. What was set for the calling thread alone (a seccomp filter, say)
    /// does not reach the command, and a program that hangs in being loaded (from a dead network
    /// file system, say) holds up those after it.
    ///
    /// Without the [`shim`](crate::shim()) the leader is moved into its control group only after it
    /// has begun; what it forked before is moved too where a look finds it, and walked to
    /// otherwise.
    ///
    /// [`MARK`]: crate::MARK
    pub fn spawn(command: &mut Command) -> io::Result<Tree> {
        Tree::spawn_with(command, Containment::Cgroup)
    }

    /// Like [`Tree::spawn`], and with [`Containment::Walk`] makes no control group.
    pub fn spawn_with(command: &mut Command, preferred: Containment) -> io::Result<Tree> {
        check_surroundings()?;
        let id = registry::new_id()?;
        let group = match preferred {
            Containment::Cgroup => Cgroup::create(&id),
            Containment::Walk => None,
        };
        command.env(registry::MARK, registry::mark_for(&id));
        match &group {
            Some(group) => command.env(JOIN, group.procs()),
            None => command.env_remove(JOIN),
        };
        let pending = Pending::begin();
        let mut child = crate::spawner::spawn(command)?;
        let (leader, pidfd) = match identify(child.id()) {
            Ok(identity) => identity,
            Err(error) => {
                // Not waited for: that could last, and the error says enough.
                let _ = child.kill();
                return Err(error);
            }
        };
        let group = group.filter(|group| attach(group, leader.pid));
        let entry = Entry {
            leader,
            seen: BTreeSet::from([leader]),
            cgroup: group.as_ref().map(|group| group.directory().to_owned()),
        };
        pending.tree(&id, entry);
        let tree = Tree { id, child, leader, pidfd, group };
        if let Some(group) = &tree.group {
            tree.attach_all(&group.procs());
        }
        Ok(tree)
    }

    /// The process id of the leader. After the leader has been waited for it is only history.
    pub fn leader(&self) -> u32 {
        self.leader.pid
    }

    /// Takes the ends of those standard streams that the command says are piped.
    pub fn take_pipes(&mut self) -> Pipes {
        Pipes { stdin: self.child.stdin.take(), stdout: self.child.stdout.take(), stderr: self.child.stderr.take() }
    }

    /// Which containment was possible.
    pub fn containment(&self) -> Containment {
        match self.group {
            Some(_) => Containment::Cgroup,
            None => Containment::Walk,
        }
    }

    /// The leader's exit status, if it has exited. The rest of the tree may live on.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait().map_err(|error| failed(format!("waiting for process {}", self.leader.pid), error))
    }

    /// Waits for the leader to exit, as long as that takes. The rest of the tree may live on.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.wait_for(TEND_EVERY)? {
                return Ok(status);
            }
        }
    }

    /// Waits for the leader to exit, for so long at most. Meanwhile, about once a second, looks
    /// who is in the tree and reaps its dead orphans.
    pub fn wait_for(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(Some(status));
            }
            let remaining = timeout.saturating_sub(begun.elapsed());
            if remaining.is_zero() {
                return Ok(None);
            }
            self.tend(remaining, None)?;
        }
    }

    /// Waits for the leader to exit or for `bell` to be readable, as long as that takes; `None`
    /// says that it was the bell. Looks and reaps meanwhile as [`Tree::wait_for`] does.
    pub fn wait_or(&mut self, bell: BorrowedFd<'_>) -> io::Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(Some(status));
            }
            if self.tend(TEND_EVERY, Some(bell))? {
                return Ok(None);
            }
        }
    }

    /// As [`Tree::wait_or`], for so long at most; `None` says that it was the bell, or the time.
    pub fn watch(&mut self, bell: impl AsFd, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        if let Some(status) = self.try_wait()? {
            return Ok(Some(status));
        }
        self.tend(timeout, Some(bell.as_fd()))?;
        self.try_wait()
    }

    /// Waits once, for the leader's end or the bell, and looks if neither came. Whether it was the
    /// bell.
    fn tend(&self, most: Duration, bell: Option<BorrowedFd<'_>>) -> io::Result<bool> {
        let failed = |error: io::Error| failed(format!("waiting for process {}", self.leader.pid), error);
        let limit = Timespec::try_from(most.min(TEND_EVERY)).map_err(|error| failed(io::Error::other(error)))?;
        let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        fds.extend(bell.map(|bell| PollFd::from_borrowed_fd(bell, PollFlags::IN)));
        match rustix::event::poll(&mut fds, Some(&limit)) {
            // A look that fails now is repeated in a second, and stop() reports its own.
            Ok(0) => drop(self.look(&BTreeSet::new())),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
        Ok(fds.get(1).is_some_and(|bell| !bell.revents().is_empty()))
    }

    /// Who is in the tree now, ancestors before descendants. Zombies are not counted.
    pub fn members(&self) -> io::Result<Vec<Member>> {
        let look = self.look(&BTreeSet::new())?;
        Ok(look.members.into_iter().map(Member::from).collect())
    }

    /// Ends the whole tree, verifies that it is gone, and says what came of it.
    ///
    /// Sends SIGTERM to every member (and SIGCONT to those that are stopped, so that they can act
    /// on it) and waits up to `grace` for all to be gone. Who starts during the grace is asked
    /// when all who were asked before are gone. With no grace nobody is asked at all. Then kills until nobody is left or `bound` is
    /// over. The bound counts from the call; a grace that would leave no time to kill is cut, and
    /// at least one round of killing always takes place. The work under way when the bound ends is
    /// still finished: some looks at `/proc`, a few milliseconds each on a machine with some
    /// hundred processes.
    pub fn stop(&mut self, grace: Duration, bound: Duration) -> Stopped {
        self.stop_unless(grace, bound, || false)
    }

    /// Like [`Tree::stop`]. The grace is over as soon as `is_hurried`, which is asked some hundred
    /// times a second, says so.
    pub fn stop_unless(&mut self, grace: Duration, bound: Duration, is_hurried: impl Fn() -> bool) -> Stopped {
        stop::stop(self, grace, bound, &is_hurried)
    }

    /// Looks, and reaps those dead members that came to us, as well as strays in `hit` or all.
    pub(crate) fn look(&self, hit: &BTreeSet<Key>) -> io::Result<Look> {
        let look = attribution::look(&self.id)?;
        let is_to_reap = |dead: &&Process| look.may_reap_strays || hit.contains(&dead.key);
        let strays = look.strays.iter().filter(is_to_reap);
        look.dead.iter().chain(strays).for_each(reap);
        Ok(look)
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn leader_key(&self) -> Key {
        self.leader
    }

    pub(crate) fn group(&self) -> Option<&Cgroup> {
        self.group.as_ref()
    }

    /// Moves into the group who was forked before the leader was in it. Who is missed is still
    /// found by walking.
    fn attach_all(&self, procs: &std::path::Path) {
        for _ in 0..ATTACH_ROUNDS {
            let Ok(look) = self.look(&BTreeSet::new()) else {
                return;
            };
            let inside = self.group.as_ref().map(|group| cgroup::pids(group.directory())).unwrap_or_default();
            let outside = look.members.iter().filter(|member| !inside.contains(&member.key.pid));
            let mut is_settled = true;
            for member in outside {
                is_settled = false;
                let _ = cgroup::join(procs, member.key.pid);
            }
            if is_settled {
                return;
            }
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        drop(self.stop(Duration::ZERO, DROP_BOUND));
        registry::forget(&self.id);
    }
}

/// Reaps one dead child. That it is not there any more, or not dead, is nothing to report.
fn reap(dead: &Process) {
    if let Some(pid) = as_pid(dead.key.pid) {
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

fn check_surroundings() -> io::Result<()> {
    let is_subreaper = rustix::process::child_subreaper()
        .map_err(|error| failed("asking whether this process is a child subreaper", error))?;
    if is_subreaper.is_none() {
        return Err(failed(
            "spawning a tree",
            io::Error::other("this process is no child subreaper; call become_subreaper first"),
        ));
    }
    // In a pid namespace with the outer /proc the numbers would be somebody else's.
    let own: PathBuf =
        std::fs::read_link("/proc/self").map_err(|error| failed("reading the link /proc/self", error))?;
    if own.as_os_str() != std::process::id().to_string().as_str() {
        return Err(failed("spawning a tree", io::Error::other("/proc is of another pid namespace")));
    }
    Ok(())
}

/// Names a child that has not been reaped.
fn identify(pid: u32) -> io::Result<(Key, OwnedFd)> {
    let vanished = || {
        let source = io::Error::other("it vanished; is SIGCHLD ignored?");
        failed(format!("identifying child {pid}"), source)
    };
    let process = crate::process::read(pid)?.ok_or_else(vanished)?;
    let id = as_pid(pid).ok_or_else(vanished)?;
    let pidfd = pidfd_open(id, PidfdFlags::empty())
        .map_err(|error| failed(format!("opening a pidfd for child {pid}"), error))?;
    Ok((process.key, pidfd))
}

/// Moves the leader into the group; `false` where nobody got into it. Writing succeeds without
/// effect for a leader that is dead already; then only the shim can have been in time.
fn attach(group: &Cgroup, leader: u32) -> bool {
    // The shim may have entered before; then this fails or changes nothing.
    let _ = cgroup::join(&group.procs(), leader);
    group.populated().unwrap_or(false)
}
