//! The key that signs: made once however many begin at the same time, kept from others, and handed over.

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;

use estop::log::checkpoint::read_public_key;
use estop::store::Store;
use estop::store::sqlite::CHECKPOINT_EVERY;
use estop_tests::{call, completed, guests, load, within};
use serde_json::{Value, json};

use crate::checkpoints::entry;
use crate::command::{Running, estop, tool};
use crate::place::Place;

fn signatures(entries: &[Value]) -> Vec<&Value> {
    entries.iter().filter(|entry| entry["kind"] == "checkpoint" || entry["kind"] == "key-rotated").collect()
}

fn mode(place: &Place, name: &str) -> u32 {
    fs::symlink_metadata(place.home().join(name)).unwrap().mode() & 0o7777
}

/// The first call makes a key that nobody else can read, and a public one beside it that `openssl` knows.
#[test]
fn the_key_is_made_at_first_use_for_its_owner_alone() {
    let place = Place::new();
    place.call();
    assert_eq!(mode(&place, "log-key.pem"), 0o600);
    let path = place.home().join("log-key.pem");
    let args = ["pkey", "-pubin", "-in", &place.keep_key("kept.pem"), "-noout", "-text"];
    assert!(tool("openssl", &args).has(0, &[]).stdout.starts_with("ED25519 Public-Key:"));
    let key = fs::read(&path).unwrap();
    place.call();
    assert_eq!(fs::read(&path).unwrap(), key, "it was made again");
}

/// Processes that begin at once in a home that nobody has used agree on one key and one home.
#[test]
fn processes_that_begin_at_once_agree_on_one_key() {
    const PROCESSES: usize = 8;
    let place = Place::new();
    let kv = guests::path("kv");
    let args = ["run", kv.to_str().unwrap(), "set", "-i", r#"{"key":"a","value":1}"#];
    let running: Vec<_> = (0..PROCESSES).map(|_| Running::start(estop(&place.home(), &args))).collect();
    for running in running {
        let ended = running.ended().has(0, &[]);
        assert_eq!(ended.stderr, "");
    }
    let entries = place.entries();
    let all = |field: &str| signatures(&entries).iter().map(|entry| entry[field].to_string()).collect::<HashSet<_>>();
    assert_eq!((all("home").len(), all("key").len()), (1, 1), "{:?}", signatures(&entries));
    let count = |kind: &str| entries.iter().filter(|entry| entry["kind"] == kind).count();
    assert_eq!((count("opened"), count("closed"), count("commit")), (PROCESSES, PROCESSES, PROCESSES));
    let kept = place.keep_key("kept.pem");
    place.estop(&["log", "verify", "--key", &kept]).has(0, &[]);
    // Nothing is left of the keys that were made in vain.
    let expected =
        ["alternate", "cache", "cache-key", "estop.db", "halts", "log-key.pem", "log-key.pub.pem", "reserve", "run"];
    let mut names: Vec<_> = fs::read_dir(place.home()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.retain(|name| name != "estop.db-wal" && name != "estop.db-shm");
    names.sort();
    assert_eq!(names, expected);
}

/// The log goes on without signatures, and says why; once the key is right again everything is signed.
#[track_caller]
fn goes_on_unsigned(place: &Place, words: &[&str]) {
    let before = place.estop(&["log", "verify", "--json"]).has(0, &[]).json();
    let said = [&["the log is not signed", "log-key.pem"], words].concat();
    assert!(place.call().has(0, &said).stdout.contains("value"));
    let verified = place.estop(&["log", "verify", "--json"]).has(0, &[]).json();
    assert_eq!(verified["signed_to"], before["signed_to"]);
    assert!(verified["last"].as_u64() > before["last"].as_u64());
    // A file without a signed end would be worth nothing.
    place.estop(&["log", "export", &place.arg("unsigned.jsonl")]).has(1, words);
    assert!(!place.file("unsigned.jsonl").exists());
    place.estop(&["log", "rotate-key"]).has(1, words);
}

#[track_caller]
fn signs_again(place: &Place) {
    let ended = place.call();
    assert_eq!(ended.stderr, "");
    let verified = place.estop(&["log", "verify", "--json"]).has(0, &[]).json();
    assert_eq!(verified["signed_to"], verified["last"].as_u64().unwrap() - 1);
}

/// A key that others can read is not used, and the message says what to do.
#[test]
fn a_key_that_others_can_read_is_refused() {
    let place = Place::lived();
    let path = place.home().join("log-key.pem");
    for open in [0o640, 0o604, 0o622] {
        fs::set_permissions(&path, Permissions::from_mode(open)).unwrap();
        goes_on_unsigned(&place, &["other users", "0600"]);
        assert_eq!(mode(&place, "log-key.pem"), open, "it was changed");
    }
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    signs_again(&place);
}

/// A key that is gone, or another one in its place, is not made up for.
#[test]
fn a_key_that_is_not_the_one_of_the_log_is_refused() {
    let place = Place::lived();
    let (path, kept) = (place.home().join("log-key.pem"), place.file("kept"));
    fs::rename(&path, &kept).unwrap();
    goes_on_unsigned(&place, &["No such file"]);
    assert!(!path.exists(), "another key was made");
    for (words, bytes) in [
        (["is not the one that signs this log", "put that one back"], {
            let other = Place::new();
            other.call();
            fs::read(other.home().join("log-key.pem")).unwrap()
        }),
        (["cannot use the log's key", ""], b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".to_vec()),
        (["cannot use the log's key", "it is not a key"], vec![b'x'; 100_000]),
    ] {
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        goes_on_unsigned(&place, &words);
    }
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&kept, &path).unwrap();
    goes_on_unsigned(&place, &["log-key.pem"]);
    fs::rename(&kept, &path).unwrap();
    signs_again(&place);
}

/// A rotation is in the log, signed by the old key; with either key pinned the log verifies, at once and later.
#[test]
fn the_log_verifies_across_rotations() {
    let place = Place::lived();
    let first = place.keep_key("first.pem");
    let private = fs::read(place.home().join("log-key.pem")).unwrap();
    let mut keys = vec![first];
    for name in ["second.pem", "third.pem"] {
        place.estop(&["log", "rotate-key"]).has(0, &["a new key signs"]);
        keys.push(place.keep_key(name));
        for key in &keys {
            place.estop(&["log", "verify", "--key", key]).has(0, &[]);
        }
        place.call();
    }
    assert_ne!(fs::read(place.home().join("log-key.pem")).unwrap(), private);
    assert_eq!(mode(&place, "log-key.pem"), 0o600);
    assert!(!place.home().join("log-key.next.pem").exists());
    place.export("log.jsonl");
    for key in &keys {
        place.estop(&["log", "verify", "--key", key]).has(0, &[]);
        place.estop(&["log", "verify", &place.arg("log.jsonl"), "--key", key]).has(0, &[]);
    }
    let publics: Vec<_> = keys.iter().map(|key| read_public_key(key.as_ref()).unwrap()).collect();
    let entries = place.entries();
    let rotations: Vec<_> = entries.iter().filter(|entry| entry["kind"] == "key-rotated").collect();
    assert_eq!(rotations.len(), 2);
    for (rotation, hands) in rotations.iter().zip(publics.windows(2)) {
        assert_eq!((&rotation["key"], &rotation["next"]), (&json!(hands[0]), &json!(hands[1])));
    }
    // A key that had nothing to do with it.
    let other = Place::new();
    other.call();
    place.estop(&["log", "verify", "--key", &other.keep_key("other.pem")]).has(1, &["pinned key"]);
}

/// A host that runs while another process rotates the key signs with the new one from then on.
#[tokio::test]
async fn a_host_that_runs_during_a_rotation_signs_with_the_new_key() {
    let place = Place::new();
    let store = Arc::new(place.store());
    let host = estop_tests::small().store_arc(store.clone()).build().unwrap();
    let kv = load(&host, "kv").await;
    let calls = async || {
        completed(&call(&host, &kv, "add", json!({"key": "n", "delta": 1})).await);
        // As if there had been many more.
        store.write(&mut [], &vec![entry(); CHECKPOINT_EVERY as usize]).unwrap();
    };
    calls().await;
    let old = place.keep_key("old.pem");
    place.estop(&["log", "rotate-key"]).has(0, &[]);
    calls().await;
    within(host.shutdown()).await;
    let new = json!(read_public_key(&place.home().join("log-key.pub.pem")).unwrap()).to_string();
    let entries = place.entries();
    assert_eq!(entries.last().unwrap()["kind"], "checkpoint");
    let rotated = entries.iter().position(|entry| entry["kind"] == "key-rotated").unwrap();
    let keys = |entries: &[Value]| signatures(entries).iter().map(|e| e["key"].to_string()).collect::<Vec<_>>();
    let (before, after) = (keys(&entries[..=rotated]), keys(&entries[rotated + 1..]));
    let old_key = json!(read_public_key(old.as_ref()).unwrap()).to_string();
    assert!(before.len() >= 2 && before.iter().all(|key| *key == old_key), "{before:?}");
    assert!(after.len() >= 2 && after.iter().all(|key| *key == new), "{after:?}");
    place.estop(&["log", "verify", "--key", &old]).has(0, &[]);
}
