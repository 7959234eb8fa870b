//! What is written is accepted, and can be checked without estop: by `sha256sum`, by `openssl`, and by what the
//! documentation tells people to type.

use std::collections::HashSet;
use std::fs;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use estop_tests::guests::root;
use serde_json::{Value, json};

use crate::command::{Running, tool};
use crate::place::Place;

/// Whatever has happened in a home, and in however many processes, its log verifies.
#[test]
fn verify_accepts_the_log_of_a_home_that_has_lived() {
    let place = Place::lived();
    let entries = place.entries();
    let seen = |kind: &str, status: &str| entries.iter().any(|e| e["kind"] == kind && e["status"] == status);
    for status in ["completed", "failed", "stopped", "conflict"] {
        assert!(seen("end", status), "no call was {status}");
    }
    for kind in ["opened", "commit", "interrupt", "refusal", "closed", "checkpoint"] {
        assert!(entries.iter().any(|entry| entry["kind"] == kind), "no entry is a {kind}");
    }
    let hosts: HashSet<_> = entries.iter().filter(|e| e["kind"] == "opened").map(|e| e["host"].to_string()).collect();
    assert!(hosts.len() >= 10, "{} processes", hosts.len());

    let verified = place.estop(&["log", "verify", "--json"]).has(0, &[]).json();
    let last = entries.len();
    assert_eq!((&verified["first"], &verified["last"]), (&json!(1), &json!(last)));
    assert_eq!(verified["signed_to"], last - 1, "all but the last checkpoint itself is signed");
    let checkpoints = entries.iter().filter(|entry| entry["kind"] == "checkpoint").count();
    assert_eq!(verified["signatures"], checkpoints);
    assert_eq!(verified["key"], entries[last - 1]["key"]);
    let key = place.keep_key("kept.pem");
    let text = place.estop(&["log", "verify", "--key", &key]).has(0, &[]).stdout;
    assert!(text.contains(&format!("lines 1 to {last}")) && text.contains("by the key you gave"), "{text}");

    // Also as a file, wherever that is, with nothing of the home.
    place.export("log.jsonl");
    let elsewhere = Place::new();
    let args = ["log", "verify", &place.arg("log.jsonl"), "--key", &key, "--json"];
    let verified = elsewhere.estop(&args).has(0, &[]).json();
    assert_eq!((&verified["last"], &verified["signed_to"]), (&json!(last), &json!(last)), "its end is signed as well");
    assert!(!elsewhere.home().exists(), "verifying a file made a home");
}

/// `sha256sum` alone confirms every `prev`, to the last line.
#[test]
fn sha256sum_alone_confirms_the_chain() {
    let place = Place::lived();
    let text = String::from_utf8(place.export("log.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["prev"], "0".repeat(64));
    let sha256 = |number: usize| {
        let pipe = format!("sed -n {number}p '{}' | sha256sum", place.arg("log.jsonl"));
        tool("sh", &["-c", &pipe]).has(0, &[]).stdout[..64].to_owned()
    };
    let (end, entries) = lines.split_last().unwrap();
    for (number, next) in (1..).zip(&entries[1..]) {
        assert_eq!(next["prev"], sha256(number), "line {number}");
    }
    assert_eq!(end["export"]["sha256"], sha256(entries.len()));
}

/// A statement and its signature as files, for `openssl`.
#[track_caller]
fn openssl(place: &Place, key: &str, statement: &str, signature: &Value) -> Option<i32> {
    fs::write(place.file("statement"), statement).unwrap();
    fs::write(place.file("signature"), BASE64.decode(signature.as_str().unwrap()).unwrap()).unwrap();
    let files = ["-in", &place.arg("statement"), "-sigfile", &place.arg("signature")];
    tool("openssl", &[&["pkeyutl", "-verify", "-pubin", "-inkey", key, "-rawin"], &files[..]].concat()).code
}

/// `openssl` alone confirms every checkpoint, a rotation and the end of a file; and not one that says another thing.
#[test]
fn openssl_alone_confirms_every_signature() {
    let place = Place::lived();
    let old = place.keep_key("old.pem");
    place.estop(&["log", "rotate-key"]).has(0, &[]);
    let new = place.keep_key("new.pem");
    place.call();
    let text = String::from_utf8(place.export("log.jsonl")).unwrap();
    let (mut confirmed, mut key) = (0, &old);
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let field = |name: &str| line.get("export").unwrap_or(&line)[name].to_string().replace('"', "");
        let home_and =
            |names: &[&str]| names.iter().map(|name| format!("{name} {}\n", field(name))).collect::<String>();
        let (statement, signature) = match (line["kind"].as_str(), line.get("export")) {
            (Some("checkpoint"), _) => {
                (format!("estop log checkpoint\n{}", home_and(&["home", "covers", "sha256"])), &line["signature"])
            }
            (Some("key-rotated"), _) => {
                (format!("estop log rotation\n{}", home_and(&["home", "covers", "sha256", "next"])), &line["signature"])
            }
            (_, Some(end)) => {
                (format!("estop log export\n{}", home_and(&["home", "first", "last", "sha256"])), &end["signature"])
            }
            _ => continue,
        };
        assert_eq!(openssl(&place, key, &statement, signature), Some(0), "{line}");
        let another = statement.replace("home home-", "home home_");
        assert_eq!(openssl(&place, key, &another, signature), Some(1), "{line}");
        if line["kind"] == "key-rotated" {
            key = &new;
            assert_eq!(openssl(&place, key, &statement, signature), Some(1), "the new key vouches for itself");
        }
        confirmed += 1;
    }
    assert!(confirmed >= 13, "{confirmed}");
}

/// What `log-format.md` tells people to type works as it stands there.
#[test]
fn the_commands_of_the_documentation_work_as_they_are() {
    let place = Place::lived();
    place.export("log.jsonl");
    place.keep_key("log-key.pub.pem");
    let text = fs::read_to_string(root().join("host/docs/log-format.md")).unwrap();
    let blocks: Vec<&str> = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let typed = |what: &str| {
        let block = blocks.iter().find(|block| block.contains(what)).unwrap_or_else(|| panic!("nothing with {what}"));
        let mut command = Command::new("sh");
        command.args(["-euc", block]).current_dir(place.file("."));
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        Running::start(command).ended().has(0, &[]).stdout
    };
    let chain = typed("sha256sum");
    let (hash, prev) = chain.split_once('\n').unwrap();
    assert_eq!(prev.trim(), format!("\"prev\":\"{}\"", &hash[..64]));
    assert!(typed("openssl").contains("Verified Successfully"));
}
