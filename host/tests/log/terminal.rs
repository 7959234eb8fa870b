//! Nothing that anybody has put into the log or the state drives the terminal of whoever looks at it: neither what agents,
//! tools and actors are called, nor what an attacker has written into the database.

use estop::log::Entry;
use estop::store::{Commit, Key, Part, Space, Store, Verdict, Write};
use serde_json::{Value, json};

use crate::command::Ended;
use crate::place::Place;

/// Sets the title, colours by a C1 character, goes back, reverses the text, and says something in estop's name.
const EVIL: &str = "\u{1b}]0;owned\u{7}\u{9b}31m\r\u{8}\u{202e}\u{200b}\u{7f}\nestop: verified\n\u{85}\u{2028}ä🛑";

const CALL: &str = "call-01ARZ3NDEKTSV4RRFFQ69G5FAV";
const INTERRUPT: &str = "interrupt-01ARZ3NDEKTSV4RRFFQ69G5FAV";

/// Characters that a terminal acts on, except for the newline that ends a line.
fn drives(character: char) -> bool {
    let hides =
        matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
    (character.is_control() && character != '\n') || hides
}

#[track_caller]
fn harmless(what: &str, ended: &Ended) {
    for said in [&ended.stdout, &ended.stderr] {
        assert!(!said.contains(drives), "{what}: {said:?}");
        assert!(!said.lines().any(|line| line.starts_with("estop: verified")), "{what}: {said}");
    }
}

/// Everything that shows entries.
fn looks() -> Vec<Vec<&'static str>> {
    vec![
        vec!["log", "show"],
        vec!["log", "show", "--json"],
        vec!["log", "show", "--tree"],
        vec!["log", "show", "-n", "1000", "--json"],
        vec!["log", "tail", "-n", "1000"],
        vec!["log", "tail", "-n", "1000", "--json"],
        vec!["show", CALL],
        vec!["show", CALL, "--json"],
        vec!["show", INTERRUPT],
        vec!["show", INTERRUPT, "--json"],
        vec!["log", "checkpoint"],
    ]
}

/// Entries with a place for words of others, filled.
fn entries() -> Vec<Value> {
    let stop = json!({"kind": "interrupt", "interrupt": INTERRUPT, "scope": {"agent": EVIL}, "cause": "operator",
        "actor": EVIL, "reason": EVIL, "grace_us": 0, "reached": 1, "calls": [[CALL, "halted"]]});
    let size = json!({"points": 1, "writes": 2, "bytes": 3});
    let end = json!({"kind": "end", "call": CALL, "agent": EVIL, "tool": EVIL, "component": null, "parent": null,
        "with_start": true, "status": "stopped", "code": EVIL, "cause": "operator", "actor": EVIL, "reason": EVIL,
        "interrupt": INTERRUPT, "commits": size, "discarded": {"writes": 2, "bytes": 3},
        "effects": [{"name": EVIL, "state": "performed"}], "fuel": 1, "elapsed_us": 1.0, "halted_us": 1.0,
        "released_us": 1.0});
    let head = json!({"at": "2026-11-22T15:00:00.000000Z", "host": "host-01ARZ3NDEKTSV4RRFFQ69G5FAV"});
    let kinds = [
        json!({"kind": "start", "call": CALL, "agent": EVIL, "tool": EVIL, "component": null, "parent": null}),
        json!({"kind": "commit", "call": CALL, "agent": EVIL, "tool": EVIL, "point": 1, "writes": 1, "bytes": 1}),
        end,
        stop.clone(),
        json!({"kind": "refusal", "call": CALL, "agent": EVIL, "tool": EVIL, "why": EVIL}),
        json!({"kind": "refusals", "count": 1, "why": EVIL}),
        json!({"kind": "opened", "pid": 1, "version": EVIL}),
        json!({"kind": "gap", "since": "2026-11-22T15:00:00.000000Z", "why": EVIL, "alternate": 1}),
        json!({"kind": "alternate", "died": "host-01ARZ3NDEKTSV4RRFFQ69G5FAV", "entry": stop}),
        json!({"kind": "pruned", "first": 1, "file": EVIL, "sha256": EVIL, "home": EVIL, "key": EVIL, "signature": EVIL}),
    ];
    let with_head = |mut kind: Value| {
        kind.as_object_mut().unwrap().extend(head.as_object().unwrap().clone());
        kind
    };
    kinds.into_iter().map(with_head).collect()
}

fn written(place: &Place) {
    let entries: Vec<Entry> = entries().into_iter().map(|entry| serde_json::from_value(entry).unwrap()).collect();
    place.store().write(&mut [], &entries).unwrap();
}

/// Promise 18: whatever agents, tools and actors are called, and however it is asked for. As JSON it stays the same.
#[test]
fn words_of_others_in_the_log_do_not_drive_the_terminal() {
    let place = Place::new();
    written(&place);
    for look in looks() {
        let ended = place.estop(&look).has(0, &[]);
        harmless(&look.join(" "), &ended);
        assert!(ended.stdout.contains("owned") || look.contains(&"checkpoint"), "{look:?}: {ended:?}");
    }
    let shown = place.estop(&["log", "show", "--json", "--actor", EVIL]).has(0, &[]).jsons();
    assert_eq!(shown.len(), 2);
    assert!(shown.iter().all(|entry| entry["reason"] == EVIL));
    // The same words as arguments, in what is said about them.
    harmless("an argument", &place.estop(&["show", EVIL]).has(2, &["owned"]));
    // And by the way that anybody has: an agent's name, which is refused, and is entered.
    let ended = place.tool("kv", &["get", "--agent", &format!("a{EVIL}"), "-i", r#"{"key":"a"}"#]);
    harmless("run", &ended.has(6, &["agent's name"]));
    harmless("log show", &place.estop(&["log", "show", "--kind", "refusal", "--json"]).has(0, &[]));
}

/// Whatever a value is, it becomes this.
fn replace_leaves(value: &mut Value, with: &Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(|value| replace_leaves(value, with)),
        Value::Object(fields) => {
            for (name, value) in fields {
                if !["seq", "prev", "kind", "call", "interrupt", "calls"].contains(&name.as_str()) {
                    replace_leaves(value, with);
                }
            }
        }
        leaf => *leaf = with.clone(),
    }
}

/// Promise 18: nor does what somebody has written into the database, where a number should be and elsewhere.
#[test]
fn a_forged_log_does_not_drive_the_terminal() {
    let place = Place::new();
    written(&place);
    for with in [json!(EVIL), json!([EVIL]), json!({EVIL: EVIL})] {
        let copy = place.copied();
        let mut forged = Vec::new();
        for (seq, mut entry) in (1..).zip(place.entries()) {
            replace_leaves(&mut entry, &with);
            entry["calls"] = json!([[CALL, EVIL], [EVIL, EVIL]]);
            let mut twice = entry.clone();
            twice["seq"] = json!(seq + 100);
            twice["kind"] = json!(EVIL);
            forged.extend([(seq, entry.to_string()), (seq + 100, twice.to_string())]);
        }
        forged.push((1000, EVIL.to_owned()));
        copy.attack(|database| {
            database.execute("DELETE FROM log", []).unwrap();
            for (seq, line) in &forged {
                database.execute("INSERT INTO log VALUES (?1, ?2)", (seq, line)).unwrap();
            }
        });
        for look in looks() {
            harmless(&look.join(" "), &copy.estop(&look));
        }
        harmless("verify", &copy.estop(&["log", "verify"]).has(1, &["is NOT as it was written"]));
        copy.attack(|database| {
            database.execute("UPDATE meta SET value = ?1", [EVIL]).unwrap();
        });
        harmless("verify", &copy.estop(&["log", "verify"]));
        harmless("export", &copy.estop(&["log", "export", &copy.arg("log.jsonl")]));
    }
}

/// Names and values of any bytes are kept apart, shown without driving the terminal, and
/// exported without loss: what is no text as Base64.
#[test]
fn state_of_any_bytes_is_shown_and_exported() {
    let place = Place::new();
    let space = Space { agent: EVIL.into(), component: EVIL.into() };
    let write = |key: &str, value: &[u8]| {
        let key = Key { bucket: EVIL.into(), key: key.into() };
        Write { key, value: Some(value.into()) }
    };
    let binary: Vec<u8> = (0..=255).collect();
    let writes = vec![write(EVIL, EVIL.as_bytes()), write("binary", &binary), write("empty", b"")];
    let entry: Entry = serde_json::from_value(entries()[1].clone()).unwrap();
    let parts = &[Part { space, reads: Vec::new(), writes }];
    let commit = Commit { parts, workspaces: &[], space_bytes_max: u64::MAX, entry, decide: &|| true };
    let verdicts = place.store().write(&mut [commit], &[]).unwrap();
    assert!(matches!(verdicts[..], [Verdict::Applied]), "{verdicts:?}");

    let agent = ["--agent", EVIL];
    for args in [
        &["state", "show"][..],
        &["state", "show", "--json"],
        &[&["state", "show"][..], &agent].concat(),
        &[&["state", "show", "--values"][..], &agent].concat(),
        &[&["state", "show", "--values", "--json"][..], &agent].concat(),
        &[&["state", "export"][..], &agent].concat(),
    ] {
        let ended = place.estop(args).has(0, &[]);
        harmless(&args.join(" "), &ended);
        assert!(ended.stdout.contains("owned"), "{args:?}: {ended:?}");
    }
    let shown = place.estop(&[&["state", "show", "--values"][..], &agent].concat()).has(0, &[]).stdout;
    assert!(shown.contains("  binary  256 bytes  version 1  base64:AAECAw"), "{shown}");
    let keys = place.estop(&[&["state", "export"][..], &agent].concat()).has(0, &[]).jsons();
    let key = |name: &str| keys.iter().find(|key| key["key"] == name).unwrap();
    assert_eq!((keys.len(), &key(EVIL)["value"], &key("empty")["value"]), (3, &json!(EVIL), &json!("")));
    assert_eq!((&key(EVIL)["agent"], &key(EVIL)["bucket"]), (&json!(EVIL), &json!(EVIL)));
    use base64::Engine as _;
    let decoded = base64::engine::general_purpose::STANDARD.decode(key("binary")["value_base64"].as_str().unwrap());
    assert_eq!(decoded.unwrap(), binary);
    assert!(key("binary").get("value").is_none());
}
