//! `estop show`: what somebody needs to know to decide, and what was decided. `estop retire`.

use serde_json::{Value, json};

use crate::command::tool;
use crate::hosts::Machine;

/// What the call of [`Machine::run`] was asked.
const INPUT: &str = r#"{"keys":2,"value_bytes":5}"#;

fn only_call(machine: &Machine) -> String {
    machine.ps()["calls"][0]["call"].as_str().unwrap().to_owned()
}

/// A call that runs is asked for where it runs, without its input; once it has ended, the log is.
#[test]
fn a_call_is_shown_while_it_runs_and_when_it_has_ended() {
    let machine = Machine::new();
    let run = machine.run("ops");
    let call = only_call(&machine);
    let digest = tool("sh", &["-c", &format!("printf %s '{INPUT}' | sha256sum")]).stdout;
    let digest = digest.split(' ').next().unwrap();

    let shown = machine.estop(&["show", &call]).has(0, &[]).stdout;
    for words in [
        &*format!("{call} is running"),
        "agent        ops",
        "tool         write_then_spin of sha256:",
        "priority     100",
        "fuel         about ",
        "uncommitted  2 writes",
        "committed    0 writes, 0 bytes, in 0 points",
        "effects      none",
        "says         2/2 written",
        "children     0",
        &*format!("26 bytes, sha256 {digest} (--input shows it)"),
        " left",
        &*format!("estop stop {call}"),
    ] {
        assert!(shown.contains(words), "`{words}` is not in: {shown}");
    }
    assert!(!shown.contains("value_bytes"), "{shown}");

    let shown = machine.estop(&["show", &call, "--json"]).has(0, &[]).json();
    assert_eq!(shown["input"], json!({ "bytes": 26, "sha256": digest, "text": null }));
    assert_eq!(
        (&shown["agent"], &shown["priority"], &shown["uncommitted"]["writes"]),
        (&json!("ops"), &json!(100), &json!(2))
    );
    assert!(shown["time_left_us"].as_u64().unwrap() > 0 && shown["memory_bytes"].as_u64().unwrap() > 0);
    // Who lists everything does not see it either.
    assert!(!machine.estop(&["ps", "--json"]).stdout.contains("value_bytes\\\":5"));

    let shown = machine.estop(&["show", &call, "--input", "--json"]).has(0, &[]).json();
    assert_eq!(shown["input"]["text"], INPUT);
    assert!(machine.estop(&["show", &call, "--input"]).has(0, &[]).stdout.contains(INPUT));

    machine.estop(&["stop", &call, "--reason", "seen enough"]).has(0, &[]);
    assert_eq!(run.ended().code, Some(10));
    let shown = machine.estop(&["show", &call]).has(0, &[]).stdout;
    assert!(shown.contains("stopped (operator by") && shown.contains("seen enough"), "{shown}");
    machine.estop(&["show", "call-01ARZ3NDEKTSV4RRFFQ69G5FAV"]).has(2, &["has nothing about"]);
    machine.estop(&["show", "nonsense"]).has(2, &["call-", "interrupt-", "halt-"]);
}

/// A halt: while it is in force, and when it has been lifted.
#[test]
fn a_halt_is_shown_with_what_the_log_has_about_it() {
    let machine = Machine::new();
    machine.estop(&["halt", "--agent", "a", "--reason", "it writes nonsense"]).has(8, &[]);
    let halts = machine.estop(&["halts", "--json"]).has(0, &[]).json();
    let halt = halts["halt"].as_str().unwrap();
    let shown = machine.estop(&["show", halt]).has(0, &[]).stdout;
    assert!(shown.starts_with("in force: agent a was halted by") && shown.contains("it writes nonsense"), "{shown}");
    machine.estop(&["lift", halt, "--reason", "mended"]).has(0, &[]);
    let shown = machine.estop(&["show", halt]).has(0, &[]).stdout;
    assert!(shown.starts_with(&format!("{halt} is not in force")) && shown.contains("mended"), "{shown}");
    let shown = machine.estop(&["show", halt, "--json"]).has(0, &[]).json();
    assert_eq!((&shown["in_force"], &shown["halt"]), (&json!(false), &Value::Null));
    let kinds: Vec<_> = shown["entries"].as_array().unwrap().iter().map(|entry| entry["kind"].clone()).collect();
    assert_eq!(kinds, ["halt", "lift"]);
    machine.estop(&["show", "halt-01ARZ3NDEKTSV4RRFFQ69G5FAV"]).has(2, &["nobody knows"]);
}

/// For good, for a reason, on purpose, and in this home.
#[test]
fn what_is_retired_is_never_let_in_again() {
    let machine = Machine::new();
    let (run, neighbour) = (machine.run("a"), machine.run("b"));
    let elsewhere = machine.embedded_on(&machine.folder().join("elsewhere"), "a", 1);
    machine.estop(&["retire", "--agent", "a"]).has(2, &["--reason"]);
    machine.estop(&["retire", "--reason", "x"]).has(2, &["--agent"]);
    machine.estop(&["retire", "--agent", "a", "--reason", " "]).has(2, &["for a reason"]);
    machine.estop(&["retire", "--agent", "a", "--reason", "superseded"]).has(2, &["--yes"]);
    assert_eq!(machine.ps()["calls"].as_array().unwrap().len(), 3, "something was stopped without being meant");

    let retired = machine.estop(&["retire", "--agent", "a", "--reason", "superseded", "--yes"]).has(0, &[]);
    assert!(retired.stdout.contains("agent a is retired for good"), "{}", retired.stdout);
    assert_eq!(run.ended().code, Some(11));
    machine.short("a").has(6, &["agent a was retired for good by", "superseded", "nothing lifts it"]);
    machine.short("b").has(0, &[]);
    let halts = machine.estop(&["halts", "--json"]).has(0, &[]).json();
    assert_eq!((&halts["permanent"], &halts["scope"]), (&json!(true), &json!({ "agent": "a" })));
    let halt = halts["halt"].as_str().unwrap();
    machine.estop(&["lift", halt, "--reason", "please"]).has(6, &["never lifted", "superseded"]);
    machine.short("a").has(6, &["retired"]);
    assert!(machine.estop(&["ps"]).has(0, &[]).stdout.contains("HALTED agent a was retired for good"));
    assert!(machine.estop(&["show", halt]).has(0, &[]).stdout.contains("retired for good by"));
    machine.estop(&["log", "verify"]).has(0, &[]);

    // The same name in another home, and others in this one, go on.
    let left = machine.ps()["calls"].as_array().unwrap().len();
    assert_eq!(left, 2);
    machine.estop(&["halt", "--all"]).has(0, &[]);
    assert_eq!(neighbour.ended().code, Some(11));
    assert!(elsewhere.ended().stdout.contains("closed"));
}
