//! What happens when the supervisor itself is killed, and when it is itself supervised.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use common::{BOTH, BOUND, Scripted, TOKEN, alive, carriers, poll, state};
use estop_supervise::{Foreign, Tree, become_subreaper, spawn_apart};

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

/// A supervisor that does not act any more, with a tree that does all to get away.
fn frozen(kind: &str, token: &str) -> Child {
    let script = "
        (setsid sh -c '(sleep 1000 &); trap : TERM; while :; do sleep 1000; done' &)
        (env -i setsid sh -c 'echo $$; exec sleep 1000' &)
        (i=0; while [ $i -lt 1000 ]; do (setsid sleep 100 &); i=$((i+1)); [ $i = 30 ] && echo forking; done; wait) &
        while :; do sleep 1000; done";
    let mut command = Command::new(SUPERVISOR);
    command.args([kind, "sh", "-c", script]).env(TOKEN, token).stdout(Stdio::piped());
    let mut supervisor = spawn_apart(&mut command).unwrap();
    let mut lines = BufReader::new(supervisor.stdout.take().unwrap());
    for _ in 0..3 {
        assert!(lines.read_line(&mut String::new()).unwrap() > 0);
    }
    supervisor
}

fn send(child: &Child, signal: &str) {
    let sent = spawn_apart(Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()[..]]));
    assert!(sent.unwrap().wait().unwrap().success());
}

#[test]
fn the_trees_of_another_supervisor_are_ended_and_nobody_elses() {
    for kind in ["walk", "cgroup"] {
        let tokens = ["frozen", "bystander"].map(|name| format!("{name}-{kind}-{}", std::process::id()));
        let [mut it, mut bystander] = [&tokens[0], &tokens[1]].map(|token| frozen(kind, token));
        send(&it, "STOP");
        poll("the stop", || state(it.id()) == Some('T'));
        let mut trees = Foreign::of(it.id()).unwrap();
        assert!(!trees.is_empty());
        let stopped = trees.end(BOUND);
        assert!(stopped.complete() && stopped.killed >= 5, "{stopped:?}");
        assert_eq!(carriers(&tokens[0]), [it.id()], "{stopped:?}");
        it.kill().unwrap();
        it.wait().unwrap();
        assert!(trees.end(BOUND).complete());
        // Of a supervisor that nothing is known of but what was seen before.
        let mut trees = Foreign::of(bystander.id()).unwrap();
        assert!(carriers(&tokens[1]).len() >= 5);
        bystander.kill().unwrap();
        bystander.wait().unwrap();
        let stopped = trees.end(BOUND);
        assert!(stopped.complete(), "{stopped:?}");
        assert_eq!(carriers(&tokens[1]), [0; 0], "{stopped:?}");
    }
}
