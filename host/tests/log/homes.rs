//! Homes that are not there, not ours, or not of our time: said clearly, and left alone.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use rusqlite::Connection;

use crate::command::{Ended, Running, estop};
use crate::place::Place;

/// Everything that only looks.
const LOOKS: [&[&str]; 7] = [
    &["log", "show"],
    &["log", "tail"],
    &["log", "verify"],
    &["log", "export"],
    &["state", "show"],
    &["state", "export", "--agent", "a"],
    &["show", "call-01ARZ3NDEKTSV4RRFFQ69G5FAV"],
];

const RUN: [&str; 3] = ["add", "-i", r#"{"key":"n","delta":1}"#];

/// Where nothing has run there is nothing to see, and looking does not change that.
#[test]
fn a_home_of_nothing_is_told_and_not_made() {
    let place = Place::new();
    for look in LOOKS {
        let ended = place.estop(look).has(1, &["nothing has run in the home", place.home().to_str().unwrap()]);
        assert_eq!(ended.stdout, "", "{look:?}");
        assert!(!place.home().exists(), "{look:?} made a home");
        let there = place.arg("there");
        let ended = place.estop(&[look, &["--home", &there]].concat());
        ended.has(1, &["nothing has run in the home", "there"]);
    }
}

/// And where there can be no home.
#[test]
fn a_home_that_cannot_be_is_told() {
    let place = Place::lived();
    fs::write(place.file("file"), "").unwrap();
    let run = |home: &str| place.tool("kv", &[&RUN[..], &["--home", home]].concat());
    run(&place.arg("file")).has(1, &["cannot use the home", "file"]);
    run("/proc/estop").has(1, &["cannot use the home `/proc/estop`"]);
    run("").has(2, &["--home"]);
    let nowhere = |variables: &[(&str, &str)]| -> Ended {
        let mut command = estop(&place.home(), &["log", "show"]);
        for name in ["ESTOP_HOME", "XDG_STATE_HOME", "HOME"] {
            command.env_remove(name);
        }
        command.envs(variables.iter().copied());
        Running::start(command).ended()
    };
    nowhere(&[]).has(1, &["there is no home", "ESTOP_HOME", "XDG_STATE_HOME"]);
    nowhere(&[("ESTOP_HOME", "relative"), ("HOME", "")]).has(1, &["there is no home", "absolute"]);
    let state = place.arg("state");
    nowhere(&[("XDG_STATE_HOME", &state)]).has(1, &["nothing has run", &format!("{state}/estop")]);
    nowhere(&[("HOME", &state)]).has(1, &["nothing has run", &format!("{state}/.local/state/estop")]);
    for (home, words) in [(0o750, "open to other users (mode 750)"), (0o701, "open to other users (mode 701)")] {
        fs::set_permissions(place.home(), Permissions::from_mode(home)).unwrap();
        place.estop(&["log", "show"]).has(1, &[words, "chmod 700"]);
        run(place.home().to_str().unwrap()).has(1, &[words]);
    }
}

/// Neither a run nor a look is possible, and the database is as it was, to the last byte.
#[track_caller]
fn left_alone(place: &Place, words: &[&str]) {
    let path = place.home().join("estop.db");
    let before = fs::read(&path).unwrap();
    let checks = |ended: Ended, what: &str| {
        let ended = ended.has(1, words);
        assert_eq!(ended.stdout, "", "{what}");
        assert!(fs::read(&path).unwrap() == before, "`{what}` has changed the database");
    };
    checks(place.tool("kv", &RUN), "run");
    for args in [&["log", "rotate-key"][..], &["log", "checkpoint"], &["log", "prune", "--keep", "1s", "--to", "/x"]] {
        checks(place.estop(args), &args.join(" "));
    }
    LOOKS.iter().for_each(|look| checks(place.estop(look), &look.join(" ")));
}

/// A database that a newer version has made is refused and left alone, however it was made.
#[test]
fn a_home_of_a_newer_version_is_refused_and_left_alone() {
    let place = Place::lived();
    let version: i32 = place.database().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    place.database().pragma_update(None, "user_version", 1000).unwrap();
    let words = ["has version 1000", "use a newer estop, nothing was changed"];
    left_alone(&place, &words);
    let mode =
        |mode| place.database().pragma_update_and_check(None, "journal_mode", mode, |row| row.get::<_, String>(0));
    assert_eq!(mode("DELETE").unwrap(), "delete");
    left_alone(&place, &words);
    place.database().pragma_update(None, "user_version", version).unwrap();
    place.call();
    place.estop(&["log", "verify"]).has(0, &[]);
}

/// One of an older version is brought up to date, with what is in it.
#[test]
fn a_home_of_an_older_version_is_brought_up_to_date() {
    let place = Place::lived();
    place.database().execute_batch("DROP TABLE workspace; PRAGMA user_version = 1").unwrap();
    place.call();
    place.estop(&["log", "verify"]).has(0, &[]);
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name = 'workspace'";
    assert_eq!(place.database().query_row(tables, [], |row| row.get::<_, i32>(0)).unwrap(), 1);
}

/// So is a database of somebody else, and a file that is none.
#[test]
fn a_database_that_is_not_ours_is_refused_and_left_alone() {
    let place = Place::new();
    estop::Home::open(place.home()).unwrap();
    let path = place.home().join("estop.db");
    let theirs = Connection::open(&path).unwrap();
    theirs
        .execute_batch("CREATE TABLE log (seq INTEGER PRIMARY KEY, line TEXT); INSERT INTO log VALUES (1, 'x')")
        .unwrap();
    drop(theirs);
    left_alone(&place, &["is not a database of estop"]);
    let theirs = Connection::open(&path).unwrap();
    theirs.pragma_update(None, "application_id", 7).unwrap();
    theirs.pragma_update(None, "user_version", 1).unwrap();
    drop(theirs);
    left_alone(&place, &["is not a database of estop"]);
    for bytes in [vec![b'x'; 5000], fs::read(env!("CARGO_BIN_EXE_estop")).unwrap()[..5000].to_vec()] {
        fs::write(&path, bytes).unwrap();
        left_alone(&place, &["file is not a database"]);
    }
}
