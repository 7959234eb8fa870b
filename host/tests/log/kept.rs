//! Checkpoints that were kept elsewhere: the only evidence of what was cut off, and against whoever has the key.

use std::fs;

use estop::store::Store;

use crate::attackers::{is_checkpoint, with_a_lie};
use crate::checkpoints::{checkpoints, entry, sent};
use crate::forge::{Key, rechained};
use crate::place::Place;

/// Keeps the log's checkpoints as `--checkpoint-to` would have.
fn keep(place: &Place, name: &str) -> String {
    let kept = checkpoints(place).iter().map(|checkpoint| format!("{}\n", sent(checkpoint))).collect::<String>();
    fs::write(place.file(name), kept).unwrap();
    place.arg(name)
}

/// The log and its export fit to what was kept; so does what was pruned, and what is left.
#[test]
fn a_log_fits_to_its_own_checkpoints() {
    let place = Place::lived();
    let kept = keep(&place, "kept.jsonl");
    place.export("log.jsonl");
    place.store().write(&mut [], &[entry()]).unwrap();
    // As people would by hand.
    let more = place.estop(&["log", "checkpoint"]).has(0, &[]).stdout;
    fs::write(&kept, fs::read_to_string(&kept).unwrap() + &more).unwrap();
    place.call();
    place.estop(&["log", "verify", "--checkpoint", &kept]).has(0, &[]);
    place.estop(&["log", "verify", &place.arg("log.jsonl"), "--checkpoint", &kept]).has(0, &[]);
    let middle = checkpoints(&place)[4]["seq"].to_string();
    place.estop(&["log", "prune", "--before", &middle, "--to", &place.arg("old.jsonl")]).has(0, &[]);
    place.estop(&["log", "verify", "--checkpoint", &kept]).has(0, &[]);
    place.estop(&["log", "verify", &place.arg("old.jsonl"), "--checkpoint", &kept]).has(0, &[]);
}

/// What is not claimed: a log that was cut back to an earlier checkpoint is a log, as if that had been yesterday; also with
/// the key pinned. A newer checkpoint that was kept elsewhere tells: now, and when the log has grown over that place.
#[test]
fn a_log_that_was_cut_back_is_told_only_by_what_was_kept_elsewhere() {
    let place = Place::lived();
    let key = place.keep_key("kept.pem");
    let kept = keep(&place, "kept.jsonl");
    let lines = place.lines();
    let ends: Vec<usize> = (0..lines.len()).filter(|index| is_checkpoint(&lines[*index])).collect();
    place.replace(&lines[..=ends[3]]);
    let told = |words: &[&str]| {
        place.estop(&["log", "verify", "--key", &key]).has(0, &[]);
        place.estop(&["log", "verify", "--checkpoint", &kept]).has(1, words);
    };
    told(&["a kept checkpoint covers line", "its end was removed"]);
    // Those from before still fit.
    let older = fs::read_to_string(&kept).unwrap().lines().take(4).map(|line| format!("{line}\n")).collect::<String>();
    fs::write(place.file("older.jsonl"), older).unwrap();
    place.estop(&["log", "verify", "--checkpoint", &place.arg("older.jsonl")]).has(0, &[]);
    while place.lines().len() <= lines.len() {
        place.call();
    }
    told(&["written anew"]);
    // Also if whatever keeps them has gone on: there are two of one line then, or one of a line that is not there.
    let both = fs::read_to_string(&kept).unwrap() + &fs::read_to_string(keep(&place, "later.jsonl")).unwrap();
    fs::write(place.file("kept.jsonl"), both).unwrap();
    told(&["written anew"]);
}

/// Two checkpoints of one line that say different things are evidence by themselves, whatever the log is now.
#[test]
fn two_checkpoints_of_one_line_tell_by_themselves() {
    let place = Place::new();
    place.call();
    let first = place.lines();
    place.call();
    let kept = fs::read_to_string(keep(&place, "kept.jsonl")).unwrap();
    place.replace(&first);
    // As many lines as before.
    place.call();
    let later = fs::read_to_string(keep(&place, "later.jsonl")).unwrap();
    fs::write(place.file("both.jsonl"), kept + &later).unwrap();
    place.estop(&["log", "verify", "--checkpoint", &place.arg("later.jsonl")]).has(0, &[]);
    place.estop(&["log", "verify", "--checkpoint", &place.arg("kept.jsonl")]).has(1, &["written anew"]);
    place.estop(&["log", "verify", "--checkpoint", &place.arg("both.jsonl")]).has(1, &["written anew"]);
}

/// What is not claimed: what follows the last signature is chained only. Whoever takes the later signatures out can write
/// what they like there, until it is signed. `verify` says how far the signatures go, and a kept checkpoint tells.
#[test]
fn what_follows_the_last_signature_is_told_to_be_unsigned() {
    let place = Place::lived();
    let key = place.keep_key("kept.pem");
    let kept = keep(&place, "kept.jsonl");
    let (lines, lie) = with_a_lie(&place);
    let left = lines.iter().enumerate().filter(|(index, line)| *index < lie || !is_checkpoint(line));
    let forged = rechained(&left.map(|(_, line)| line.clone()).collect::<Vec<_>>(), None);
    place.replace(&forged);
    let signed_to = forged.iter().rposition(|line| is_checkpoint(line)).unwrap();
    assert!(0 < signed_to && signed_to < lie);
    let verified = place.estop(&["log", "verify", "--json", "--key", &key]).has(0, &[]).json();
    assert_eq!((&verified["signed_to"], &verified["last"]), (&signed_to.into(), &forged.len().into()));
    place.estop(&["log", "verify", "--checkpoint", &kept]).has(1, &["written anew"]);
}

/// Whoever has the key can write the whole log anew. What was kept elsewhere tells, wherever it was changed.
#[test]
fn a_log_that_was_written_anew_with_the_right_key_is_told_by_what_was_kept() {
    let place = Place::lived();
    let key = place.keep_key("kept.pem");
    let kept = keep(&place, "kept.jsonl");
    let (lines, lie) = with_a_lie(&place);
    let forged = rechained(&lines, Some(&Key::of(&place)));
    place.replace(&forged);
    place.estop(&["log", "verify", "--key", &key]).has(0, &[]);
    // The first of them that comes after the lie.
    let after = lie + lines[lie..].iter().position(|line| is_checkpoint(line)).unwrap();
    let ended = place.estop(&["log", "verify", "--checkpoint", &kept]).has(1, &["written anew"]);
    // All was signed anew, so the first line that differs may be the first checkpoint.
    let line = (1..=after + 1).find(|line| ended.stderr.contains(&format!("line {line}: ")));
    assert!(line.is_some(), "{ended:?}");
    place.estop(&["log", "export", &place.arg("forged.jsonl")]).has(0, &[]);
    let args = ["log", "verify", &place.arg("forged.jsonl"), "--key", &key];
    place.estop(&args).has(0, &[]);
    place.estop(&[&args[..], &["--checkpoint", &kept]].concat()).has(1, &["written anew"]);
}

/// What is no checkpoint of this log does not pass for one.
#[test]
fn only_checkpoints_of_this_log_are_compared() {
    let place = Place::lived();
    let kept = fs::read_to_string(keep(&place, "kept.jsonl")).unwrap();
    let other = Place::new();
    other.call();
    let theirs = fs::read_to_string(keep(&other, "theirs.jsonl")).unwrap();
    for (name, content, words) in [
        ("binary", "\u{0}\u{1}".to_owned(), ["line 1: ", "no checkpoint"]),
        ("log", place.lines().join("\n"), ["line 1: ", "no checkpoint"]),
        ("cut", kept[..kept.len() - 30].to_owned(), ["no checkpoint", ""]),
        ("changed", kept.replacen("\"covers\":", "\"covers\":1", 1), ["line 1: ", "signature is wrong"]),
        ("theirs", theirs.clone(), ["line 1: ", "another home"]),
        ("mixed", kept.clone() + &theirs, ["another home", ""]),
    ] {
        assert_ne!(content, kept, "{name}");
        fs::write(place.file(name), content).unwrap();
        place.estop(&["log", "verify", "--checkpoint", &place.arg(name)]).has(1, &words);
    }
    place.estop(&["log", "verify", "--checkpoint", "/no/such/file"]).has(1, &["/no/such/file"]);
}
