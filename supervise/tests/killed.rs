//! What happens when the supervisor itself is killed, and when it is itself supervised.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{BOTH, Scripted, alive, poll};
use estop_supervise::{Tree, become_subreaper, spawn_apart};

const SUPERVISOR: &str = env!("CARGO_BIN_EXE_supervisor");

/// The control group a killed supervisor leaves behind; removed when dropped.
struct Group(Option<PathBuf>);

impl Group {
    fn of(pid: u32) -> Group {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
        let own = groups.lines().find_map(|line| line.strip_prefix("0::"));
        let is_made = own.is_some_and(|own| own.contains("/estop-"));
        Group(is_made.then(|| PathBuf::from(format!("{}{}", point.unwrap(), own.unwrap()))))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            poll("the group to be empty", || fs::remove_dir(path).is_ok());
        }
    }
}

#[test]
fn the_command_dies_with_its_supervisor() {
    for kind in ["walk", "cgroup"] {
        let mut supervisor =
            spawn_apart(Command::new(SUPERVISOR).args([kind, "sleep", "1000"]).stdout(Stdio::piped())).unwrap();
        let mut line = String::new();
        BufReader::new(supervisor.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let leader: u32 = line.trim().strip_prefix("leader ").unwrap().parse().unwrap();
        assert!(alive(leader));
        let group = Group::of(leader);
        supervisor.kill().unwrap();
        supervisor.wait().unwrap();
        poll("the command's death", || !alive(leader));
        drop(group);
    }
}

#[test]
fn the_shim_does_not_start_for_a_dead_supervisor() {
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("started");
    let output = spawn_apart(
        Command::new(SUPERVISOR).args(["exec-shim", "1", "--", "touch"]).arg(&trace).stderr(Stdio::piped()),
    )
    .unwrap()
    .wait_with_output()
    .unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8(output.stderr).unwrap().contains("process 1, is gone"));
    assert!(!trace.exists());
}

#[test]
fn the_exit_status_passes_through() {
    for kind in ["walk", "cgroup"] {
        let status = spawn_apart(Command::new(SUPERVISOR).args([kind, "sh", "-c", "exit 9"])).unwrap().wait().unwrap();
        assert_eq!(status.code(), Some(9));
    }
}

#[test]
fn the_thread_that_spawned_may_end() {
    become_subreaper().unwrap();
    let parent = std::process::id().to_string();
    let mut tree = std::thread::spawn(move || {
        let mut command = Command::new(SUPERVISOR);
        command.args(["exec-shim", &parent, "--", "sh", "-c", "echo here; read line; exit 4"]);
        Tree::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped())).unwrap()
    })
    .join()
    .unwrap();
    let pipes = tree.take_pipes();
    BufReader::new(pipes.stdout.unwrap()).read_line(&mut String::new()).unwrap();
    drop(pipes.stdin);
    assert_eq!(tree.wait().unwrap().code(), Some(4));
}

#[test]
fn a_supervised_supervisor_goes_with_its_tree() {
    for containment in BOTH {
        let script =
            format!("{SUPERVISOR} walk sh -c \"(setsid sh -c 'echo \\$\\$; exec sleep 1000' &); exec sleep 1000\"");
        let mut it = Scripted::new("nested", containment, &script);
        let mut pid = it.line();
        if pid.starts_with("leader") {
            pid = it.line();
        }
        let orphan: u32 = pid.parse().unwrap();
        assert!(alive(orphan));
        it.end();
        assert!(!alive(orphan));
    }
}
