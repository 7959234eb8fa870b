//! Ending a tree: ask, freeze, kill, verify.

use std::collections::BTreeSet;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpriority_process, setpriority_process};

use crate::attribution::{self, Look};
use crate::process::{self, Key, Process};
use crate::tree::Tree;

/// What of the bound a grace must leave for killing; at most half of it.
const KILL_RESERVE: Duration = Duration::from_millis(500);
/// Pause between two looks while the members may still end by themselves.
const GRACE_PAUSE: Duration = Duration::from_millis(10);
/// Pause between two rounds of killing, for the kernel to carry out what was sent.
pub(crate) const ROUND_PAUSE: Duration = Duration::from_millis(1);
/// Pause between two looks at members that were sent SIGSTOP and still run.
const FREEZE_PAUSE: Duration = Duration::from_micros(500);
/// How many walks freezing takes at most before what was found is killed.
const FREEZE_ROUNDS: usize = 50;
/// How long freezing takes at most before what was found is killed.
const FREEZE_BOUND: Duration = Duration::from_millis(300);
/// How many quick looks at our own children may hit nobody before chasing gives up.
const CHASE_MISSES: usize = 30;
/// How many of the newest children of each of our threads a quick look takes.
const CHASE_NEWEST: usize = 4;
/// How many looks in a row must find nobody, alive or newly dead. Two would do: who evades a look
/// dies during it, and the topmost of those is then a dead child of ours in that look or the next.
pub(crate) const CONFIRMATIONS: usize = 3;
/// The niceness taken while killing, to come before a crowd of forking members.
const STOP_NICENESS: i32 = -20;

/// A process that could not be ended within the bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its process id.
    pub pid: u32,
    /// Its name, as the kernel cuts it.
    pub name: String,
    /// Its state, as in proc(5); `D` is uninterruptible sleep.
    pub state: char,
}

impl From<Process> for Left {
    fn from(process: Process) -> Left {
        Left { pid: process.key.pid, name: process.name, state: process.state }
    }
}

/// What came of stopping a tree.
#[derive(Debug)]
#[must_use = "a tree may not be wholly gone; see Stopped::complete"]
pub struct Stopped {
    /// How many were sent SIGTERM and gone before the killing began.
    pub terminated: usize,
    /// How many were found, killed, and are gone. Who was forked and killed between two looks is
    /// not counted.
    pub killed: usize,
    /// Who is not gone.
    pub left: Vec<Left>,
    /// How long it took.
    pub took: Duration,
    /// The last error of the final attempts; what it kept from being done or verified is open.
    pub trouble: Option<io::Error>,
}

impl Stopped {
    /// Whether the whole tree is verified to be gone.
    pub fn complete(&self) -> bool {
        self.left.is_empty() && self.trouble.is_none()
    }
}

/// One attempt at stopping.
struct Attempt<'t> {
    tree: &'t mut Tree,
    begun: Instant,
    bound: Duration,
    /// Who was sent SIGTERM.
    asked: BTreeSet<Key>,
    /// Who was sent SIGKILL, or was in the group when it was killed.
    hit: BTreeSet<Key>,
    /// Children of ours that are not of the tree.
    spared: BTreeSet<Key>,
    /// Dead children of ours, found so far.
    corpses: BTreeSet<Key>,
    /// Whether the last look found no corpse that was new.
    is_quiet: bool,
    /// Of the present round.
    trouble: Option<io::Error>,
}

pub(crate) fn stop(tree: &mut Tree, grace: Duration, bound: Duration, is_hurried: &dyn Fn() -> bool) -> Stopped {
    let _first = First::become_it();
    let mut attempt = Attempt {
        tree,
        begun: Instant::now(),
        bound,
        asked: BTreeSet::new(),
        hit: BTreeSet::new(),
        spared: BTreeSet::new(),
        corpses: BTreeSet::new(),
        is_quiet: false,
        trouble: None,
    };
    let grace = grace.min(bound.saturating_sub(KILL_RESERVE.min(bound / 2)));
    let mut terminated = 0;
    if !grace.is_zero() {
        attempt.ask();
        terminated = attempt.await_gone(grace, is_hurried);
    }
    let left = attempt.kill();
    let left_keys: BTreeSet<Key> = left.iter().map(|process| process.key).collect();
    Stopped {
        terminated,
        killed: attempt.hit.difference(&left_keys).count(),
        left: left.into_iter().map(Left::from).collect(),
        took: attempt.begun.elapsed(),
        trouble: attempt.trouble,
    }
}

impl Attempt<'_> {
    fn is_over(&self) -> bool {
        self.begun.elapsed() >= self.bound
    }

    /// A look; an error is noted and gives `None`.
    fn look(&mut self) -> Option<Look> {
        self.is_quiet = false;
        let leader = self.tree.try_wait();
        let look = self.tree.look(&self.hit);
        match (leader, look) {
            (Ok(status), Ok(look)) => {
                let corpses = self.corpses.len();
                let dead = look.dead.iter().chain(&look.strays);
                self.corpses.extend(dead.map(|dead| dead.key));
                self.corpses.extend(status.map(|_| self.tree.leader_key()));
                self.is_quiet = self.corpses.len() == corpses;
                Some(look)
            }
            (Err(error), _) | (_, Err(error)) => {
                self.trouble = Some(error);
                None
            }
        }
    }

    /// Sends a signal; `false` when the process is gone or the signal could not be sent.
    fn send(&mut self, key: Key, signal: Signal) -> bool {
        process::signal(key, signal).unwrap_or_else(|error| {
            self.trouble = Some(error);
            false
        })
    }

    /// SIGTERM to everybody, once.
    fn ask(&mut self) {
        let members = self.look().map(|look| look.members).unwrap_or_default();
        members.iter().for_each(|member| self.ask_one(member));
    }

    fn ask_one(&mut self, member: &Process) {
        if self.send(member.key, Signal::TERM) {
            self.asked.insert(member.key);
        }
        if member.state == 'T' {
            self.send(member.key, Signal::CONT);
        }
    }

    /// Waits for everybody to be gone, for so long from the beginning or until hurried; says how
    /// many of the asked are.
    fn await_gone(&mut self, grace: Duration, is_hurried: &dyn Fn() -> bool) -> usize {
        loop {
            let is_late = self.begun.elapsed() >= grace || is_hurried();
            if let Some(look) = self.look() {
                let alive: BTreeSet<Key> = look.members.iter().map(|member| member.key).collect();
                if is_late || alive.is_empty() {
                    return self.asked.difference(&alive).count();
                }
                // Who came later may be helping those that tidy up, and is asked when they are gone.
                if self.asked.is_disjoint(&alive) {
                    look.members.iter().for_each(|member| self.ask_one(member));
                }
            }
            if is_late {
                return 0;
            }
            thread::sleep(GRACE_PAUSE.min(grace.saturating_sub(self.begun.elapsed())));
        }
    }

    /// Kills until nobody is found several times in a row or the bound is over; says who is left.
    fn kill(&mut self) -> Vec<Process> {
        let mut confirmed = 0;
        loop {
            self.trouble = None;
            let look = self.look();
            let is_gone = look.as_ref().is_some_and(|look| look.members.is_empty() && look.doubtful.is_empty());
            if is_gone && !self.is_group_populated() {
                confirmed = if self.is_quiet { confirmed + 1 } else { 0 };
                if confirmed == CONFIRMATIONS {
                    return Vec::new();
                }
            } else {
                confirmed = 0;
            }
            if confirmed == 0 {
                self.kill_group(look);
                self.chase();
                let found = self.freeze();
                // Descendants first: when a parent dies, the kernel may wake the stopped groups
                // that it leaves behind, and by then they must have their SIGKILL.
                for member in found.iter().rev() {
                    if self.send(member.key, Signal::KILL) {
                        self.hit.insert(member.key);
                    }
                }
                thread::sleep(ROUND_PAUSE);
            }
            if self.is_over() {
                return self.remaining();
            }
        }
    }

    /// Who is there at the end of the bound.
    fn remaining(&mut self) -> Vec<Process> {
        let left: Vec<Process> =
            self.look().map(|look| look.members.into_iter().chain(look.doubtful).collect()).unwrap_or_default();
        if left.is_empty() && self.trouble.is_none() {
            self.trouble = Some(io::Error::new(
                io::ErrorKind::TimedOut,
                "nobody is found any more, but the bound was over before that was verified",
            ));
        }
        left
    }

    fn is_group_populated(&mut self) -> bool {
        let populated = self.tree.group().map(|group| group.populated());
        populated.transpose().map_or_else(
            |error| {
                self.trouble = Some(error);
                true
            },
            |populated| populated.unwrap_or(false),
        )
    }

    /// Kills the control group at a blow. Who was found in the tree just before counts as hit by
    /// it; who was outside the group is still alive in the next look, and hit again.
    fn kill_group(&mut self, look: Option<Look>) {
        let Some(group) = self.tree.group() else {
            return;
        };
        match group.kill() {
            Ok(()) => self.hit.extend(look.into_iter().flat_map(|look| look.members).map(|member| member.key)),
            Err(error) => self.trouble = Some(error),
        }
    }

    /// Stops everybody, until a walk finds nobody new and nobody running, so that nobody forks
    /// between being found and being killed. Returns the last found, ancestors first; bounded,
    /// and not bound to succeed.
    fn freeze(&mut self) -> Vec<Process> {
        let begun = Instant::now();
        let mut sent = BTreeSet::new();
        let mut found = Vec::new();
        for _ in 0..FREEZE_ROUNDS {
            let Some(look) = self.look() else { break };
            found = look.members;
            let mut is_still = true;
            for member in &found {
                if sent.insert(member.key) {
                    is_still = false;
                    self.send(member.key, Signal::STOP);
                }
                is_still &= member.halted();
            }
            if is_still || begun.elapsed() >= FREEZE_BOUND || self.is_over() {
                break;
            }
            thread::sleep(FREEZE_PAUSE);
        }
        found
    }

    /// Kills children of ours that belong to the tree without walking first: a chain in which
    /// each process forks and exits at once is gone before a walk is over, but every link of it
    /// becomes our child. Goes on while it hits, and a little longer.
    fn chase(&mut self) {
        let mut misses = 0;
        while misses < CHASE_MISSES && !self.is_over() {
            misses += 1;
            for pid in process::newest_children(CHASE_NEWEST) {
                match self.catch(pid) {
                    Ok(true) => misses = 0,
                    Ok(false) => {}
                    Err(error) => self.trouble = Some(error),
                }
            }
        }
    }

    /// Kills one child of ours, if it is of the tree. One that nobody knows is stopped first, so
    /// that it cannot be gone before it is known whose it is, and continued if it is not ours.
    fn catch(&mut self, pid: u32) -> io::Result<bool> {
        let Some(child) = process::read(pid)?.filter(Process::alive) else {
            return Ok(false);
        };
        let key = child.key;
        if self.hit.contains(&key) || self.spared.contains(&key) {
            return Ok(false);
        }
        let is_mine = match attribution::recall(self.tree.id(), key) {
            Some(is_mine) => Some(is_mine),
            None => {
                let is_stopped_by_us = !child.halted() && process::signal(key, Signal::STOP)?;
                let is_mine = attribution::decide(self.tree.id(), &child);
                if is_mine != Some(true) && is_stopped_by_us {
                    process::signal(key, Signal::CONT)?;
                }
                is_mine
            }
        };
        if is_mine == Some(false) {
            self.spared.insert(key);
        }
        if is_mine != Some(true) {
            return Ok(false);
        }
        let is_hit = process::signal(key, Signal::KILL)?;
        if is_hit {
            self.hit.insert(key);
        }
        Ok(is_hit)
    }
}

/// Gives the calling thread precedence, where it may, until dropped.
struct First(Option<i32>);

impl First {
    fn become_it() -> First {
        let before = getpriority_process(None).ok();
        First(before.filter(|_| setpriority_process(None, STOP_NICENESS).is_ok()))
    }
}

impl Drop for First {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            // Only ever gives up precedence, which needs no privilege.
            let _ = setpriority_process(None, before);
        }
    }
}
