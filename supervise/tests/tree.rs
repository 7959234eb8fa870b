//! Trees of real processes. The tests share one process, so every tree here keeps its mark.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{BOTH, BOUND, Scripted, alive, poll, state};
use estop_supervise::{Containment, Tree, become_subreaper, spawn_apart};

#[test]
fn a_simple_child_is_asked_and_goes() {
    for containment in BOTH {
        let mut it = Scripted::new("simple", containment, "echo here; exec sleep 1000");
        it.line();
        let stopped = it.stop(30_000);
        assert_eq!((stopped.terminated, stopped.killed), (1, 0));
        assert!(stopped.took < Duration::from_secs(30), "{stopped:?}");
    }
}

#[test]
fn who_ignores_term_is_killed_after_the_grace() {
    for containment in BOTH {
        let script = "trap '' TERM; sleep 1000 & echo $!; wait; wait; sleep 1000";
        let mut it = Scripted::new("deaf", containment, script);
        let sleeper = it.pid();
        poll("the sleep", || fs::read_to_string(format!("/proc/{sleeper}/comm")).is_ok_and(|name| name == "sleep\n"));
        let stopped = it.stop(300);
        assert_eq!((stopped.terminated, stopped.killed), (0, 2));
        assert!(stopped.took >= Duration::from_millis(300), "{stopped:?}");
    }
}

#[test]
fn who_starts_during_the_grace_may_finish_and_is_asked_once_alone() {
    // A shell that has just forked may lose a signal, and a look may miss who is started meanwhile: then it is tried again.
    let may_finish = |containment| {
        let directory = tempfile::tempdir().unwrap();
        let tidy = directory.path().join("tidy");
        // The first helps to tidy up; the second is left behind and would sleep on for the whole grace.
        let script = format!(
            "trap 'sleep 0.3; touch {}; (setsid sleep 1000 &); exit' TERM; sleep 1000 & echo here; wait",
            tidy.display()
        );
        let mut it = Scripted::new("helpers", containment, &script);
        it.line();
        let stopped = it.stop(10_000);
        assert!(tidy.exists());
        stopped.killed == 0 && stopped.took < Duration::from_secs(10)
    };
    for containment in BOTH {
        assert!((0..5).any(|_| may_finish(containment)));
    }
}

#[test]
fn a_stopped_member_can_act_on_the_term() {
    let mut it = Scripted::new("paused", Containment::Walk, "echo $$; kill -STOP $$; exec sleep 1000");
    let pid = it.pid();
    poll("the stop", || state(pid) == Some('T'));
    let stopped = it.stop(30_000);
    assert_eq!((stopped.terminated, stopped.killed), (1, 0));
}

#[test]
fn a_grandchild_in_a_session_of_its_own_goes_too() {
    for containment in BOTH {
        let script = "setsid sh -c 'echo $$; exec sleep 1000' & wait";
        let mut it = Scripted::new("setsid", containment, script);
        let grandchild = it.pid();
        it.end();
        assert!(!alive(grandchild));
    }
}

#[test]
fn a_daemon_goes_too_and_is_reaped() {
    for containment in BOTH {
        let script = "setsid sh -c 'sh -c \"echo \\$\\$; exec sleep 1000\" & exit' & exec sleep 1000";
        let mut it = Scripted::new("daemon", containment, script);
        let daemon = it.pid();
        poll("the orphan to come to us", || parent(daemon) == Some(std::process::id()));
        it.end();
        assert_eq!(state(daemon), None, "left as a zombie");
    }
}

#[test]
fn the_tree_lives_on_without_its_leader_and_is_stopped() {
    for containment in BOTH {
        let script = "setsid sh -c 'echo $$; exec sleep 1000' & sh -c 'echo $$; exec sleep 1000' & exit 7";
        let mut it = Scripted::new("headless", containment, script);
        let orphans = [it.pid(), it.pid()];
        assert_eq!(it.tree.wait().unwrap().code(), Some(7));
        let mut members: Vec<u32> = it.tree.members().unwrap().iter().map(|member| member.pid).collect();
        members.sort_unstable();
        let mut expected = orphans.to_vec();
        expected.sort_unstable();
        assert_eq!(members, expected);
        assert_eq!(it.stop(1000).terminated, 2);
        assert!(orphans.iter().all(|pid| state(*pid).is_none()));
    }
}

#[test]
fn a_loop_that_forks_orphans_is_beaten() {
    for containment in BOTH {
        let script = "i=0; while [ $i -lt 500 ]; do (setsid sleep 60 &); i=$((i+1)); done; sleep 60";
        let mut it = Scripted::new("loop", containment, script);
        poll("some orphans", || it.tree.members().unwrap().len() > 30);
        it.end();
    }
}

#[test]
fn a_chain_that_forks_and_exits_is_beaten() {
    // Longer than a stop may take, so that it does not end by itself; and bounded, should the test fail.
    let python = "
import os, time
end = time.monotonic() + 90
for link in range(10000000):
    if os.fork() or time.monotonic() > end:
        os._exit(0)
    os.setsid()
    if link == 100:
        os.write(1, b\"on its way\\n\")";
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hop");
    let link =
        "#!/bin/sh\n[ $1 = 99900 ] && echo on its way\n[ $1 -gt 0 ] && [ -e $0 ] || exit\nsetsid sh $0 $(($1-1)) &\n";
    fs::write(&path, link).unwrap();
    let mut scripts = vec![format!("sh {} 100000", path.display())];
    if has_python() {
        scripts.push(format!("exec python3 -c '{python}'"));
    }
    for script in &scripts {
        for containment in BOTH {
            let mut it = Scripted::new("chain", containment, script);
            it.line();
            it.end();
        }
    }
}

#[test]
fn threads_without_their_first_thread_are_alive() {
    let script = "exec python3 -c '
import ctypes, os, platform, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
print(os.getpid(), flush=True)
ctypes.CDLL(None).syscall({\"x86_64\": 60, \"aarch64\": 93}[platform.machine()], 0)'";
    if !has_python() {
        println!("not tested: no python3");
        return;
    }
    for containment in BOTH {
        let script = format!("(setsid sh -c '{}' &); exec sleep 1000", script.replace('\'', "'\\''"));
        let mut it = Scripted::new("threads", containment, &script);
        let pid = it.pid();
        poll("the first thread to end", || state(pid) == Some('Z'));
        let members = it.tree.members().unwrap();
        assert!(members.iter().any(|member| member.pid == pid), "{members:?}");
        it.end();
        assert_eq!(state(pid), None);
    }
}

#[test]
fn who_is_apart_survives_with_its_status() {
    become_subreaper().unwrap();
    let mut it = Scripted::new("among", Containment::Walk, "echo here; exec sleep 1000");
    it.line();
    let mut apart = spawn_apart(Command::new("sh").args(["-c", "read line; exit 5"]).stdin(Stdio::piped())).unwrap();
    let mut brief = spawn_apart(Command::new("sh").args(["-c", "exit 6"])).unwrap();
    poll("the brief one's end", || state(brief.id()) == Some('Z'));
    it.end();
    assert!(alive(apart.id()));
    assert_eq!(brief.wait().unwrap().code(), Some(6));
    drop(apart.stdin.take());
    assert_eq!(apart.wait().unwrap().code(), Some(5));
}

#[test]
fn stopping_one_tree_leaves_the_other() {
    for containment in BOTH {
        let script = "(setsid sh -c 'echo $$; exec sleep 1000' &); exec sleep 1000";
        let mut one = Scripted::new("one", containment, script);
        let mut other = Scripted::new("other", containment, script);
        let (of_one, of_other) = (one.pid(), other.pid());
        one.end();
        assert!(!alive(of_one));
        assert!(alive(of_other) && alive(other.tree.leader()));
        let stopped = other.stop(0);
        assert_eq!(stopped.killed, 2);
        assert!(!alive(of_other));
    }
}

#[test]
fn no_grace_asks_nobody() {
    for containment in BOTH {
        let directory = tempfile::tempdir().unwrap();
        let asked = directory.path().join("asked");
        let script = format!("trap 'touch {}' TERM; echo here; sleep 1000 & wait; sleep 1000", asked.display());
        let mut it = Scripted::new("graceless", containment, &script);
        it.line();
        let stopped = it.stop(0);
        assert_eq!(stopped.terminated, 0);
        assert!(stopped.killed >= 1);
        assert!(!asked.exists());
    }
}

#[test]
fn a_tree_that_is_gone_is_stopped_at_once() {
    let mut it = Scripted::new("gone", Containment::Cgroup, "exit 3");
    assert_eq!(it.tree.wait().unwrap().code(), Some(3));
    let stopped = it.stop(1000);
    assert_eq!((stopped.terminated, stopped.killed), (0, 0));
    assert_eq!(it.tree.wait().unwrap().code(), Some(3));
}

#[test]
fn no_time_at_all_still_kills() {
    let mut it = Scripted::new("hasty", Containment::Walk, "echo here; exec sleep 1000");
    it.line();
    let _ = it.tree.stop(Duration::MAX, Duration::ZERO);
    poll("the end", || !alive(it.tree.leader()));
}

#[test]
fn a_dropped_tree_is_killed() {
    for containment in BOTH {
        let mut it = Scripted::new("dropped", containment, "(setsid sh -c 'echo $$; exec sleep 1000' &); sleep 1000");
        let orphan = it.pid();
        drop(it);
        assert!(!alive(orphan));
    }
}

#[test]
fn waiting_is_bounded_and_reaps_orphans() {
    // The orphan dies long before the leader, unseen by any look but those of the waiting.
    let script = "(setsid sh -c 'echo $$; exec sleep 1' &); exec sleep 1000";
    let mut it = Scripted::new("tended", Containment::Walk, script);
    let orphan = it.pid();
    let begun = Instant::now();
    assert!(it.tree.wait_for(Duration::from_millis(500)).unwrap().is_none());
    assert!(begun.elapsed() >= Duration::from_millis(500) && begun.elapsed() < BOUND);
    poll("the reaping", || it.tree.wait_for(Duration::from_millis(1500)).unwrap().is_none() && state(orphan).is_none());
    it.end();
}

#[test]
fn a_command_that_is_not_there_is_named() {
    become_subreaper().unwrap();
    let error = Tree::spawn(&mut Command::new("/nonexistent/agent")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    assert!(error.to_string().contains("/nonexistent/agent"), "{error}");
}

#[test]
fn a_control_group_is_used_where_it_can_be_and_removed() {
    let mut it = Scripted::new("group", Containment::Cgroup, "exec sleep 1000");
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", it.tree.leader())).unwrap();
    let own = groups.lines().find(|line| line.starts_with("0::"));
    let own = own.unwrap_or_default().to_owned();
    let point = cgroup_point();
    let probe = format!("{}/supervise-probe", point.as_deref().unwrap_or("/nonexistent"));
    if fs::create_dir(&probe).is_err() {
        println!("not tested: no control group can be made here");
        return;
    }
    fs::remove_dir(&probe).unwrap();
    assert_eq!(it.tree.containment(), Containment::Cgroup);
    assert!(own.contains("/estop-"), "{own}");
    let path = format!("{}{}", point.unwrap(), own.trim_start_matches("0::"));
    assert!(fs::exists(&path).unwrap());
    it.end();
    drop(it);
    assert!(!fs::exists(&path).unwrap());
}

#[test]
fn who_leaves_the_control_group_goes_too() {
    let Some(point) = cgroup_point() else {
        println!("not tested: no control groups");
        return;
    };
    // Spawning would fetch back who leaves too early.
    let directory = tempfile::tempdir().unwrap();
    let go = directory.path().join("go");
    let wait = format!("until [ -e {} ]; do sleep 0.01; done", go.display());
    let script = format!(
        "(setsid sh -c '{wait}; echo 0 > {point}/cgroup.procs; echo $$; exec sleep 1000' &)
        exec sleep 1000"
    );
    let mut it = Scripted::new("escape", Containment::Cgroup, &script);
    fs::write(&go, "").unwrap();
    let escaped = it.pid();
    let groups = fs::read_to_string(format!("/proc/{escaped}/cgroup")).unwrap();
    if groups.contains("/estop-") {
        println!("not tested: the group cannot be left");
    }
    it.end();
    assert!(!alive(escaped));
}

/// A group of the version 1 freezer, whose frozen members no signal ends.
struct Freezer(PathBuf);

impl Freezer {
    fn new() -> Option<Freezer> {
        let path = PathBuf::from(format!("/sys/fs/cgroup/freezer/supervise-{}", std::process::id()));
        fs::create_dir(&path).ok()?;
        Some(Freezer(path))
    }

    fn set(&self, file: &str, value: &str) {
        fs::write(self.0.join(file), value).unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.set("freezer.state", "THAWED");
        poll("the freezer to be empty", || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn who_sleeps_uninterruptibly_is_left_when_the_bound_is_over() {
    let Some(freezer) = Freezer::new() else {
        println!("not tested: no freezer");
        return;
    };
    for containment in BOTH {
        let mut it = Scripted::new("frozen", containment, "sleep 1000 & echo here; exec sleep 1000");
        it.line();
        let leader = it.tree.leader();
        freezer.set("cgroup.procs", &leader.to_string());
        freezer.set("freezer.state", "FROZEN");
        poll("the frost", || state(leader) == Some('D'));
        let begun = Instant::now();
        let stopped = it.tree.stop(Duration::from_millis(100), Duration::from_millis(500));
        assert!(begun.elapsed() < BOUND, "{stopped:?}");
        assert!(begun.elapsed() >= Duration::from_millis(500), "{stopped:?}");
        assert!(!stopped.complete());
        assert_eq!(stopped.terminated, 1);
        let left: Vec<_> = stopped.left.iter().map(|left| (left.pid, left.state)).collect();
        assert_eq!(left, [(leader, 'D')]);
        freezer.set("freezer.state", "THAWED");
        it.end();
    }
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.get(stat.rfind(')')? + 4..)?.split(' ').next()?.parse().ok()
}

fn has_python() -> bool {
    let probe = spawn_apart(Command::new("python3").arg("-V").stdout(Stdio::null()));
    probe.is_ok_and(|mut probe| probe.wait().is_ok_and(|status| status.success()))
}

/// Where control groups of version 2 are mounted.
fn cgroup_point() -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    mount.split(' ').nth(4).map(str::to_owned)
}
