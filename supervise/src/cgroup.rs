//! A control group (version 2) of its own for a tree, where the system lets us make one.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::failed;

/// What the name of a tree's group begins with; the tree's id follows.
pub(crate) const PREFIX: &str = "estop-";
/// How deep groups made inside ours are followed.
const DEPTH_LIMIT: usize = 16;

/// Write access is all it takes; `fs::write` would also try to create and truncate.
fn put(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| failed(format!("writing {text} to {}", path.display()), error))
}

/// Moves a process into a group, by the path of its `cgroup.procs`. Zero is the caller itself.
pub(crate) fn join(procs: &Path, pid: u32) -> io::Result<()> {
    put(procs, &pid.to_string())
}

/// The directory of the group that a process is in; `self` is this one.
fn directory_of(process: &str) -> Option<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        if kind.split(' ').next()? != "cgroup2" {
            return None;
        }
        let mut fields = place.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // A mount point with escaped characters is not worth decoding: the walk does without.
        let below = Path::new(own).strip_prefix(root).ok()?;
        Some(Path::new(point).join(below))
    })
}

/// The group that was made for a tree, found by one of its members.
pub(crate) fn of_tree(member: u32, id: &str) -> Option<Cgroup> {
    let directory = directory_of(&member.to_string())?;
    let name = format!("{PREFIX}{id}");
    let found = directory.ancestors().find(|above| above.file_name().is_some_and(|found| *found == *name))?;
    Some(Cgroup { directory: found.to_owned() })
}

/// Whether a group can be made for a tree here, and killed through.
pub fn has_cgroups() -> bool {
    crate::registry::new_id().is_ok_and(|id| Cgroup::create(&id).is_some())
}

/// One group, made for a tree and removed by who ends it.
#[derive(Debug)]
pub(crate) struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    /// Makes a group below our own; `None` where that, or killing through it, is not possible.
    pub(crate) fn create(id: &str) -> Option<Cgroup> {
        let directory = directory_of("self")?.join(format!("{PREFIX}{id}"));
        fs::create_dir(&directory).ok()?;
        let group = Cgroup { directory };
        // Linux before 5.14 has no cgroup.kill.
        let usable = OpenOptions::new()
            .write(true)
            .open(group.directory.join("cgroup.kill"))
            .and_then(|_| OpenOptions::new().write(true).open(group.procs()));
        usable.is_ok().then_some(group)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn procs(&self) -> PathBuf {
        self.directory.join("cgroup.procs")
    }

    /// Kills everybody in the group and below, also who is being forked meanwhile.
    pub(crate) fn kill(&self) -> io::Result<()> {
        if pids(&self.directory).contains(&std::process::id()) {
            let source = io::Error::other("this process has been moved into it");
            let what = format!("killing the group {}", self.directory.display());
            return Err(failed(what, source));
        }
        put(&self.directory.join("cgroup.kill"), "1")
    }

    /// Whether anybody alive is in the group or below.
    pub(crate) fn populated(&self) -> io::Result<bool> {
        let path = self.directory.join("cgroup.events");
        fs::read_to_string(&path)
            .map(|events| events.lines().any(|line| line == "populated 1"))
            .map_err(|error| failed(format!("reading {}", path.display()), error))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.directory, DEPTH_LIMIT);
    }
}

/// Removes a group and those below it. One that still has members stays: the kernel refuses.
fn remove(directory: &Path, depth: usize) {
    for below in subgroups(directory, depth) {
        remove(&below, depth - 1);
    }
    let _ = fs::remove_dir(directory);
}

fn subgroups(directory: &Path, depth: usize) -> Vec<PathBuf> {
    if depth == 0 {
        return Vec::new();
    }
    fs::read_dir(directory)
        .map(|entries| {
            entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path())
                .collect()
        })
        .unwrap_or_default()
}

/// The pids in a group and below it. What cannot be read is left out: the list is evidence for
/// membership, [`Cgroup::populated`] the one against it.
pub(crate) fn pids(directory: &Path) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    collect(directory, DEPTH_LIMIT, &mut found);
    found
}

fn collect(directory: &Path, depth: usize, found: &mut BTreeSet<u32>) {
    if let Ok(list) = fs::read_to_string(directory.join("cgroup.procs")) {
        found.extend(list.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
    }
    for below in subgroups(directory, depth) {
        collect(&below, depth - 1, found);
    }
}
