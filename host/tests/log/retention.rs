//! Retention: what is old goes into a file, and both parts verify; taking lines away in any other way is seen.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use estop::log::export::{export, verify};
use estop::log::verify::{Verifier, verify_export};
use estop::store::Store;
use estop::store::sqlite::Look;
use estop::{Cause, Home};
use estop_tests::{load, within};
use serde_json::{Value, json};

use crate::checkpoints::entry;
use crate::forge::{Key, rechained, sha256};
use crate::place::Place;

fn parsed(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Where the checkpoints of a log are.
fn checkpoints(place: &Place) -> Vec<u64> {
    let entries = place.entries();
    entries.iter().filter(|e| e["kind"] == "checkpoint").map(|e| e["seq"].as_u64().unwrap()).collect()
}

fn first(place: &Place) -> u64 {
    place.entries()[0]["seq"].as_u64().unwrap()
}

fn prune(place: &Place, before: u64, to: &str) -> crate::command::Ended {
    place.estop(&["log", "prune", "--before", &before.to_string(), "--to", &place.arg(to)])
}

/// The file verifies, what is left verifies, a further run appends, and all of it can be done again.
#[test]
fn a_pruned_log_is_two_logs_that_verify() {
    let place = Place::lived();
    let key = place.keep_key("kept.pem");
    let before = place.lines();
    let mut verified_to = 0;
    for (round, at) in [(1, 3), (2, 3)] {
        let (from, to) = (first(&place), checkpoints(&place)[at]);
        let file = format!("old-{round}.jsonl");
        // Up to the newest checkpoint that is not after it.
        let ended = prune(&place, to + 2, &file).has(0, &[&format!("begins with its line {to}")]);
        assert!(ended.stderr.contains(&format!("{} entries", to - from)), "{ended:?}");
        assert_eq!(first(&place), to);
        let old = place.estop(&["log", "verify", &place.arg(&file), "--key", &key, "--json"]).has(0, &[]).json();
        assert_eq!((&old["first"], &old["last"]), (&json!(from), &json!(to - 1)));
        let left = place.estop(&["log", "verify", "--key", &key, "--json"]).has(0, &[]).json();
        assert_eq!((&left["first"], &left["signed_to"]), (&json!(to), &json!(left["last"].as_u64().unwrap() - 1)));
        // The log says where the rest is.
        let entries = place.entries();
        let pruned = entries.iter().rfind(|entry| entry["kind"] == "pruned").unwrap();
        assert_eq!(
            (&pruned["first"], &pruned["file"]),
            (&json!(to), &json!(place.file(&file).canonicalize().unwrap()))
        );
        let sum = crate::command::tool("sha256sum", &[&place.arg(&file)]).has(0, &[]).stdout;
        assert_eq!(pruned["sha256"], sum[..64]);
        // And the parts fit to each other.
        let lines = parsed(&place.file(&file));
        assert_eq!(lines.last().unwrap()["export"]["sha256"], entries[0]["prev"]);
        assert_eq!(lines[0]["seq"], verified_to + 1);
        verified_to = to - 1;
        place.call();
        place.estop(&["log", "verify", "--key", &key]).has(0, &[]);
        place.export(&format!("rest-{round}.jsonl"));
        place.estop(&["log", "verify", &place.arg(&format!("rest-{round}.jsonl")), "--key", &key]).has(0, &[]);
    }
    let olds = ["old-1.jsonl", "old-2.jsonl"].map(|file| fs::read_to_string(place.file(file)).unwrap());
    let lines =
        olds.iter().flat_map(|old| old.lines()).filter(|line| !line.starts_with("{\"export\"")).map(str::to_owned);
    let whole: Vec<String> = lines.chain(place.lines()).take(before.len()).collect();
    assert!(whole == before, "a line was changed");
}

/// What an earlier key has signed can still be pruned: the file says how the key that signs its end came to be the one.
#[test]
fn what_an_earlier_key_signed_can_be_pruned() {
    let place = Place::lived();
    let mut keys = vec![place.keep_key("first.pem")];
    let at = checkpoints(&place)[3];
    for name in ["second.pem", "third.pem"] {
        place.estop(&["log", "rotate-key"]).has(0, &[]);
        keys.push(place.keep_key(name));
    }
    prune(&place, at, "old.jsonl").has(0, &[]);
    for key in [&keys[0], &keys[2]] {
        place.estop(&["log", "verify", &place.arg("old.jsonl"), "--key", key]).has(0, &[]);
        place.estop(&["log", "verify", "--key", key]).has(0, &[]);
    }
    let other = Place::new();
    other.call();
    let args = ["log", "verify", &place.arg("old.jsonl"), "--key", &other.keep_key("other.pem")];
    place.estop(&args).has(1, &["pinned key"]);
    // Every bit of what says so counts.
    let bytes = fs::read(place.file("old.jsonl")).unwrap();
    assert!(verify_export(&bytes[..], None).is_ok());
    let end = bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    for bit in (end * 8..bytes.len() * 8).step_by(3) {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(verify_export(&damaged[..], None).is_err(), "bit {bit}");
    }
}

/// By age. What is younger stays, and if nothing is older nothing is done.
#[test]
fn what_is_younger_stays() {
    let place = Place::lived();
    let before = place.lines();
    let keep = |keep: &str, to: &str| place.estop(&["log", "prune", "--keep", keep, "--to", &place.arg(to)]);
    keep("1h", "none.jsonl").has(1, &["nothing to prune"]);
    assert!(!place.file("none.jsonl").exists() && place.lines() == before);
    let newest = *checkpoints(&place).last().unwrap();
    keep("0s", "all.jsonl").has(0, &[]);
    assert_eq!(first(&place), newest);
    place.estop(&["log", "verify", &place.arg("all.jsonl")]).has(0, &[]);
    place.estop(&["log", "verify"]).has(0, &[]);
    keep("soon", "x.jsonl").has(2, &["soon"]);
    place.estop(&["log", "prune", "--to", &place.arg("x.jsonl")]).has(2, &["--keep"]);
    place
        .estop(&["log", "prune", "--keep", "1h", "--before", "3", "--to", &place.arg("x.jsonl")])
        .has(2, &["--before"]);
    place.estop(&["log", "prune", "--keep", "1h"]).has(2, &["--to"]);
    assert!(!place.file("x.jsonl").exists());
}

/// Who keeps records for ten years can say so.
#[test]
fn records_can_be_kept_for_years() {
    let place = Place::lived();
    let ended = place.estop(&["log", "prune", "--keep", "3650d", "--to", &place.arg("none.jsonl")]);
    ended.has(1, &["nothing to prune"]);
    place.estop(&["log", "show", "--since", "3650d", "-n", "1"]).has(0, &[]);
}

/// No file is ever overwritten, and nothing is removed that is not in one.
#[test]
fn pruning_overwrites_nothing() {
    let place = Place::lived();
    let before = place.lines();
    fs::write(place.file("precious"), "precious").unwrap();
    std::os::unix::fs::symlink(place.file("nowhere"), place.file("link")).unwrap();
    for to in ["precious", "link", "no/such/folder/file", "."] {
        prune(&place, u64::from(u32::MAX), to).has(1, &["cannot write"]);
        assert!(place.lines() == before, "{to}");
    }
    assert_eq!(fs::read(place.file("precious")).unwrap(), b"precious");
    assert!(!place.file("nowhere").exists());
    // The same goes for an export.
    for to in ["precious", "link", "."] {
        place.estop(&["log", "export", &place.arg(to)]).has(1, &["cannot make"]);
    }
    assert_eq!(fs::read(place.file("precious")).unwrap(), b"precious");
    assert!(!place.file("nowhere").exists());
    // The first line of a log cannot be pruned up to.
    prune(&place, 1, "first.jsonl").has(1, &["nothing to prune"]);
    prune(&place, 0, "first.jsonl").has(1, &["nothing to prune"]);
    assert!(!place.file("first.jsonl").exists() && place.lines() == before);
}

/// A log that is damaged is not thrown away, and the attempt leaves nothing in the way of the next.
#[test]
fn a_damaged_log_is_not_pruned() {
    let place = Place::lived();
    let before = checkpoints(&place)[2];
    place.attack(|database| {
        let lie = "UPDATE log SET line = replace(line, 'completed', 'cancelled') WHERE seq < ?1";
        assert!(database.execute(lie, [before]).unwrap() > 0);
    });
    let lines = place.lines();
    prune(&place, before, "old.jsonl").has(1, &["line "]);
    assert!(place.lines() == lines);
    assert!(!place.file("old.jsonl").exists(), "a file that does not verify was left");
}

/// The lines of a call that still runs stay, whichever process it runs in, and everything after them.
#[tokio::test]
async fn the_lines_of_a_call_that_runs_stay() {
    let place = Place::lived();
    let home = Home::open(place.home()).unwrap();
    let host = estop_tests::small().store(place.store()).build().unwrap();
    let runaway = load(&host, "runaway").await;
    let input = json!({"keys": 3, "value_bytes": 10});
    let call = host.agent("a").call(&runaway, "write_then_spin", input).start();
    within(call.progress().wait_for(Option::is_some)).await.unwrap();
    host.entries(0, 1).await.unwrap();
    let id = call.id().to_string();
    let of_call = |place: &Place| {
        let entries = place.entries();
        entries.iter().find(|entry| entry["call"] == id.as_str()).map(|entry| entry["seq"].as_u64().unwrap())
    };
    let started = of_call(&place).expect("its start is in the log");
    place.call();
    place.estop(&["log", "checkpoint"]).has(0, &[]);
    assert!(*checkpoints(&place).last().unwrap() > started);
    prune(&place, u64::from(u32::MAX), "old.jsonl").has(0, &[]);
    assert!(first(&place) < started, "{} {started}", first(&place));
    assert_eq!(of_call(&place), Some(started));
    prune(&place, u64::from(u32::MAX), "again.jsonl").has(1, &["nothing to prune"]);
    // Once it has ended they may go.
    let _ = call.interrupt(Cause::Operator, "alice");
    within(call.outcome()).await;
    host.entries(0, 1).await.unwrap();
    place.estop(&["log", "checkpoint"]).has(0, &[]);
    prune(&place, u64::from(u32::MAX), "late.jsonl").has(0, &[]);
    assert_eq!(of_call(&place), None);
    within(host.shutdown()).await;
    place.estop(&["log", "verify"]).has(0, &[]);
    assert!(estop_tests::home::log(&home).iter().any(|entry| entry["kind"] == "pruned"));
}

/// Somebody takes the beginning of a log away, up to a checkpoint: of a whole one, and of one that was pruned.
#[test]
fn a_beginning_that_was_removed_without_a_word_is_missed() {
    let place = Place::lived();
    let key = place.keep_key("kept.pem");
    let missed = |place: &Place| {
        for options in [&["log", "verify"][..], &["log", "verify", "--key", &key]] {
            place.estop(options).has(1, &["no entry says that it was pruned there"]);
        }
    };
    let at = checkpoints(&place)[2];
    let whole = place.copied();
    whole.attack(|database| database.execute("DELETE FROM log WHERE seq < ?1", [at]).unwrap());
    missed(&whole);
    // Also later on.
    whole.call();
    missed(&whole);
    prune(&place, at, "old.jsonl").has(0, &[]);
    let further = checkpoints(&place)[2];
    place.attack(|database| database.execute("DELETE FROM log WHERE seq < ?1", [further]).unwrap());
    missed(&place);
    // Not at a checkpoint.
    place.attack(|database| database.execute("DELETE FROM log WHERE seq = ?1", [further]).unwrap());
    place.estop(&["log", "verify"]).has(1, &["lines before it are missing"]);
}

/// Or puts an entry in that says it was pruned. Without the key that is no evidence, even once the host, which
/// signs what it finds, has signed what follows.
#[test]
fn a_pruning_that_was_made_up_is_found() {
    let lived = Place::lived();
    let at = checkpoints(&lived)[2];
    let left = lived.lines().split_off(at as usize - 1);
    let checkpoint = lived.entries().pop().unwrap();
    let home = checkpoint["home"].as_str().unwrap();
    let own = Key::new(1).pruning(home, at, &sha256(""));
    let mut stolen = own.clone();
    (stolen["key"], stolen["signature"]) = (checkpoint["key"].clone(), checkpoint["signature"].clone());
    for mut pruned in [own, stolen] {
        let head = json!({"at": "2026-11-22T15:00:00.000000Z", "host": "host-01ARZ3NDEKTSV4RRFFQ69G5FAV"});
        let fields = pruned.as_object_mut().unwrap();
        fields.extend(head.as_object().unwrap().clone());
        fields.extend([("kind".to_owned(), json!("pruned")), ("file".to_owned(), json!("/nowhere"))]);
        let line = format!("{{\"seq\":0,\"prev\":\"{}\",{}", "0".repeat(64), &pruned.to_string()[1..]);
        let place = lived.copied();
        place.replace(&rechained(&[&left[..], &[line]].concat(), None));
        place.estop(&["log", "verify"]).has(1, &["is NOT as it was written"]);
        place.call();
        place.estop(&["log", "verify"]).has(1, &["is NOT as it was written"]);
    }
}

/// Two at once, and while others write: nothing is lost, and everything verifies.
#[test]
fn pruning_at_once_loses_nothing() {
    let place = Place::lived();
    let store = place.store();
    let before = place.lines();
    let [early, late] = [3, 6].map(|at| checkpoints(&place)[at]);
    std::thread::scope(|scope| {
        let prunes = [("early.jsonl", early), ("late.jsonl", late)];
        for (file, at) in prunes {
            scope.spawn({
                let place = &place;
                move || prune(place, at, file)
            });
        }
        scope.spawn(|| (0..200).for_each(|_| store.write(&mut [], &[entry()]).map(drop).unwrap()));
    });
    place.estop(&["log", "verify"]).has(0, &[]);
    let mut lines = Vec::new();
    for file in ["early.jsonl", "late.jsonl"].map(|file| place.file(file)).iter().filter(|file| file.exists()) {
        place.estop(&["log", "verify", file.to_str().unwrap()]).has(0, &[]);
        let text = fs::read_to_string(file).unwrap();
        lines.extend(text.lines().filter(|line| !line.starts_with("{\"export\"")).map(str::to_owned));
    }
    let left = place.lines();
    assert!(before.iter().all(|line| lines.contains(line) || left.contains(line)), "a line is nowhere");
}

/// Whoever verifies or exports while another process prunes sees the log as of one moment, and raises no false alarm.
#[test]
fn pruning_does_not_disturb_whoever_verifies() {
    let place = Place::new();
    let store = place.store();
    let home = Home::open(place.home()).unwrap();
    let fill = || {
        store.write(&mut [], &vec![entry(); 4000]).unwrap();
        store.checkpoint().unwrap();
    };
    fill();
    let pruned = AtomicBool::new(false);
    let looks = || {
        let look = Look::open(&home).unwrap();
        let mut times = 0;
        while times == 0 || !pruned.load(Ordering::Acquire) {
            verify(&look, Verifier::new(None, None)).unwrap();
            export(&look, look.newest().unwrap(), std::io::sink()).unwrap();
            times += 1;
        }
        times
    };
    std::thread::scope(|scope| {
        let looks = scope.spawn(looks);
        let prune =
            |round| store.prune(u64::from(u32::MAX), &place.file(&format!("old-{round}.jsonl"))).map(|_| fill());
        let done: Vec<_> = (0..5).map(prune).collect();
        pruned.store(true, Ordering::Release);
        assert!(done.iter().all(Result::is_ok), "{done:?}");
        assert!(looks.join().unwrap() > 0);
    });
}
