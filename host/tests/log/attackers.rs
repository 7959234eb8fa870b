//! Somebody can write the database and has no key: what was signed cannot be changed without being seen.

use rusqlite::Connection;

use crate::forge::{Key, rechained};
use crate::place::Place;

/// The lines of a home that has lived, with what one of them says changed: who stopped the call that ran out of time.
pub(crate) fn with_a_lie(place: &Place) -> (Vec<String>, usize) {
    let mut lines = place.lines();
    let found = lines.iter().position(|line| line.contains("\"cause\":\"deadline\",\"actor\":\"host\"")).unwrap();
    lines[found] = lines[found].replace("\"actor\":\"host\"", "\"actor\":\"mallory\"");
    (lines, found)
}

pub(crate) fn is_checkpoint(line: &str) -> bool {
    line.contains("\"kind\":\"checkpoint\"")
}

#[track_caller]
fn rejected_at(place: &Place, line: usize, words: &[&str]) {
    let told = format!("line {line}: ");
    let words = [&["is NOT as it was written", told.as_str()], words].concat();
    let ended = place.estop(&["log", "verify"]).has(1, &words);
    assert_eq!(ended.stdout, "");
}

/// SQLite itself refuses to change the log, whatever the statement is called.
#[test]
fn the_database_refuses_to_change_the_log() {
    let place = Place::lived();
    let before = place.lines();
    let database = place.database();
    let next = before.len() + 1;
    let refused = |sql: &str, why: &str| match database.execute_batch(sql) {
        Ok(()) => panic!("not refused: {sql}"),
        Err(error) => assert!(error.to_string().contains(why), "{sql}: {error}"),
    };
    for sql in [
        "UPDATE log SET line = 'x' WHERE seq = 2",
        "UPDATE log SET line = line",
        "UPDATE OR IGNORE log SET line = 'x' WHERE seq = 2",
        "UPDATE OR REPLACE log SET seq = 3 WHERE seq = 2",
        "UPDATE log SET seq = seq + 1000000",
    ] {
        refused(sql, "the log is never changed");
    }
    for sql in
        ["DELETE FROM log", "DELETE FROM log WHERE seq = 1", &format!("DELETE FROM log WHERE seq = {}", next - 1)]
    {
        refused(sql, "nothing is removed from the log");
    }
    for sql in [
        "INSERT INTO log VALUES (2, 'x')",
        "INSERT OR REPLACE INTO log VALUES (2, 'x')",
        "REPLACE INTO log VALUES (2, 'x')",
        "INSERT OR IGNORE INTO log VALUES (2, 'x')",
        "INSERT INTO log VALUES (2, 'x') ON CONFLICT (seq) DO UPDATE SET line = 'x'",
        "INSERT INTO log VALUES (0, 'x')",
        "INSERT INTO log VALUES (-1, 'x')",
        "INSERT INTO log (line) VALUES ('x')",
        &format!("INSERT INTO log VALUES ({}, 'x')", next + 1),
        &format!("INSERT OR REPLACE INTO log VALUES ({}, 'x')", next - 1),
    ] {
        refused(sql, "the log grows at its end");
    }
    assert_eq!(place.lines(), before);
    place.estop(&["log", "verify"]).has(0, &[]);
}

/// One line, with the triggers out of the way. The next line does not fit any more.
#[test]
fn a_line_that_was_changed_removed_or_inserted_is_found() {
    let lived = Place::lived();
    let (lines, lie) = with_a_lie(&lived);
    let number = lie + 1;
    let damaged = |attack: &dyn Fn(&Connection)| {
        let place = lived.copied();
        place.attack(|database| attack(database));
        place
    };
    let set = |database: &Connection, number: usize, line: &str| {
        database.execute("UPDATE log SET line = ?2 WHERE seq = ?1", (number, line)).unwrap();
    };
    rejected_at(&damaged(&|database| set(database, number, &lines[lie])), number + 1, &["do not fit"]);
    rejected_at(&damaged(&|database| set(database, number, "")), number, &["not a line"]);
    let removed = damaged(&|database| {
        database.execute("DELETE FROM log WHERE seq = ?1", [number]).unwrap();
    });
    rejected_at(&removed, number + 1, &[&format!("{number} should be here")]);
    let inserted = damaged(&|database| {
        database.execute("UPDATE log SET seq = -seq WHERE seq >= ?1", [number]).unwrap();
        database.execute("UPDATE log SET seq = 1 - seq WHERE seq < 0", []).unwrap();
        database.execute("INSERT INTO log SELECT ?1, line FROM log WHERE seq = ?1 - 1", [number]).unwrap();
    });
    rejected_at(&inserted, number, &[&format!("{number} should be here")]);
}

/// An old entry is rewritten, and every line after it made to fit: the next signature does not.
#[test]
fn an_entry_that_was_rewritten_with_all_that_follows_is_found() {
    let place = Place::lived();
    let (lines, lie) = with_a_lie(&place);
    place.replace(&rechained(&lines, None));
    let signed = lie + lines[lie..].iter().position(|line| is_checkpoint(line)).unwrap();
    rejected_at(&place, signed + 1, &["its signature is wrong"]);
    let export = place.estop(&["log", "export"]);
    assert_ne!(export.code, Some(0), "a damaged log was exported, and signed");
}

/// The signatures are taken out as well, and nothing is left that could be wrong. The key is still there.
#[test]
fn a_log_whose_signatures_were_taken_out_is_found() {
    let place = Place::lived();
    let key = place.keep_key("kept.pem");
    let (lines, _) = with_a_lie(&place);
    let without: Vec<_> = lines.iter().filter(|line| !is_checkpoint(line)).cloned().collect();
    place.replace(&rechained(&without, None));
    place.estop(&["log", "verify", "--key", &key]).has(1, &["the pinned key has not signed"]);
    place.estop(&["log", "verify"]).has(1, &["is NOT as it was written"]);
}

/// Everything is signed anew with another key. Who has kept the right one sees it, and the home has it too.
#[test]
fn a_log_that_was_signed_anew_by_another_key_is_found() {
    let place = Place::lived();
    let key = place.keep_key("kept.pem");
    let (lines, _) = with_a_lie(&place);
    let mallory = Key::new(1);
    place.replace(&rechained(&lines, Some(&mallory)));
    place.attack(|database| {
        let replaced = "UPDATE meta SET value = ?1 WHERE name = 'log-key'";
        assert_eq!(database.execute(replaced, [mallory.public()]).unwrap(), 1);
    });
    place.estop(&["log", "verify", "--key", &key]).has(1, &["the pinned key has not signed"]);
    place.estop(&["log", "verify"]).has(1, &["is NOT as it was written"]);
    // The host does not sign with what it finds there, and says so.
    let said = place.call().stderr;
    assert!(said.contains("the log is not signed") && said.contains(&mallory.public()), "{said}");
}
