//! Which process belongs to which tree.

use std::collections::{BTreeMap, BTreeSet};
use std::{fs, io};

use crate::cgroup;
use crate::process::{self, Key, Process, Variable};
use crate::registry::{Entry, MARK, Registry, registry};

/// One look at a tree.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Its live members, ancestors before descendants.
    pub members: Vec<Process>,
    /// Its dead members that wait for us to reap them, without the leader.
    pub dead: Vec<Process>,
    /// Dead children of ours that nobody knows.
    pub strays: Vec<Process>,
    /// Whether the host says that the strays cannot be its own.
    pub may_reap_strays: bool,
    /// Children that nobody knows while a spawn is under way or they are being loaded: members or
    /// not, the next look tells.
    pub doubtful: Vec<Process>,
}

/// Whose a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner<'a> {
    /// By evidence.
    Tree(&'a str),
    /// For want of evidence; counts as the asked tree's.
    Claimed,
    Doubtful,
    /// Dead, and nobody knows whose it was.
    Stray,
    /// The host's own affair.
    Apart,
}

/// Looks who is in a tree now.
pub(crate) fn look(id: &str) -> io::Result<Look> {
    let all = process::snapshot()?;
    // Taken after the snapshot: whatever a spawn added to the one shows in the other, as a leader
    // or as a spawn under way.
    let known = registry().clone();
    let Some(entry) = known.trees.get(id) else {
        return Ok(Look::default());
    };
    let seeds = seeds(&all, &known, entry);
    let owned = spread(&all, &seeds);
    remember(&all, &owned, &known);

    let me = std::process::id();
    let mut look = Look { may_reap_strays: known.owns_all && known.spawning == 0, ..Look::default() };
    for (process, owner) in owned {
        let mine = owner == Owner::Tree(id) || owner == Owner::Claimed;
        match (process.alive(), owner) {
            (true, Owner::Doubtful) => look.doubtful.push(process.clone()),
            (true, _) if mine => look.members.push(process.clone()),
            (false, _) if process.parent != me || process.key == entry.leader => {}
            (false, Owner::Tree(tree)) if tree == id => look.dead.push(process.clone()),
            (false, Owner::Claimed | Owner::Doubtful | Owner::Stray) => look.strays.push(process.clone()),
            _ => {}
        }
    }
    Ok(look)
}

/// Whether a child of ours is the tree's, as far as earlier looks know.
pub(crate) fn recall(id: &str, key: Key) -> Option<bool> {
    let registry = registry();
    let owner = registry.trees.iter().find(|(_, tree)| tree.leader == key || tree.seen.contains(&key));
    if let Some((owner, _)) = owner {
        return Some(owner == id);
    }
    let is_older = |tree: &Entry| key.start < tree.leader.start;
    (registry.apart.contains(&key) || registry.trees.get(id).is_none_or(is_older)).then_some(false)
}

/// Whether a child of ours that no look knows is the tree's; `None` when that cannot be said now.
pub(crate) fn decide(id: &str, child: &Process) -> Option<bool> {
    // Since the child was read the registry may have learnt of it.
    if let Some(is_mine) = recall(id, child.key) {
        return Some(is_mine);
    }
    let known = registry().clone();
    let entry = known.trees.get(id)?;
    match judge(child, &known, entry) {
        Some(Owner::Doubtful) => None,
        owner => Some(owner == Some(Owner::Tree(id)) || owner == Some(Owner::Claimed)),
    }
}

/// Decides for every process that can be decided without its ancestors.
fn seeds<'a>(all: &BTreeMap<u32, Process>, known: &'a Registry, asked: &Entry) -> BTreeMap<u32, Owner<'a>> {
    let mut seeds = BTreeMap::new();
    let is_there = |key: &Key| all.get(&key.pid).is_some_and(|now| now.key == *key);
    // What comes later overrides: descent seen earlier, then the control group, then the leaders.
    for (id, tree) in &known.trees {
        for key in tree.seen.iter().filter(|key| is_there(key)) {
            seeds.insert(key.pid, Owner::Tree(id.as_str()));
        }
    }
    for (id, tree) in &known.trees {
        let pids = tree.cgroup.as_deref().map(cgroup::pids).unwrap_or_default();
        for pid in pids.into_iter().filter(|pid| all.contains_key(pid)) {
            seeds.insert(pid, Owner::Tree(id.as_str()));
        }
    }
    for key in known.apart.iter().filter(|key| is_there(key)) {
        seeds.insert(key.pid, Owner::Apart);
    }
    for (id, tree) in &known.trees {
        if is_there(&tree.leader) {
            seeds.insert(tree.leader.pid, Owner::Tree(id.as_str()));
        }
    }
    // A member with the right to can move anybody into its group, also us and who is above us.
    let me = std::process::id();
    let mut above = Some(me);
    for _ in 0..all.len() {
        let Some(pid) = above else { break };
        seeds.remove(&pid);
        above = all.get(&pid).map(|process| process.parent);
    }
    for child in all.values().filter(|process| process.parent == me) {
        if !seeds.contains_key(&child.key.pid)
            && let Some(owner) = judge(child, known, asked)
        {
            seeds.insert(child.key.pid, owner);
        }
    }
    seeds
}

/// Decides about a child of ours that is no leader and was not seen before. `None`: older than the
/// asked tree, so not of it, whoever it is.
fn judge<'a>(child: &Process, known: &'a Registry, asked: &Entry) -> Option<Owner<'a>> {
    let mark = match child.alive() {
        true => process::variable(child, MARK),
        false => Variable::Gone,
    };
    let evident = by_mark(&mark, known).or_else(|| by_remains(child, known)).or_else(|| by_group(child, known));
    if evident.is_some() {
        return evident;
    }
    // Where there is one tree only, what its mark would say does not matter.
    let has_choice = known.trees.len() > 1 || known.apart_id.is_some();
    if child.key.start < asked.leader.start {
        None
    } else if has_choice && mark == Variable::Gone {
        Some(Owner::Stray)
    } else if known.spawning > 0 || (has_choice && mark == Variable::Loading) {
        Some(Owner::Doubtful)
    } else {
        Some(Owner::Claimed)
    }
}

/// The innermost id in the mark that is known here decides.
fn by_mark<'a>(mark: &Variable, known: &'a Registry) -> Option<Owner<'a>> {
    let Variable::Value(mark) = mark else {
        return None;
    };
    mark.rsplit(':').find_map(|part| {
        if known.apart_id.as_deref() == Some(part) {
            return Some(Owner::Apart);
        }
        let (id, _) = known.trees.get_key_value(part)?;
        Some(Owner::Tree(id.as_str()))
    })
}

/// The number of a process group or session is not reused while somebody is in it.
fn by_group<'a>(child: &Process, known: &'a Registry) -> Option<Owner<'a>> {
    known.trees.iter().find_map(|(id, tree)| {
        let is_of = |pid: u32| pid == tree.leader.pid || tree.seen.iter().any(|member| member.pid == pid);
        (is_of(child.group) || is_of(child.session)).then_some(Owner::Tree(id.as_str()))
    })
}

/// A dead process is in no list of a control group any more, but still says which one it was in.
fn by_remains<'a>(child: &Process, known: &'a Registry) -> Option<Owner<'a>> {
    let is_useful = !child.alive() && known.trees.values().any(|tree| tree.cgroup.is_some());
    let groups = is_useful.then(|| fs::read_to_string(format!("/proc/{}/cgroup", child.key.pid)).ok()).flatten()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    path.split(['/', ' ']).rev().find_map(|part| {
        let id = part.strip_prefix(cgroup::PREFIX)?;
        let (id, _) = known.trees.get_key_value(id)?;
        Some(Owner::Tree(id.as_str()))
    })
}

/// Gives every descendant of a decided process the owner of its nearest decided ancestor.
/// Ancestors come first in the result.
fn spread<'p, 'a>(all: &'p BTreeMap<u32, Process>, seeds: &BTreeMap<u32, Owner<'a>>) -> Vec<(&'p Process, Owner<'a>)> {
    let mut children: BTreeMap<u32, Vec<&Process>> = BTreeMap::new();
    for process in all.values() {
        children.entry(process.parent).or_default().push(process);
    }
    // Seeds that descend from no other seed begin; the rest is met on the way down. Every process
    // has one parent, so it is met once at most, and a ring of stale parents never.
    let is_below_a_seed = |pid: u32| {
        let mut above = all.get(&pid).map(|process| process.parent);
        for _ in 0..all.len() {
            match above {
                Some(pid) if seeds.contains_key(&pid) => return true,
                Some(pid) if pid != 0 => above = all.get(&pid).map(|process| process.parent),
                _ => return false,
            }
        }
        false
    };
    let mut owned: Vec<(&Process, Owner)> = seeds
        .iter()
        .filter(|(pid, _)| !is_below_a_seed(**pid))
        .filter_map(|(pid, owner)| Some((all.get(pid)?, *owner)))
        .collect();
    let mut next = 0;
    while let Some(&(process, owner)) = owned.get(next) {
        next += 1;
        // Children of a dead process are about to be ours, and will be asked for their own marks.
        let inherited = match owner {
            Owner::Stray => Owner::Doubtful,
            owner => owner,
        };
        for child in children.get(&process.key.pid).into_iter().flatten() {
            owned.push((child, seeds.get(&child.key.pid).copied().unwrap_or(inherited)));
        }
    }
    owned
}

/// Keeps what this look found by evidence, for when a member's evidence is gone, and drops who is
/// gone. What was only claimed is not kept: it may yet turn out to be another tree's.
fn remember(all: &BTreeMap<u32, Process>, owned: &[(&Process, Owner)], known: &Registry) {
    // A key may be newer than the snapshot, so absence from it proves nothing.
    let is_gone = |key: &&Key| {
        all.get(&key.pid).is_none_or(|now| now.key != **key)
            && process::read(key.pid).is_ok_and(|now| now.is_none_or(|now| now.key != **key))
    };
    let gone = |keys: &BTreeSet<Key>| keys.iter().filter(is_gone).copied().collect::<BTreeSet<_>>();
    let gone_apart = gone(&known.apart);
    let gone_seen: Vec<_> = known.trees.iter().map(|(id, tree)| (id, gone(&tree.seen))).collect();

    let mut registry = registry();
    for key in gone_apart {
        registry.apart.remove(&key);
    }
    for (id, keys) in gone_seen {
        if let Some(tree) = registry.trees.get_mut(id) {
            tree.seen.retain(|key| !keys.contains(key));
        }
    }
    for (process, owner) in owned {
        match owner {
            Owner::Apart => {
                registry.apart.insert(process.key);
            }
            Owner::Tree(id) => {
                if let Some(tree) = registry.trees.get_mut(*id) {
                    tree.seen.insert(process.key);
                }
            }
            Owner::Claimed | Owner::Doubtful | Owner::Stray => {}
        }
    }
}
