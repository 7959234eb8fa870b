//! What `estop log show`, `log tail`, `show` and `state` tell of a home that has lived.

use std::collections::BTreeSet;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::command::{PATIENCE, Running, estop};
use crate::place::Place;

fn numbers(entries: &[Value]) -> Vec<u64> {
    entries.iter().map(|entry| entry["seq"].as_u64().unwrap()).collect()
}

/// Each filter, and several together, against what the log has.
#[test]
fn filters_show_what_they_say() {
    let place = Place::lived();
    let entries = place.entries();
    let find = |what: &dyn Fn(&Value) -> bool| entries.iter().find(|entry| what(entry)).unwrap();
    let stop = find(&|entry| entry["kind"] == "interrupt" && entry["cause"] == "deadline");
    let call = stop["calls"][0][0].as_str().unwrap();
    let middle = entries[entries.len() / 2]["at"].as_str().unwrap();
    let at = |entry: &Value| entry["at"].as_str().unwrap().to_owned();
    type Admits<'a> = &'a dyn Fn(&Value) -> bool;
    let cases: &[(&[&str], Admits<'_>)] = &[
        (&[], &|_| true),
        (&["--call", call], &|entry| entry["call"] == call || entry["seq"] == stop["seq"]),
        (&["--agent", "ada"], &|entry| entry["agent"] == "ada"),
        (&["--agent", "../x"], &|entry| entry["agent"] == "../x"),
        (&["--tool", "spin"], &|entry| entry["tool"] == "spin"),
        (&["--cause", "fuel"], &|entry| entry["cause"] == "fuel"),
        (&["--actor", "host"], &|entry| entry["actor"] == "host"),
        (&["--kind", "refusal"], &|entry| entry["kind"] == "refusal"),
        (&["--kind", "end", "--agent", "bob"], &|entry| entry["kind"] == "end" && entry["agent"] == "bob"),
        (&["--since", middle], &|entry| *at(entry) >= *middle),
        (&["--until", middle], &|entry| *at(entry) <= *middle),
        (&["--since", middle, "--until", middle], &|entry| at(entry) == middle),
        (&["--since", "1h"], &|_| true),
        (&["--until", "1h"], &|_| false),
        (&["--since", "2000-01-01 00:00:00", "--until", "2999-01-01T00:00:00Z"], &|_| true),
        (&["--agent", "nobody"], &|_| false),
    ];
    for (filter, admits) in cases {
        let expected: Vec<Value> = entries.iter().filter(|entry| admits(entry)).cloned().collect();
        let some = filter.is_empty() || expected.len() < entries.len() || filter.contains(&"--since");
        assert!(some, "{filter:?} lets everything through");
        let shown = place.estop(&[&["log", "show", "--json"], *filter].concat()).has(0, &[]);
        assert_eq!(shown.jsons(), expected, "{filter:?}");
        // In words: one line each, in the same order.
        let words = place.estop(&[&["log", "show"], *filter].concat()).has(0, &[]).stdout;
        let first = |line: &str| line.split_whitespace().next().unwrap().parse::<u64>().unwrap();
        assert_eq!(words.lines().map(first).collect::<Vec<_>>(), numbers(&expected), "{filter:?}");
        // The newest of them.
        let newest = &expected[expected.len().saturating_sub(2)..];
        for command in [["show", "-n", "2"], ["tail", "-n", "2"]] {
            let args = [&["log"], &command[..], &["--json"], *filter].concat();
            assert_eq!(place.estop(&args).has(0, &[]).jsons(), newest, "{args:?}");
        }
    }
    let kept = |filter: &[&str]| cases.iter().find(|case| case.0 == filter).unwrap().1;
    assert!(entries.iter().filter(|entry| kept(&["--call", call])(entry)).count() >= 2, "an end and an interrupt");
    for (filter, word) in [(["--since", "yesterday"], "yesterday"), (["--until", "2026-13-01T00:00:00Z"], "2026-13-01")]
    {
        place.estop(&[&["log", "show"], &filter[..]].concat()).has(2, &[word, "2026-11-22T15:00:00Z"]);
    }
    place.estop(&["log", "show", "--tree", "--json"]).has(2, &["--tree", "--json"]);
}

/// In words, what a person has to know of each entry is on its line.
#[test]
fn words_tell_what_happened() {
    let place = Place::lived();
    let words = place.estop(&["log", "show"]).has(0, &[]).stdout;
    for expected in [
        "opened by process",
        "ada/set commit point 1: 1 writes",
        "ada/write_many completed; 3 writes committed in 1 points",
        "default/spin stopped (deadline by host), halted after",
        "bob/spin stopped (fuel by host",
        "../x/get refused: the agent's name",
        "default/commit_then_fail failed; 1 writes committed in 1 points, 1 writes (2 bytes) discarded",
        "default/read_then_wait conflict; nothing committed, 1 writes",
        " closed closed\n",
        "signed by",
    ] {
        assert!(words.contains(expected), "`{expected}` is not in: {words}");
    }
    // The default is twenty.
    assert_eq!(place.estop(&["log", "tail"]).has(0, &[]).stdout.lines().count(), 20);
    assert_eq!(place.estop(&["log", "tail", "-n", "0"]).has(0, &[]).stdout, "");
}

/// `tail --follow` shows what other processes enter, each line once and none left out.
#[test]
fn a_follower_sees_what_other_processes_enter() {
    let place = Place::lived();
    let last = place.lines().len() as u64;
    let follower = Running::start(estop(&place.home(), &["log", "tail", "--follow", "-n", "1", "--json"]));
    let number = || serde_json::from_str::<Value>(&follower.prints()).unwrap()["seq"].as_u64().unwrap();
    assert_eq!(number(), last);
    for _ in 0..3 {
        place.call();
    }
    let entered = place.lines().len() as u64;
    assert!(entered >= last + 15);
    assert_eq!((last + 1..=entered).map(|_| number()).collect::<Vec<_>>(), (last + 1..=entered).collect::<Vec<_>>());
    drop(follower);
    // Only what is asked for.
    let args = ["log", "tail", "-f", "-n", "1", "--json", "--kind", "commit", "--agent", "ada"];
    let follower = Running::start(estop(&place.home(), &args));
    let tool = || serde_json::from_str::<Value>(&follower.prints()).unwrap()["tool"].clone();
    assert_eq!(tool(), "write_many");
    place.call();
    place.tool("kv", &["increment", "--agent", "ada", "-i", r#"{"key":"f","delta":1}"#]).has(0, &[]);
    assert_eq!(tool(), "increment");
}

/// Promise 17: a follower whose reader has gone away does not run for ever.
#[test]
fn a_follower_without_a_reader_ends() {
    let place = Place::lived();
    let mut command = estop(&place.home(), &["log", "tail", "--follow", "-n", "1"]);
    let (reader, writer) = std::io::pipe().unwrap();
    command.stdout(Stdio::from(writer));
    let mut follower = Running::start(command);
    let mut first = [0; 1];
    std::io::Read::read_exact(&mut &reader, &mut first).unwrap();
    drop(reader);
    place.call();
    assert!(follower.ends_within(PATIENCE / 9), "it goes on and nobody reads it");
}

/// Everything about one call, or one interrupt; and a clear answer if there is nothing.
#[test]
fn one_call_and_one_interrupt_are_shown_with_all_there_is() {
    let place = Place::lived();
    let entries = place.entries();
    let stop = entries.iter().find(|entry| entry["kind"] == "interrupt" && entry["cause"] == "deadline").unwrap();
    let (interrupt, call) = (stop["interrupt"].as_str().unwrap(), stop["calls"][0][0].as_str().unwrap());
    let about = |id: &str| entries.iter().filter(|entry| entry.to_string().contains(id)).cloned().collect::<Vec<_>>();
    for id in [call, interrupt] {
        assert_eq!(place.estop(&["show", id, "--json"]).has(0, &[]).jsons(), about(id));
    }
    let text = place.estop(&["show", call]).has(0, &[]).stdout;
    assert_eq!(text.lines().count(), about(call).len());
    assert!(text.contains(&format!("end {call} default/spin stopped (deadline by host)")), "{text}");
    let tree = place.estop(&["show", interrupt]).has(0, &[]).stdout;
    let (root, below) = tree.split_once('\n').unwrap();
    assert!(root.contains(&format!("interrupt {interrupt} deadline by host")), "{tree}");
    assert!(
        below.starts_with(&format!("  └ {call} was ")) && below.contains("default/spin stopped (deadline"),
        "{tree}"
    );
    // A call with commits: every one, and the end.
    let commit = entries.iter().find(|entry| entry["kind"] == "commit" && entry["tool"] == "transfer").unwrap();
    let text = place.estop(&["show", commit["call"].as_str().unwrap()]).has(0, &[]).stdout;
    assert!(text.contains("commit point 1: 5 writes") && text.contains("completed; 5 writes"), "{text}");
    // As people type it.
    let typed = call.replace("call-", "").to_lowercase();
    place.estop(&["show", &format!("call-{typed}")]).has(0, &[]);

    for unknown in ["call-01ARZ3NDEKTSV4RRFFQ69G5FAV", "interrupt-01ARZ3NDEKTSV4RRFFQ69G5FAV"] {
        let ended = place.estop(&["show", unknown]).has(2, &["has nothing about", unknown]);
        assert_eq!(ended.stdout, "");
    }
    for nonsense in
        ["", "call-", "call-1", "host-01ARZ3NDEKTSV4RRFFQ69G5FAV", "../x", "call-01ARZ3NDEKTSV4RRFFQ69G5FA!"]
    {
        place.estop(&["show", "--", nonsense]).has(2, &["is not the id of a call", "an interrupt"]);
    }
}

/// Who keeps how much, and what.
#[test]
fn state_is_shown_by_agent_component_and_bucket() {
    let place = Place::lived();
    let spaces = place.estop(&["state", "show", "--json"]).has(0, &[]).jsons();
    let named =
        |space: &Value| (space["agent"].as_str().unwrap().to_owned(), space["component"].as_str().unwrap().to_owned());
    let names: BTreeSet<_> = spaces.iter().map(named).collect();
    let expected = [("ada", "kv"), ("default", "kv"), ("default", "ledger")];
    assert_eq!(names, expected.map(|(agent, component)| (agent.to_owned(), component.to_owned())).into());
    let ada = spaces.iter().find(|space| space["agent"] == "ada").unwrap();
    assert_eq!(ada["keys"], 4);
    let text = place.estop(&["state", "show"]).has(0, &[]).stdout;
    assert!(text.contains(&format!("ada  kv  4 keys  {} bytes", ada["bytes"])), "{text}");

    let keys = place.estop(&["state", "show", "--agent", "ada", "--values"]).has(0, &[]).stdout;
    let line = keys.lines().find(|line| line.starts_with("kv  test  a  ")).unwrap_or_else(|| panic!("{keys}"));
    let commit = place.entries().into_iter().find(|entry| entry["kind"] == "commit").unwrap();
    assert_eq!(line, format!("kv  test  a  1 bytes  version {}  1", commit["seq"]));
    assert_eq!(keys.lines().count(), 4);
    let without = place.estop(&["state", "show", "--agent", "ada"]).has(0, &[]).stdout;
    assert!(!without.contains("xxxxxxxxxx") && keys.contains("xxxxxxxxxx"), "{without}");

    let exported = place.estop(&["state", "export", "--agent", "ada"]).has(0, &[]).jsons();
    assert_eq!(exported.len(), 4);
    let version = &commit["seq"];
    let expected = json!({"agent": "ada", "component": "kv", "bucket": "test", "key": "a", "version": version,
        "bytes": 1, "value": "1"});
    assert_eq!(exported[0], expected);
    let shown = place.estop(&["state", "show", "--agent", "ada", "--json", "--values"]).has(0, &[]).jsons();
    assert_eq!(shown, exported);
    for (which, count) in [("kv", 4), ("ledger", 0)] {
        let args = ["state", "export", "--agent", "ada", "--component", which];
        assert_eq!(place.estop(&args).has(0, &[]).jsons().len(), count);
    }
    let args = ["state", "export", "--agent", "ada", "--bucket", "other"];
    assert_eq!(place.estop(&args).has(0, &[]).stdout, "");
    place.estop(&["state", "export"]).has(2, &["--agent"]);
    place.estop(&["state", "show", "--values"]).has(2, &["--agent"]);
    // Of an agent that keeps nothing there is nothing to show.
    assert_eq!(place.estop(&["state", "show", "--agent", "nobody"]).has(0, &[]).stdout, "");
}
