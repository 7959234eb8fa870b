//! Row 33 of the failure modes: an exported log that is not as it was written is rejected, and it says where. Each bit, each
//! line, each cut.

use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use estop::log::verify::{Invalid, Verified, verify_export};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::json;

use crate::command::tool;
use crate::forge::Key;
use crate::place::Place;

/// A file of at least 19 lines: three processes, and the line that ends it.
fn small() -> &'static [u8] {
    static SMALL: OnceLock<Vec<u8>> = OnceLock::new();
    SMALL.get_or_init(|| three_calls().export("log.jsonl"))
}

fn three_calls() -> Place {
    let place = Place::new();
    for _ in 0..3 {
        place.call();
    }
    place
}

fn check(bytes: &[u8]) -> Result<Verified, Invalid> {
    verify_export(bytes, None)
}

/// Where each line is, its newline included.
fn lines(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut begin = 0;
    let line = |line: &[u8]| {
        let range = begin..begin + line.len();
        begin = range.end;
        range
    };
    bytes.split_inclusive(|byte| *byte == b'\n').map(line).collect()
}

/// The same lines in another order, or fewer, or some twice. Counted from zero.
fn arranged(bytes: &[u8], order: impl IntoIterator<Item = usize>) -> Vec<u8> {
    let lines = lines(bytes);
    order.into_iter().flat_map(|line| bytes[lines[line].clone()].iter().copied()).collect()
}

#[track_caller]
fn rejected(bytes: &[u8], at: Range<usize>, what: &str) {
    match check(bytes) {
        Ok(verified) => panic!("{what}: accepted: {verified:?}"),
        Err(Invalid { line, what: why }) => {
            assert!(at.contains(&(line as usize)), "{what}: found at line {line} and not at {at:?}: {why}");
        }
    }
}

/// Every bit of every byte, newlines and the last line included. What is told is the damaged line, or the next,
/// which no longer fits to it.
#[test]
fn every_flipped_bit_is_found_where_it_is() {
    let bytes = small();
    let lines = lines(bytes);
    assert!(lines.len() >= 15, "{} lines", lines.len());
    assert!(check(bytes).is_ok());
    let flipped = AtomicUsize::new(0);
    let next = AtomicUsize::new(0);
    let flip = || {
        let mut damaged = bytes.to_vec();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(line) = lines.get(index) else { break };
            for byte in line.clone() {
                for bit in 0..8 {
                    damaged[byte] ^= 1 << bit;
                    // Counted from one.
                    rejected(&damaged, index + 1..index + 3, &format!("bit {bit} of byte {byte}"));
                    damaged[byte] ^= 1 << bit;
                    flipped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(flip);
        }
    });
    assert_eq!(flipped.into_inner(), bytes.len() * 8);
    println!("{} bits of {} lines were flipped", bytes.len() * 8, lines.len());
}

/// A line that is missing, in another place, or there twice, wherever it is.
#[test]
fn every_line_has_its_place() {
    let bytes = small();
    let count = lines(bytes).len();
    for line in 0..count {
        let at = line + 1;
        let removed = (0..count).filter(|other| *other != line);
        rejected(&arranged(bytes, removed), at..at + 1, &format!("line {at} removed"));
        let twice = (0..count).flat_map(|other| std::iter::repeat_n(other, if other == line { 2 } else { 1 }));
        rejected(&arranged(bytes, twice), at + 1..at + 2, &format!("line {at} twice"));
        let moved_to_the_end = (0..count).filter(|other| *other != line).chain([line]);
        if line + 1 < count {
            let swapped = (0..count).map(|other| match other {
                other if other == line => line + 1,
                other if other == line + 1 => line,
                other => other,
            });
            rejected(&arranged(bytes, swapped), at..at + 1, &format!("line {at} swapped with the next"));
            rejected(&arranged(bytes, moved_to_the_end), at..at + 1, &format!("line {at} moved to the end"));
        }
        // And whatever begins there: with a checkpoint a log may begin, but this is not what was signed.
        let is_checkpoint =
            bytes[lines(bytes)[at.min(count - 1)].clone()].windows(19).any(|is| is == *b"\"kind\":\"checkpoint\"");
        let found = if is_checkpoint { count - at } else { 1 };
        rejected(&arranged(bytes, at..count), found..found + 1, &format!("begins after line {at}"));
    }
}

/// A file that was cut, after any line and within any. Only the whole one is accepted.
#[test]
fn every_cut_is_found() {
    let bytes = small();
    let lines = lines(bytes);
    for length in 0..bytes.len() {
        // An empty rest of a line is missed at the place where the next one should be.
        let at = lines.iter().position(|line| line.contains(&length)).unwrap() + 1;
        rejected(&bytes[..length], at..at + 1, &format!("cut after {length} bytes"));
    }
    println!("cut at {} places", bytes.len());
}

/// Nothing may come after the end, or be taken from another log or another time.
#[test]
fn nothing_is_accepted_from_elsewhere() {
    let place = three_calls();
    let older = place.export("older.jsonl");
    place.call();
    let newer = place.export("newer.jsonl");
    let other = small();
    let (last, count) = (lines(&older).len(), lines(&newer).len());
    assert!(check(&older).is_ok() && check(&newer).is_ok() && check(other).is_ok());
    // Lines before the end, then the end of another file.
    let with_end = |body: &[u8], body_lines: usize, end: &[u8], end_line: usize| {
        [arranged(body, 0..body_lines), arranged(end, [end_line])].concat()
    };
    rejected(&with_end(&newer, count - 1, &older, last - 1), count..count + 1, "the end of an older export");
    rejected(&with_end(&older, last - 1, &newer, count - 1), last..last + 1, "the end of a newer export");
    let (their_end, shared) = (lines(other).len() - 1, last.min(lines(other).len()) - 1);
    rejected(&with_end(&older, last - 1, other, their_end), last..last + 1, "the end of another home's export");
    let ended_twice = [&older[..], &arranged(&newer, last - 1..count)[..]].concat();
    rejected(&ended_twice, last + 1..last + 2, "an older export, then what is new");
    rejected(&[&older[..], &older[..]].concat(), last + 1..last + 2, "two exports, one after the other");
    rejected(&[&older[..], other].concat(), last + 1..last + 2, "and of another home");
    for garbage in ["\n", "{}\n", " ", "\0", "x", "{\"export\":{}}\n", "{\"seq\":20}\n", "null\n"] {
        rejected(&[&older[..], garbage.as_bytes()].concat(), last + 1..last + 2, garbage);
        // A blank before a line leaves it JSON, and another line.
        rejected(&[garbage.as_bytes(), &older[..]].concat(), 1..3, garbage);
    }
    let windows = String::from_utf8(older.clone()).unwrap().replace('\n', "\r\n");
    rejected(windows.as_bytes(), 2..3, "with another kind of newline");
    for line in 0..shared {
        let mixed: Vec<u8> = (0..last).flat_map(|l| arranged(if l == line { other } else { &older }, [l])).collect();
        rejected(&mixed, line + 1..line + 3, &format!("line {} of another home", line + 1));
    }
    // A whole log of another home is a log. Whose it is says the key that was kept.
    let kept = estop::log::checkpoint::read_public_key(&place.home().join("log-key.pub.pem")).unwrap();
    assert!(verify_export(&older[..], Some(kept.clone())).is_ok());
    assert!(verify_export(other, Some(kept)).unwrap_err().what.contains("pinned key"));
}

/// The command says so too: with the line, and a code that is not zero.
#[test]
fn the_command_rejects_what_the_library_does() {
    let place = Place::new();
    let bytes = small();
    let lines = lines(bytes);
    let count = lines.len();
    let flipped = |byte: usize| {
        let mut damaged = bytes.to_vec();
        damaged[byte] ^= 4;
        damaged
    };
    for (what, damaged, line) in [
        ("empty", Vec::new(), 1),
        ("binary", fs::read(env!("CARGO_BIN_EXE_estop")).unwrap()[..100_000].to_vec(), 1),
        ("flipped-7", flipped(lines[6].start + 100), 8),
        ("flipped-end", flipped(lines[count - 1].end - 20), count),
        ("flipped-newline", flipped(bytes.len() - 1), count),
        ("removed-1", arranged(bytes, 1..count), 1),
        ("removed-9", arranged(bytes, (0..count).filter(|line| *line != 8)), 9),
        ("removed-end", arranged(bytes, 0..count - 1), count),
        ("swapped-3", arranged(bytes, [0, 1, 3, 2].into_iter().chain(4..count)), 3),
        ("duplicated-5", arranged(bytes, (0..5).chain(4..count)), 6),
        ("cut-after-12", bytes[..lines[11].end].to_vec(), 13),
        ("cut-within-12", bytes[..lines[11].end - 9].to_vec(), 12),
        ("appended", [bytes, b"more"].concat(), count + 1),
    ] {
        fs::write(place.file(what), damaged).unwrap();
        let (rejected, place_in_it) = (format!("{what}` is NOT as it was exported"), format!("line {line}: "));
        let ended = place.estop(&["log", "verify", &place.arg(what)]).has(1, &[&rejected, &place_in_it]);
        assert_eq!(ended.stdout, "", "{what}");
    }
    place.estop(&["log", "verify", "/no/such/file"]).has(1, &["/no/such/file", "No such file"]);
}

/// Counts what was taken of it.
struct Endless(u64);

impl Read for Endless {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        into.fill(b'x');
        self.0 += into.len() as u64;
        Ok(into.len())
    }
}

/// Promise 18: a line without an end costs a bounded amount of memory, in the library and in the command.
#[test]
fn an_endless_line_is_given_up() {
    let mut endless = Endless(0);
    let invalid = verify_export(&mut endless, None).unwrap_err();
    assert_eq!(invalid.line, 1);
    assert!(endless.0 < 5 << 20, "{} bytes were read", endless.0);
    // A line of a gigabyte, which takes no room on the disk, and half of that for the process.
    let place = Place::new();
    File::create(place.file("long")).unwrap().set_len(1 << 30).unwrap();
    let limited = "ulimit -v 524288; exec \"$0\" log verify \"$1\"";
    let ended = tool("sh", &["-c", limited, env!("CARGO_BIN_EXE_estop"), &place.arg("long")]);
    ended.has(1, &["line 1: "]);
}

/// Promise 18: whatever the bytes are, they are looked at and rejected.
#[test]
fn random_bytes_are_rejected_without_a_panic() {
    let config = || ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() };
    let any_bytes = prop::collection::vec(any::<u8>(), 0..2000);
    let noise = TestRunner::new(config()).run(&any_bytes, |bytes| {
        prop_assert!(check(&bytes).is_err());
        Ok(())
    });
    noise.unwrap();
    // As if it were a log.
    let bytes = small();
    let place = (0..bytes.len(), 0..bytes.len(), prop::collection::vec(any::<u8>(), 0..40));
    let overwritten = TestRunner::new(config()).run(&place, |(from, length, with)| {
        let mut damaged = bytes.to_vec();
        let to = (from + length % 60).min(damaged.len());
        damaged.splice(from..to, with);
        prop_assert!(damaged == bytes || check(&damaged).is_err());
        Ok(())
    });
    overwritten.unwrap();
}

/// Promise 18: numbers at the ends of what a number can be. Whoever makes such a file can sign it with a key of its own.
#[test]
fn extreme_numbers_are_rejected_without_a_panic() {
    let key = Key::new(7);
    let numbers = [0, 1, 2, u64::MAX - 1, u64::MAX];
    for (seq, covers) in numbers.into_iter().flat_map(|seq| numbers.map(|covers| (seq, covers))) {
        let prev = "0".repeat(64);
        let link = json!({"seq": seq, "prev": prev, "kind": "checkpoint"});
        let mut line = key.checkpoint("home-x", covers, &prev);
        line.as_object_mut().unwrap().extend(link.as_object().unwrap().clone());
        let mut file = format!("{line}\n");
        for next in numbers {
            file += &format!("{}\n", json!({"seq": next, "prev": prev, "kind": "closed"}));
        }
        assert!(check(file.as_bytes()).is_err(), "{file}");
        let end = json!({"export": key.export("home-x", seq, covers, &prev)});
        assert!(check(format!("{line}\n{end}\n").as_bytes()).is_err(), "{line}\n{end}");
        assert!(check(format!("{end}\n").as_bytes()).is_err(), "{end}");
    }
}
