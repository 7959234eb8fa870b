//! Checkpoints: when they are made, and where else they go. A place that cannot take them holds up nobody.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use estop::Home;
use estop::log::{CheckpointTo, Entry};
use estop::store::Store;
use estop::store::sqlite::{CHECKPOINT_EVERY, Sqlite};
use estop_tests::guests;
use serde_json::{Value, json};

use crate::command::{PATIENCE, Running, estop};
use crate::place::Place;

/// An entry that says nothing.
pub(crate) fn entry() -> Entry {
    let entry = json!({"at": "2026-11-22T15:00:00Z", "host": "host-01ARZ3NDEKTSV4RRFFQ69G5FAV", "kind": "closed"});
    serde_json::from_value(entry).unwrap()
}

pub(crate) fn checkpoints(place: &Place) -> Vec<Value> {
    place.entries().into_iter().filter(|entry| entry["kind"] == "checkpoint").collect()
}

fn covered(place: &Place) -> Vec<u64> {
    checkpoints(place).iter().map(|checkpoint| checkpoint["covers"].as_u64().unwrap()).collect()
}

/// A signature after every thousand entries, whoever writes them and however many at once.
#[test]
fn every_thousand_entries_are_signed() {
    let place = Place::new();
    let (one, other) = (place.store(), place.store());
    let every = CHECKPOINT_EVERY;
    assert_eq!(every, 1000);
    for number in 0..every + 10 {
        let store = if number % 3 == 0 { &other } else { &one };
        store.write(&mut [], &[entry()]).unwrap();
    }
    assert_eq!(covered(&place), [every]);
    // Ten have come since.
    one.write(&mut [], &vec![entry(); every as usize - 11]).unwrap();
    assert_eq!(covered(&place), [every]);
    one.write(&mut [], &[entry()]).unwrap();
    // The checkpoint itself is a line.
    assert_eq!(covered(&place), [every, 2 * every + 1]);
    // A batch is not parted.
    other.write(&mut [], &vec![entry(); 5 * every as usize]).unwrap();
    assert_eq!(covered(&place), [every, 2 * every + 1, 7 * every + 2]);
    place.estop(&["log", "verify"]).has(0, &[]);
}

/// A process signs what is there when it ends; and `log checkpoint` does, if there is anything new.
#[test]
fn the_end_of_a_process_and_a_command_sign() {
    let place = Place::lived();
    let (entries, before) = (place.entries(), checkpoints(&place).len());
    assert_eq!(entries.last().unwrap()["kind"], "checkpoint");
    let printed = place.estop(&["log", "checkpoint"]).has(0, &[]).json();
    assert_eq!((&printed, checkpoints(&place).len()), (entries.last().unwrap(), before), "there was nothing new");
    place.store().write(&mut [], &[entry()]).unwrap();
    let printed = place.estop(&["log", "checkpoint"]).has(0, &[]).json();
    assert_eq!(printed["covers"], entries.len() + 1);
    assert_eq!(&printed, place.entries().last().unwrap());
}

/// What could not be signed is no checkpoint, and an older one is not passed off as it.
#[test]
fn a_checkpoint_that_could_not_be_made_is_not_printed() {
    let place = Place::lived();
    place.store().write(&mut [], &[entry()]).unwrap();
    fs::set_permissions(place.home().join("log-key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    let ended = place.estop(&["log", "checkpoint"]).has(1, &["other users"]);
    assert_eq!(ended.stdout, "");
}

/// What a checkpoint says to others: its entry, without what makes that a line.
pub(crate) fn sent(entry: &Value) -> Value {
    let fields = ["home", "covers", "sha256", "key", "signature"];
    fields.iter().map(|field| ((*field).to_owned(), entry[field].clone())).collect()
}

fn sent_lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A program that is run for each checkpoint.
fn script(place: &Place, text: &str) -> String {
    let path = place.file("script");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    format!("command:{}", path.display())
}

const CALL: [&str; 3] = ["add", "-i", r#"{"key":"n","delta":1}"#];

/// Every process leaves its checkpoint in the file before it ends.
#[test]
fn checkpoints_are_appended_to_a_file() {
    let place = Place::new();
    let to = format!("file:{}", place.arg("kept.jsonl"));
    for _ in 0..10 {
        place.tool("kv", &[&CALL[..], &["--checkpoint-to", &to]].concat()).has(0, &[]);
    }
    assert_eq!(sent_lines(&place.file("kept.jsonl")), checkpoints(&place).iter().map(sent).collect::<Vec<_>>());
}

/// A program gets every checkpoint on its standard input, and has ended before the process does.
#[test]
fn checkpoints_are_given_to_a_program() {
    let place = Place::new();
    let to = script(&place, &format!("cat >> '{}'", place.arg("kept.jsonl")));
    for _ in 0..5 {
        place.tool("kv", &[&CALL[..], &["--checkpoint-to", &to]].concat()).has(0, &[]);
    }
    assert_eq!(sent_lines(&place.file("kept.jsonl")), checkpoints(&place).iter().map(sent).collect::<Vec<_>>());
}

/// And the journal, as one of its messages.
#[test]
fn checkpoints_are_sent_to_the_journal() {
    let place = Place::new();
    let journal = UnixDatagram::bind(place.file("journal")).unwrap();
    journal.set_read_timeout(Some(PATIENCE)).unwrap();
    let to = format!("journald:{}", place.arg("journal"));
    place.tool("kv", &[&CALL[..], &["--checkpoint-to", &to]].concat()).has(0, &[]);
    // It is there when the process is not any more.
    journal.set_nonblocking(true).unwrap();
    let mut bytes = [0; 4096];
    let count = journal.recv(&mut bytes).unwrap();
    let message = std::str::from_utf8(&bytes[..count]).unwrap();
    assert!(message.ends_with('\n'));
    let field = |name: &str| {
        let found = message.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
        found.unwrap_or_else(|| panic!("no {name} in {message}"))
    };
    let checkpoint = checkpoints(&place).pop().unwrap();
    assert_eq!(serde_json::from_str::<Value>(field("ESTOP_CHECKPOINT")).unwrap(), sent(&checkpoint));
    assert_eq!((field("PRIORITY"), field("SYSLOG_IDENTIFIER")), ("5", "estop"));
    assert!(field("MESSAGE").contains(checkpoint["sha256"].as_str().unwrap()));
}

/// A place that does not take a checkpoint is said, and the call is none the worse for it.
#[test]
fn a_place_that_fails_is_said_and_holds_up_nothing() {
    let place = Place::new();
    for (to, word) in [
        (format!("file:{}/no/such/folder/kept", place.arg("")), "No such file"),
        (format!("file:{}", place.arg("")), "directory"),
        (script(&place, "cat > /dev/null; exit 3"), "exit status: 3"),
        (format!("command:{}", place.arg("no-such-program")), "No such file"),
        (format!("journald:{}", place.arg("nobody")), "No such file"),
    ] {
        let ended = place.tool("kv", &[&CALL[..], &["--checkpoint-to", &to]].concat());
        let ended = ended.has(0, &["a checkpoint could not be sent", word]);
        assert!(ended.stdout.contains("value"), "{ended:?}");
    }
    place.estop(&["log", "verify"]).has(0, &[]);
    for to in ["nowhere", "file:relative", "command:", "mail:me"] {
        place.tool("kv", &[&CALL[..], &["--checkpoint-to", to]].concat()).has(2, &["file:PATH", "command:PROGRAM"]);
    }
}

/// A place that never answers is given up in a bounded time, and that is said.
#[test]
fn a_place_that_hangs_holds_up_the_process_for_a_bounded_time() {
    let place = Place::new();
    let pipe = place.arg("pipe");
    crate::command::tool("mkfifo", &[&pipe]).has(0, &[]);
    for to in [script(&place, "exec sleep 100"), format!("file:{pipe}")] {
        let kv = guests::path("kv");
        let args = [&["run", kv.to_str().unwrap()], &CALL[..], &["--checkpoint-to", &to]].concat();
        let mut command = estop(&place.home(), &args);
        // Whoever is left of the program may keep it open.
        command.stderr(fs::File::create(place.file("said")).unwrap());
        let mut running = Running::start(command);
        assert!(running.prints().contains("value"));
        assert!(running.ends_within(Duration::from_secs(30)), "{to}: it does not end");
        assert_eq!(running.child.wait().unwrap().code(), Some(0));
        let said = fs::read_to_string(place.file("said")).unwrap();
        assert!(said.contains("checkpoint"), "{to}: nothing was said: {said:?}");
    }
    place.estop(&["log", "verify"]).has(0, &[]);
}

/// Nor does it hold up a host, its commits, more checkpoints than can wait, or whoever drops the store.
#[test]
fn a_place_that_hangs_holds_up_no_host() {
    let place = Place::new();
    let pipe = place.arg("pipe");
    crate::command::tool("mkfifo", &[&pipe]).has(0, &[]);
    for to in [script(&place, "exec sleep 100"), format!("file:{pipe}")] {
        let to: CheckpointTo = to.parse().unwrap();
        let store = Sqlite::options(&Home::open(place.home()).unwrap()).checkpoint_to(to.clone()).open();
        let store = store.unwrap();
        let begun = Instant::now();
        for _ in 0..40 {
            store.write(&mut [], &[entry()]).unwrap();
            store.checkpoint().unwrap();
        }
        assert!(begun.elapsed() < Duration::from_secs(8), "{to:?}: {:?}", begun.elapsed());
        let (dropped, is_dropped) = channel();
        thread::spawn(move || {
            drop(store);
            dropped.send(())
        });
        let dropped = is_dropped.recv_timeout(Duration::from_secs(60));
        assert!(dropped.is_ok(), "{to:?}: dropping the store does not end");
    }
}
