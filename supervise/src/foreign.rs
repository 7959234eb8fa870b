//! The trees of another supervisor, which does not answer and has to be killed.
//!
//! # Invariant
//!
//! Signalled is only who descends from a process that carries the mark of a tree that this
//! supervisor has made, who carries such a mark and is of the same user (a mark can be forged, and
//! who has the same user's rights gains nothing by that), who is in the control group of such a tree, or
//! who was found so before, by pid and start time; and, as in the crate's rule 5, a child of the
//! supervisor that carries no mark and is not older than its trees. The supervisor itself is the
//! caller's affair, and the calling process is never signalled.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use rustix::process::Signal;

use crate::cgroup::{self, Cgroup};
use crate::process::{self, Key, Process, Variable};
use crate::registry::{self, MARK};
use crate::stop::{CONFIRMATIONS, Left, ROUND_PAUSE, Stopped};

/// Walks of one round in which it is looked for who was forked before it was stopped.
const FREEZE_ROUNDS: usize = 5;

/// The trees of another process. Best made and ended while that one is stopped by SIGSTOP: as long
/// as it is there, orphans come to it and are found.
#[derive(Debug)]
pub struct Foreign {
    supervisor: Key,
    user: u32,
    /// The mark that the supervisor itself carries.
    outer: String,
    /// Each with when its first known member started.
    trees: BTreeMap<String, u64>,
    seen: BTreeSet<Key>,
    groups: BTreeMap<String, Cgroup>,
    /// Dead children of the supervisor in the last look.
    corpses: usize,
    /// Nobody else has the supervisor's mark, so that whoever carries it is of its trees.
    is_mark_unique: bool,
}

impl Foreign {
    /// Looks which trees a process has.
    pub fn of(supervisor: u32) -> io::Result<Foreign> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("there is no process {supervisor}"));
        let process = process::read(supervisor)?.ok_or_else(gone)?;
        let outer = match process::variable(&process, MARK) {
            Variable::Value(mark) => mark,
            _ => String::new(),
        };
        let mut trees = Foreign { outer, ..Foreign::none(process.key, user(supervisor).ok_or_else(gone)?) };
        trees.look()?;
        Ok(trees)
    }

    /// The trees that a child of ours makes, which was started with [`fresh_mark`](crate::fresh_mark): they are found by
    /// that, also once it is dead. Nobody is looked for now.
    pub fn of_marked(supervisor: u32, mark: &str) -> io::Result<Foreign> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("there is no process {supervisor}"));
        let process = process::read(supervisor)?.ok_or_else(gone)?;
        // It may have hidden whose it is: it is ours.
        let none = Foreign::none(process.key, rustix::process::geteuid().as_raw());
        Ok(Foreign { outer: mark.to_owned(), is_mark_unique: true, ..none })
    }

    fn none(supervisor: Key, user: u32) -> Foreign {
        Foreign {
            supervisor,
            user,
            outer: String::new(),
            trees: BTreeMap::new(),
            seen: BTreeSet::new(),
            groups: BTreeMap::new(),
            corpses: 0,
            is_mark_unique: false,
        }
    }

    /// Whether it has none that anybody could find.
    pub fn is_empty(&self) -> bool {
        self.trees.is_empty()
    }

    /// Kills everybody in them, without asking, and verifies that nobody is left, within a bound. To
    /// be repeated once the supervisor is dead.
    pub fn end(&mut self, bound: Duration) -> Stopped {
        let begun = Instant::now();
        let mut hit = BTreeSet::new();
        let (mut rounds, mut confirmed) = (0, 0);
        let (left, trouble) = loop {
            let mut trouble = None;
            let corpses = self.corpses;
            let members = self.look().unwrap_or_else(|error| {
                trouble = Some(error);
                Vec::new()
            });
            let is_quiet = members.is_empty() && trouble.is_none() && self.corpses == corpses;
            confirmed = if is_quiet { confirmed + 1 } else { 0 };
            if confirmed == CONFIRMATIONS {
                break (members, None);
            }
            // At least one round always takes place.
            if begun.elapsed() >= bound && rounds > 0 {
                let is_open = members.is_empty() && trouble.is_none();
                break (members, trouble.or_else(|| is_open.then(|| io::ErrorKind::TimedOut.into())));
            }
            if !members.is_empty() {
                self.kill(members, &mut hit);
            }
            rounds += 1;
            thread::sleep(ROUND_PAUSE);
        };
        hit.retain(|key| left.iter().all(|member| member.key != *key));
        Stopped {
            terminated: 0,
            killed: hit.len(),
            left: left.into_iter().map(Left::from).collect(),
            took: begun.elapsed(),
            trouble,
        }
    }

    /// One round: stops everybody, so that nobody forks between being found and being killed, and
    /// kills them, descendants first.
    fn kill(&mut self, mut members: Vec<Process>, hit: &mut BTreeSet<Key>) {
        // Also who is being forked meanwhile. Where it fails, everybody is killed one by one.
        self.groups.values().for_each(|group| drop(group.kill()));
        hit.extend(members.iter().map(|member| member.key));
        // Who cannot be signalled is still there in the next look, and left in the end.
        let send = |key: Key, signal: Signal| process::signal(key, signal).unwrap_or(false);
        let mut stopped = BTreeSet::new();
        for _ in 0..FREEZE_ROUNDS {
            let fresh: Vec<Key> = members.iter().map(|member| member.key).filter(|key| stopped.insert(*key)).collect();
            if fresh.is_empty() {
                break;
            }
            for key in fresh {
                send(key, Signal::STOP);
            }
            match self.look() {
                Ok(found) => members = found,
                Err(_) => break,
            }
        }
        for member in members.iter().rev() {
            if send(member.key, Signal::KILL) {
                hit.insert(member.key);
            }
        }
    }

    /// Who is in the trees now, ancestors before descendants.
    fn look(&mut self) -> io::Result<Vec<Process>> {
        let all = process::snapshot()?;
        let is_there = all.get(&self.supervisor.pid).is_some_and(|now| now.key == self.supervisor);
        let children: Vec<&Process> =
            all.values().filter(|process| is_there && process.parent == self.supervisor.pid).collect();
        self.corpses = children.iter().filter(|child| !child.alive()).count();

        let me = std::process::id();
        let mut seeds = BTreeSet::new();
        let is_open = |process: &&Process| process.key != self.supervisor && !self.seen.contains(&process.key);
        let open: Vec<&Process> = all.values().filter(|process| process.alive()).filter(is_open).collect();
        for process in open {
            let mark = match process::variable(process, MARK) {
                Variable::Value(mark) => mark,
                _ => continue,
            };
            let is_child = is_there && process.parent == self.supervisor.pid;
            let mut is_member = false;
            for id in registry::inner_ids(&mark, &self.outer) {
                // A tree is known by its leader, and others by the tree.
                let is_known =
                    || (self.is_mark_unique || self.trees.contains_key(id)) && user(process.key.pid) == Some(self.user);
                if is_child || is_known() {
                    is_member = true;
                    let born = self.trees.entry(id.to_owned()).or_insert(process.key.start);
                    *born = (*born).min(process.key.start);
                    if !self.groups.contains_key(id)
                        && let Some(group) = cgroup::of_tree(process.key.pid, id)
                    {
                        self.groups.insert(id.to_owned(), group);
                    }
                }
            }
            if is_member {
                seeds.insert(process.key.pid);
            }
        }
        let is_marked = |process: &Process| matches!(process::variable(process, MARK), Variable::Value(_));
        if let Some(born) = self.trees.values().min() {
            let is_unknown = |child: &&&Process| child.alive() && child.key.start >= *born && is_open(child);
            let unknown = children.iter().filter(is_unknown);
            seeds.extend(unknown.filter(|child| !is_marked(child)).map(|child| child.key.pid));
        }
        seeds.extend(self.groups.values().flat_map(|group| cgroup::pids(group.directory())));
        let is_seen = |key: &&Key| all.get(&key.pid).is_some_and(|now| now.key == **key);
        seeds.extend(self.seen.iter().filter(is_seen).map(|key| key.pid));

        let members = descent(&all, &seeds);
        let is_other = |process: &Process| process.key.pid != me && process.key != self.supervisor && process.alive();
        let members: Vec<Process> = members.into_iter().filter(|process| is_other(process)).cloned().collect();
        self.seen = members.iter().map(|member| member.key).collect();
        Ok(members)
    }
}

/// Whose process it is.
fn user(pid: u32) -> Option<u32> {
    fs::metadata(format!("/proc/{pid}")).ok().map(|process| process.uid())
}

/// These and everything below them, ancestors first.
fn descent<'p>(all: &'p BTreeMap<u32, Process>, seeds: &BTreeSet<u32>) -> Vec<&'p Process> {
    let mut children: BTreeMap<u32, Vec<&Process>> = BTreeMap::new();
    for process in all.values() {
        children.entry(process.parent).or_default().push(process);
    }
    let mut met = BTreeSet::new();
    let mut found: Vec<&Process> = Vec::new();
    // Those at the top first, as far as they are seeds themselves.
    let is_top = |pid: &&u32| all.get(pid).is_none_or(|process| !seeds.contains(&process.parent));
    for seed in seeds.iter().filter(is_top).chain(seeds.iter()).filter_map(|pid| all.get(pid)) {
        let mut next = found.len();
        if met.insert(seed.key.pid) {
            found.push(seed);
        }
        while let Some(process) = found.get(next) {
            next += 1;
            let below = children.get(&process.key.pid).into_iter().flatten();
            found.extend(below.filter(|child| met.insert(child.key.pid)));
        }
    }
    found
}
