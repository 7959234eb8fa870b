//! The crisis: found, stopped, held, lifted; and what cannot be reached is said and can be ended.

use std::fs;
use std::process::Command;
use std::time::Duration;

use estop::{HaltScope, Home};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::command::{Running, estop, tool};
use crate::hosts::{Machine, signal};

fn halts(seen: &Value) -> Vec<String> {
    seen["halts"].as_array().unwrap().iter().map(|halt| halt["halt"].as_str().unwrap().to_owned()).collect()
}

fn pids(seen: &Value) -> Vec<u64> {
    seen["hosts"].as_array().unwrap().iter().map(|host| host["pid"].as_u64().unwrap()).collect()
}

/// The calls that a halt says it has reached, all of them halted and released; and the longest time to that (µs).
#[track_caller]
fn reached(halted: &Value) -> (usize, u64) {
    let calls: Vec<&Value> =
        halted["hosts"].as_array().unwrap().iter().flat_map(|host| host["calls"].as_array().unwrap()).collect();
    assert!(calls.iter().all(|call| call["released_us"].is_u64()), "{halted}");
    (calls.len(), calls.iter().map(|call| call["halted_us"].as_u64().unwrap()).max().unwrap_or(0))
}

/// Row 1, promises 11 and 12: three host processes with calls that spin are listed, halted and released from another
/// process; nothing starts, also after `kill -9` and in a new process, until the halt is lifted with a reason.
#[test]
fn everything_on_the_machine_is_halted_from_elsewhere_and_stays_so() {
    let machine = Machine::new();
    let mut embedded = [machine.embedded("support-7", 50), machine.embedded("research", 50)];
    let run = machine.run("ops");
    let seen = machine.ps();
    assert_eq!(seen["calls"].as_array().unwrap().len(), 101, "{seen}");
    assert_eq!((pids(&seen).len(), &seen["unseen"]), (3, &json!([])));
    let kinds: Vec<_> = seen["hosts"].as_array().unwrap().iter().map(|host| host["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "run").count(), 1);
    let writing = seen["calls"].as_array().unwrap().iter().find(|call| call["agent"] == "ops").unwrap();
    assert_eq!((&writing["state"], &writing["uncommitted"]["writes"]), (&json!("running"), &json!(2)));

    let halted = machine.estop(&["halt", "--all", "--json", "--reason", "it writes nonsense"]).has(0, &[]).json();
    let (calls, halted_us) = reached(&halted);
    println!("101 calls in three processes: the last was halted after {halted_us} µs");
    assert_eq!(calls, 101);
    // Generous: the target, 100 ms, is for a quiet machine.
    assert!(halted_us < 5_000_000, "{halted_us}");
    assert_eq!(run.ended().code, Some(11));

    let by = format!("was halted by {}", halted["halt"]["actor"].as_str().unwrap());
    let words = [&*by, "it writes nonsense", halted["halt"]["halt"].as_str().unwrap()];
    machine.short("anybody").has(6, &words);
    for child in &mut embedded {
        signal(child, Signal::KILL);
        assert!(child.ends_within(Duration::from_secs(60)));
    }
    machine.short("anybody").has(6, &words);
    let refused = Running::start(machine.embedding(&machine.home(), "support-7", 1)).ended();
    assert_ne!(refused.code, Some(0), "{refused:?}");

    let [halt] = &halts(&machine.ps())[..] else { panic!("one halt is in force") };
    machine.estop(&["lift", halt]).has(2, &["--reason"]);
    machine.estop(&["lift", halt, "--reason", " "]).has(2, &["reason"]);
    machine.estop(&["lift", halt, "--reason", "the bug is mended"]).has(0, &[]);
    machine.estop(&["lift", halt, "--reason", "again"]).has(2, &["no halt"]);
    machine.short("anybody").has(0, &[]);
    assert_eq!(machine.ps()["calls"], json!([]));

    let log = machine.estop(&["log", "show", "--json"]).has(0, &[]).jsons();
    let kinds = |kind: &str| log.iter().filter(|entry| entry["kind"] == kind).collect::<Vec<_>>();
    let [entry] = kinds("halt")[..] else { panic!("{:?}", kinds("halt")) };
    assert_eq!((&entry["halt"], &entry["latched"]), (&halted["halt"]["halt"], &json!(true)));
    let [lift] = kinds("lift")[..] else { panic!("{:?}", kinds("lift")) };
    assert_eq!((&lift["halt"], &lift["reason"]), (&entry["halt"], &json!("the bug is mended")));
    let stopped = kinds("end").into_iter().filter(|end| end["cause"] == "halted").count();
    assert_eq!(stopped, 101);
    assert!(!kinds("refusal").is_empty());
    machine.estop(&["log", "verify"]).has(0, &[]);
}

/// Rows 1 and 36: one call is stopped, the others run on, and so does their process.
#[test]
fn one_call_is_stopped_from_elsewhere_and_the_others_run_on() {
    let machine = Machine::new();
    let _embedded = machine.embedded("support-7", 3);
    let calls = || -> Vec<String> {
        let seen = machine.ps();
        seen["calls"].as_array().unwrap().iter().map(|call| call["call"].as_str().unwrap().to_owned()).collect()
    };
    let before = calls();
    let stopped = machine.estop(&["stop", &before[1], "--reason", "too slow", "--json"]).has(0, &[]).json();
    assert_eq!(stopped["calls"][0]["call"], json!(before[1]));
    let mut after = calls();
    after.insert(1, before[1].clone());
    assert_eq!(after, before);
    // Again: it is over, and that is said.
    machine.estop(&["stop", &before[1]]).has(8, &["nobody was reached"]);
    machine.estop(&["stop", "call-1"]).has(2, &["estop ps"]);
}

/// Promise 12: a process that is frozen is named with what to do, and the others are halted all the same; `--force` ends
/// it. One that is let go on admits nothing.
#[test]
fn a_frozen_host_is_named_and_can_be_ended_and_does_not_go_on() {
    let machine = Machine::new();
    let mut frozen = machine.embedded("a", 5);
    let mut thawed = machine.embedded("b", 5);
    let running = machine.embedded("c", 5);
    let pid = |running: &Running| running.child.id().to_string();
    for child in [&frozen, &thawed] {
        signal(child, Signal::STOP);
    }
    let seen = machine.ps();
    assert_eq!(pids(&seen), [u64::from(running.child.id())]);
    assert_eq!(seen["unseen"].as_array().unwrap().len(), 2);

    let halted =
        machine.estop(&["halt", "--agent", "b"]).has(8, &["NOT SEEN", &pid(&frozen), &pid(&thawed), "kill -9"]);
    assert!(halted.stdout.contains("is halted"), "{halted:?}");
    let [halt] = &halts(&machine.ps())[..] else { panic!("it is in force all the same") };
    // It cannot be seen whether what it covers has come to rest.
    machine.estop(&["lift", halt, "--reason", "too early"]).has(6, &["cannot be seen"]);

    signal(&thawed, Signal::CONT);
    for _ in 0..5 {
        let outcome: Value = serde_json::from_str(&thawed.prints()).unwrap();
        assert_eq!((&outcome["cause"], &outcome["status"]), (&json!("halted"), &json!("stopped")), "{outcome}");
    }
    assert!(thawed.ends_within(Duration::from_secs(60)));

    let forced = machine.estop(&["halt", "--all", "--force", "--json"]).has(0, &["was killed"]).json();
    assert_eq!(forced["killed"], json!([frozen.child.id()]));
    assert_eq!(reached(&forced).0, 5);
    assert!(frozen.ends_within(Duration::from_secs(60)));
    let log = machine.estop(&["log", "show", "--json"]).has(0, &[]).jsons();
    let killed = log.iter().find(|entry| entry["kind"] == "killed").unwrap();
    assert_eq!(killed["pid"], json!(frozen.child.id()));
    assert_eq!(log.iter().filter(|entry| entry["kind"] == "call-died").count(), 5);
}

/// Promise 16: a host in which nothing goes on but its control thread is seen, told, and said not to have confirmed; the
/// others are halted, and `--force` ends it.
#[test]
fn a_host_whose_guest_runtime_is_wedged_is_seen_and_can_be_ended() {
    let machine = Machine::new();
    let mut wedged = machine.wedged("a", 6);
    let spinning = machine.embedded("b", 6);
    let seen = machine.ps();
    assert_eq!((seen["calls"].as_array().unwrap().len(), &seen["unseen"]), (12, &json!([])), "{seen}");

    let halted = machine.estop(&["halt", "--all", "--json"]).has(8, &[]).json();
    let of = |child: &Running| {
        let hosts = halted["hosts"].as_array().unwrap();
        let host = hosts.iter().find(|host| host["pid"] == child.child.id()).unwrap();
        let calls = host["calls"].as_array().unwrap();
        (calls.len(), calls.iter().filter(|call| call["released_us"].is_u64()).count())
    };
    assert_eq!(of(&spinning), (6, 6), "{halted}");
    let (reached, released) = of(&wedged);
    assert!(reached == 6 && released < 6, "{halted}");
    let stuck = machine.ps();
    assert!(stuck["calls"].as_array().unwrap().iter().any(|call| call["stopped"]["cause"] == "halted"), "{stuck}");

    let forced = machine.estop(&["halt", "--all", "--force", "--json"]).has(0, &["was killed"]).json();
    assert_eq!(forced["killed"], json!([wedged.child.id()]));
    assert!(wedged.ends_within(Duration::from_secs(60)));
    assert_eq!(machine.ps()["calls"], json!([]));
}

/// Row 30: `estop halt` killed at any moment has halted or has not; once it has said so, it has.
#[test]
fn a_halt_that_is_killed_half_way_is_a_halt_or_none() {
    let machine = Machine::new();
    machine.short("a").has(0, &[]);
    let mut in_force = 0;
    for round in 0..40_u32 {
        let halting = Running::start(estop(&machine.home(), &["halt", "--all"]));
        // From before it begins to after its end, which is some ten milliseconds.
        std::thread::sleep(Duration::from_micros(u64::from(round) * 500));
        signal(&halting, Signal::KILL);
        let said = halting.ended().stdout;
        let found = halts(&machine.ps());
        assert!(found.len() <= 1, "{found:?}");
        assert!(!said.contains("is halted") || found.len() == 1, "{said}");
        in_force += found.len();
        if let [halt] = &found[..] {
            machine.short("a").has(6, &[halt]);
            machine.estop(&["lift", halt, "--reason", "the next round"]).has(0, &[]);
        }
        machine.short("a").has(0, &[]);
    }
    println!("{in_force} of 40 halts were in force");
    machine.estop(&["log", "verify"]).has(0, &[]);
}

/// With nobody to reach it holds for those that start, and says that it reached nobody.
#[test]
fn a_halt_that_reaches_nobody_says_so_and_holds() {
    let machine = Machine::new();
    machine.estop(&["halt", "--tool", "polite", "--reason", "it is not"]).has(8, &["no host process was reached"]);
    machine.short("a").has(6, &["tool polite was halted", "it is not"]);
    // Without a terminal nobody is asked.
    machine.estop(&["halt"]).has(2, &["--all"]);
    machine.estop(&["halt", "--all", "--agent", "a"]).has(2, &[]);
    machine.estop(&["halt", "--host", "1"]).has(2, &["estop ps"]);
}

/// A host on another home is halted as well, and keeps that where its own state is.
#[test]
fn hosts_of_other_homes_are_halted_too() {
    let machine = Machine::new();
    let elsewhere = machine.folder().join("elsewhere");
    let embedded = machine.embedded_on(&elsewhere, "a", 2);
    machine.estop(&["halt", "--all"]).has(0, &[]);
    assert!(embedded.ended().stdout.contains("closed"));
    let home = Home::open(&elsewhere).unwrap();
    let refused = Running::start(estop(home.path(), &["halts", "--json"])).ended().jsons();
    assert_eq!(refused[0]["scope"], serde_json::to_value(HaltScope::All).unwrap());
}

/// The one line of `estop halt --help` for whoever has nothing but curl.
#[test]
fn curl_does_it() {
    let machine = Machine::new();
    let embedded = machine.embedded("a", 2);
    let help = machine.estop(&["halt", "--help"]).stdout;
    let line = help.lines().find(|line| line.contains("curl")).unwrap().trim();
    let folder = machine.sockets().join(embedded.child.id().to_string());
    let line = line.replace("FOLDER", folder.to_str().unwrap());
    let answered = tool("sh", &["-c", &format!("{line} --silent --fail")]);
    assert_eq!(answered.code, Some(0), "{answered:?}");
    let answer: Value = serde_json::from_str(&answered.stdout).unwrap();
    assert_eq!(answer["calls"].as_array().unwrap().len(), 2);
    assert_eq!(answer["not_on_disk"], Value::Null);
    assert!(embedded.ended().stdout.contains("closed"));
    machine.short("a").has(6, &["halted"]);
    // Whoever only stops cannot lift: not even with curl.
    let machine = Machine::new();
    let embedded = machine.embedded("a", 1);
    let socket = machine.sockets().join(embedded.child.id().to_string()).join("operator.sock");
    let lift = ["-s", "--unix-socket", socket.to_str().unwrap(), "-d", "{}", "http://estop/v1/lift"];
    assert!(tool("curl", &lift).stdout.contains("`lift` is refused on `operator.sock`"));
    let denied = machine.estop(&["log", "show", "--json"]).has(0, &[]).jsons();
    let denied: Vec<_> = denied.iter().filter(|entry| entry["kind"] == "denied").collect();
    assert_eq!((&denied[0]["verb"], &denied[0]["role"], denied.len()), (&json!("lift"), &json!("operator"), 1));
}

/// A folder of a process that is gone is no host, and is cleared away.
#[test]
fn what_a_dead_process_has_left_is_cleared_away() {
    let machine = Machine::new();
    let mut embedded = machine.embedded("a", 1);
    let folder = machine.sockets().join(embedded.child.id().to_string());
    assert!(folder.join("operator.sock").exists());
    signal(&embedded, Signal::KILL);
    assert!(embedded.ends_within(Duration::from_secs(60)));
    assert_eq!(machine.ps()["hosts"], json!([]));
    assert!(!folder.exists());
    // What is not ours is left alone, and no folder is taken for a process.
    fs::create_dir_all(machine.sockets().join("notes")).unwrap();
    // And nobody is kept waiting by what lies where a lock should be.
    fs::create_dir_all(machine.sockets().join("1")).unwrap();
    tool("mkfifo", &[machine.sockets().join("1/lock").to_str().unwrap()]).has(0, &[]);
    assert_eq!(machine.ps()["unseen"], json!([]));
}

/// Row 12: with every worker spinning, everything on one processor.
#[test]
fn it_works_on_one_processor_with_every_worker_spinning() {
    let machine = Machine::new();
    let mut pinned = Command::new("taskset");
    let embedding = machine.embedding(&machine.home(), "a", 50);
    pinned.args(["-c", "0"]).arg(embedding.get_program()).args(embedding.get_args());
    pinned.envs(embedding.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
    pinned.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
    let child = Running::start(pinned);
    while !child.prints().contains("they spin") {}
    let halted = machine.estop(&["halt", "--all", "--json"]).has(0, &[]).json();
    let (calls, halted_us) = reached(&halted);
    println!("50 calls on one processor: the last was halted after {halted_us} µs");
    assert_eq!(calls, 50);
    assert!(child.ended().stdout.contains("closed"));
}
