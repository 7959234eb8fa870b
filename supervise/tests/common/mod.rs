//! What the tests share. Nothing here uses the module's own walk: the tests look for themselves.

#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use estop_supervise::{Containment, Stopped, Tree, become_subreaper};

/// How long a test waits for what must come: generous, for a machine that has much else to do.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
/// A bound that a stop is not meant to need.
pub(crate) const BOUND: Duration = Duration::from_secs(60);
pub(crate) const BOTH: [Containment; 2] = [Containment::Walk, Containment::Cgroup];
/// Marks every process of a test, apart from the module's mark.
pub(crate) const TOKEN: &str = "SUPERVISE_TEST_TOKEN";

pub(crate) fn poll(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < DEADLINE, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.get(stat.rfind(')')? + 2..)?.chars().next()
}

pub(crate) fn alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// The live processes that carry a test's token.
pub(crate) fn carriers(token: &str) -> Vec<u32> {
    let entry = format!("{TOKEN}={token}");
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|all| all.split(|byte| *byte == 0).any(|one| one == entry.as_bytes()))
        })
        .filter(|pid| alive(*pid))
        .collect()
}

/// A tree of a shell script, with what it prints.
pub(crate) struct Scripted {
    pub(crate) tree: Tree,
    pub(crate) lines: BufReader<ChildStdout>,
    pub(crate) token: String,
}

impl Scripted {
    pub(crate) fn new(name: &str, containment: Containment, script: &str) -> Scripted {
        become_subreaper().unwrap();
        let token = format!("{name}-{containment:?}-{}", std::process::id());
        let mut command = Command::new("sh");
        command.args(["-c", script]).env(TOKEN, &token).stdout(Stdio::piped());
        let mut tree = Tree::spawn_with(&mut command, containment).unwrap();
        let lines = BufReader::new(tree.take_pipes().stdout.unwrap());
        Scripted { tree, lines, token }
    }

    /// The next line; blocks until the script prints it.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.lines.read_line(&mut line).unwrap() > 0, "no more output");
        line.trim().to_owned()
    }

    pub(crate) fn pid(&mut self) -> u32 {
        self.line().parse().unwrap()
    }

    /// Stops the tree, and sees to it that nobody with the token is left.
    pub(crate) fn stop(&mut self, grace_ms: u64) -> Stopped {
        let stopped = self.tree.stop(Duration::from_millis(grace_ms), BOUND);
        println!("{} {:?}: {stopped:?}", self.token, self.tree.containment());
        assert_eq!(carriers(&self.token), Vec::<u32>::new(), "{stopped:?}");
        assert!(stopped.complete(), "{stopped:?}");
        assert!(stopped.took < BOUND, "{stopped:?}");
        stopped
    }

    /// Stops the tree without grace.
    pub(crate) fn end(&mut self) {
        drop(self.stop(0));
    }
}
