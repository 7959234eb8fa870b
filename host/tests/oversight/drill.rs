//! A host that runs is drilled through its operator's socket, and nobody else in it is touched.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::command::{Ended, Running, estop, tool};
use crate::hosts::Machine;

fn calls(machine: &Machine) -> BTreeSet<String> {
    let seen = machine.ps();
    seen["calls"].as_array().unwrap().iter().map(|call| call["call"].as_str().unwrap().to_owned()).collect()
}

/// A drill of a host whose log keeps up: on a busy disk a host lets no call begin for a moment.
fn drill(machine: &Machine, args: &[&str]) -> Ended {
    for _ in 0..100 {
        let ended = machine.estop(&[&["drill", "--live"], args].concat());
        if ended.code != Some(6) || !ended.stderr.contains("the log ") {
            return ended;
        }
    }
    panic!("the log never keeps up");
}

/// Those of drills that were held.
fn held(log: &[Value]) -> Vec<&Value> {
    kinds(log, "drill").into_iter().filter(|entry| entry["not_held"].is_null()).collect()
}

fn kinds<'a>(log: &'a [Value], kind: &str) -> Vec<&'a Value> {
    log.iter().filter(|entry| entry["kind"] == kind).collect()
}

/// Its own calls are stopped and measured, those of others run on, and what it found is in the log with who asked for it.
#[test]
fn a_host_that_works_is_drilled_and_nobody_else_is_touched() {
    let machine = Machine::new();
    let embedded = machine.embedded("support-7", 3);
    let before = calls(&machine);
    assert_eq!(before.len(), 3);
    let pid = embedded.child.id().to_string();
    let ended = drill(&machine, &["--host", &pid, "--runs", "5", "--json"]);
    let found = ended.json();
    let passed = found["passed"].as_bool().unwrap();
    let ended = ended.has(if passed { 0 } else { 8 }, &["drills itself"]);
    assert_eq!(ended.stdout.lines().count(), 1);
    assert_eq!((&found["pid"], &found["runs"]), (&json!(embedded.child.id()), &json!(5)));
    assert_eq!((&found["others"], &found["others_interrupted"]), (&json!(3), &json!(0)), "{found}");
    assert_eq!(found["not_held"], Value::Null, "{found}");
    let cases = found["cases"].as_array().unwrap();
    let names: Vec<_> = cases.iter().map(|case| case["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["spin", "host sleep", "stopped before start"]);
    for case in cases {
        let time = |name: &str| case[name].as_f64().unwrap();
        assert!(time("p50_us") <= time("p99_us") && time("p99_us") <= time("max_us"), "{case}");
        assert!(time("released_p50_us") >= time("p50_us") && time("released_max_us") >= time("max_us"), "{case}");
        assert_eq!((&case["runs"], &case["unconfirmed"]), (&json!(5), &json!(0)), "{case}");
        println!("{case}");
    }
    assert_eq!(passed, cases.iter().all(|case| case["passed"] == true));
    assert_eq!(calls(&machine), before, "a call of somebody else is gone, or one of the drill is left");

    // What the log says of it.
    let log = machine.estop(&["log", "show", "--json"]).has(0, &[]).jsons();
    let user = String::from_utf8(std::process::Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
    let [entry] = held(&log)[..] else { panic!("{:?}", kinds(&log, "drill")) };
    for field in ["runs", "cases", "others", "others_interrupted", "passed", "wake_p99_us", "actor"] {
        assert_eq!(entry[field], found[field], "{field}");
    }
    assert_eq!((&entry["actor"], &entry["host"]), (&json!(user.trim()), &found["host"]));
    let interrupts = kinds(&log, "interrupt");
    assert!(interrupts.len() >= 15, "{interrupts:?}");
    for interrupt in &interrupts {
        assert_eq!((&interrupt["cause"], &interrupt["actor"]), (&json!("drill"), &entry["actor"]));
        assert_eq!((&interrupt["reached"], interrupt["scope"]["call"].is_string()), (&json!(1), true), "{interrupt}");
    }
    let stopped: Vec<_> = kinds(&log, "end").into_iter().filter(|end| end["cause"] == "drill").collect();
    assert_eq!(stopped.len(), interrupts.len());
    assert!(stopped.iter().all(|end| end["agent"] == "host"));
    machine.estop(&["log", "verify"]).has(0, &[]);
    let told = machine.estop(&["log", "show", "--kind", "drill"]).has(0, &[]).stdout;
    assert!(told.contains("0 of 3 calls of others reached") && told.contains("spin: 5 stopped"), "{told}");

    // Once more, as people see it, without saying which: there is one. And by nothing but curl.
    let table = drill(&machine, &["--runs", "2"]).stdout;
    assert!(table.contains("calls of others: 3; reached by the drill: 0"), "{table}");
    let socket = machine.sockets().join(&pid).join("operator.sock");
    let curl = |path: &str, body: &str| {
        let url = format!("http://estop{path}");
        let args = ["-s", "-w", "\n%{http_code}", "--unix-socket", socket.to_str().unwrap(), "-d", body, &url];
        tool("curl", &args).has(0, &[]).stdout
    };
    let answer = curl("/v1/drill", r#"{"runs":1}"#);
    assert!(answer.ends_with("\n200") || answer.contains("the log "), "{answer}");
    for body in [r#"{"runs":0}"#, r#"{"runs":1001}"#, r#"{"runs":-1}"#, r#"{"run":1}"#, "[", r#"{"runs":1e99}"#] {
        let answer = curl("/v1/drill", body);
        assert!(answer.ends_with("\n400") && answer.contains("error"), "{body}: {answer}");
    }
    assert_eq!(calls(&machine), before);
}

/// A halt refuses a drill as it refuses every call: that is what it does, and what is said and entered.
#[test]
fn a_halted_host_refuses_a_drill_and_says_that_it_is_halted() {
    let machine = Machine::new();
    let _embedded = machine.embedded("support-7", 2);
    let before = calls(&machine);
    machine.estop(&["halt", "--agent", "host", "--reason", "no more tests"]).has(0, &[]);
    let refused = drill(&machine, &["--runs", "2"]).has(6, &["is halted", "no more tests", "estop lift"]);
    assert_eq!(refused.stdout, "");
    let log = machine.estop(&["log", "show", "--json"]).has(0, &[]).jsons();
    let [entry] = kinds(&log, "drill")[..] else { panic!("{:?}", kinds(&log, "drill")) };
    assert_eq!((&entry["passed"], &entry["cases"]), (&json!(false), &json!([])));
    assert!(entry["not_held"].as_str().unwrap().contains("no more tests"), "{entry}");
    assert_eq!(calls(&machine), before);
    let halt = kinds(&log, "halt")[0]["halt"].as_str().unwrap();
    machine.estop(&["lift", halt, "--reason", "tests again"]).has(0, &[]);
    let held = drill(&machine, &["--runs", "2", "--json"]).json();
    assert_eq!(held["not_held"], Value::Null, "{held}");
}

/// Who is meant has to be clear, and a second one waits for nobody.
#[test]
fn one_drill_at_a_time_in_one_host() {
    let machine = Machine::new();
    machine.estop(&["drill", "--live"]).has(8, &["nobody was reached"]);
    machine.estop(&["drill", "--live", "--runs", "1001"]).has(2, &["at most 1000"]);
    machine.estop(&["drill", "--host", "1"]).has(2, &["--live"]);
    let first = machine.embedded("a", 1);
    let second = machine.embedded("b", 1);
    let pids = [&first, &second].map(|child| child.child.id().to_string());
    machine.estop(&["drill", "--live"]).has(2, &["several hosts", &pids[0], &pids[1]]);
    machine.estop(&["drill", "--live", "--host", "999999999"]).has(8, &["nobody was reached"]);
    // Long enough for several others to ask meanwhile.
    let args = ["--host", &pids[0], "--runs", "1000", "--json"];
    let all = [&["drill", "--live"], &args[..]].concat();
    let drills = [0, 1, 2].map(|_| Running::start(estop(&machine.home(), &all)));
    let ended = drills.map(Running::ended);
    let is_held = |ended: &&Ended| ended.code != Some(6) || ended.stderr.contains("the log ");
    let (held, refused): (Vec<_>, Vec<_>) = ended.iter().partition(is_held);
    assert_eq!((held.len(), refused.len()), (1, 2), "{ended:?}");
    assert!(refused.iter().all(|ended| ended.stderr.contains("another drill is being held")), "{refused:?}");
    // The next one is let in, and one in the other host.
    for pid in &pids {
        let found = drill(&machine, &["--host", pid, "--runs", "1", "--json"]).json();
        assert_eq!(found["not_held"], Value::Null, "{found}");
    }
}
