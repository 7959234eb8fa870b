//! Processes without a mark. A process of its own: here an unknown child is taken for a member.

mod common;

use std::fs;
use std::process::{Command, Stdio};

use common::{BOTH, Scripted, alive, poll, state};
use estop_supervise::become_subreaper;

fn start(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1;
    fields.split_ascii_whitespace().nth(19).unwrap().parse().unwrap()
}

fn sleepers(time: &str) -> usize {
    let line = format!("sleep\0{time}\0");
    let pids =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|process| process.file_name().to_str()?.parse().ok());
    let is_one = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found == line.as_bytes());
    pids.filter(|pid| is_one(pid) && alive(*pid)).count()
}

#[test]
fn a_wiped_environment_does_not_help() {
    become_subreaper().unwrap();
    let mut older = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    let born = start(older.id());
    poll("a later tick", || {
        let mut probe = Command::new("sleep").arg("1000").spawn().unwrap();
        let later = start(probe.id()) > born;
        probe.kill().unwrap();
        probe.wait().unwrap();
        later
    });
    for containment in BOTH {
        let script = "(env -i setsid sh -c 'echo $$; exec sleep 1000' &); exec sleep 1000";
        let mut it = Scripted::new("wiped", containment, script);
        let orphan = it.pid();
        poll("the sleep", || fs::read_to_string(format!("/proc/{orphan}/comm")).is_ok_and(|name| name == "sleep\n"));
        assert!(it.tree.members().unwrap().iter().any(|member| member.pid == orphan));
        it.end();
        assert_eq!(state(orphan), None);
    }
    assert!(alive(older.id()), "a child older than the tree was taken for a member");

    // A wiped loop: nobody in it was ever seen before it is killed.
    for containment in BOTH {
        // What it sleeps tells them from other processes: there is no token in their environment.
        let time = format!("1000.{}", std::process::id());
        let sleep = format!("env -i setsid sleep {time}");
        let script = format!("i=0; while [ $i -lt 400 ]; do ({sleep} &); i=$((i+1)); done; sleep {time}");
        let mut it = Scripted::new("wiped-loop", containment, &script);
        poll("some orphans", || it.tree.members().unwrap().len() > 30);
        assert!(sleepers(&time) > 0);
        it.end();
        assert_eq!(sleepers(&time), 0);
    }

    older.kill().unwrap();
    older.wait().unwrap();
}
