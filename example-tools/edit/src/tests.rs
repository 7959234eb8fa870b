//! The tools as a host calls them. Natively they work on the current folder, of which a process has one.

use std::sync::{Mutex, MutexGuard, PoisonError};

use estop_tool::testing::Run;
use estop_tool::{Tool, ToolError};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// A folder that is the current one.
struct Place {
    folder: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Place {
    fn new(files: &[(&str, &str)]) -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        std::env::set_current_dir(folder.path()).unwrap();
        for (path, text) in files {
            make_parent(path).unwrap();
            fs::write(path, text).unwrap();
        }
        Self { folder, _turn: turn }
    }

    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.folder.path().join(path)).ok()
    }
}

fn call<T: Tool>(input: Value) -> Result<Value, ToolError> {
    let ended = Run::new().call_json::<T>(&input.to_string());
    ended.result.map(|answer| serde_json::from_str(&answer.json).unwrap())
}

fn code<T: Tool>(input: Value) -> String {
    call::<T>(input).unwrap_err().code().to_owned()
}

#[test]
fn words_are_replaced_in_the_files_that_are_meant() {
    let place = Place::new(&[
        ("src/a.rs", "let colour = colours(colour);"),
        ("src/b.md", "colour"),
        ("target/c.rs", "colour"),
        ("d.bin", "colour\0"),
    ]);
    let input =
        json!({ "find": "colour", "replace": "$1color", "word": true, "files": { "include": ["*.rs", "*.bin"] } });
    let done = call::<replace>(input).unwrap();
    assert_eq!(
        done,
        json!({ "files": 1, "places": 2, "changed": [{ "path": "src/a.rs", "places": 2 }], "skipped": 1 })
    );
    assert_eq!(place.text("src/a.rs").unwrap(), "let $1color = colours($1color);");
    assert_eq!(place.text("src/b.md").unwrap() + &place.text("target/c.rs").unwrap(), "colourcolour");
}

#[test]
fn expressions_are_replaced_with_their_groups() {
    let place = Place::new(&[("a.txt", "one 1\ntwo 2\n"), ("deep/b.txt", "three 3\n")]);
    let input = json!({ "find": r"^(\w+) (\d)$", "replace": "$2 ${1}", "regex": true, "files": { "path": "a.txt" } });
    assert_eq!(call::<replace>(input).unwrap()["places"], 2);
    assert_eq!(place.text("a.txt").unwrap(), "1 one\n2 two\n");
    for bad in [json!({ "find": "(", "replace": "", "regex": true }), json!({ "find": "", "replace": "x" })] {
        assert!(call::<replace>(bad).unwrap_err().message().contains("find"));
    }
    assert_eq!(code::<replace>(json!({ "find": "x", "replace": "y", "files": { "path": "missing" } })), "not-found");
    assert!(call::<replace>(json!({ "find": "x", "replace": "y", "files": { "path": "../x" } })).is_err());
}

#[test]
fn files_are_made_and_moved() {
    let place = Place::new(&[("there.txt", "there")]);
    call::<create>(json!({ "path": "new/folder/a.txt", "content": "a" })).unwrap();
    assert_eq!(code::<create>(json!({ "path": "there.txt", "content": "b" })), "exists");
    call::<create>(json!({ "path": "there.txt", "content": "b", "overwrite": true })).unwrap();
    call::<r#move>(json!({ "from": "new/folder", "to": "else/where" })).unwrap();
    assert_eq!(code::<r#move>(json!({ "from": "there.txt", "to": "else/where/a.txt" })), "exists");
    assert_eq!(code::<r#move>(json!({ "from": "missing", "to": "x" })), "not-found");
    assert_eq!((place.text("else/where/a.txt").unwrap(), place.text("there.txt").unwrap()), ("a".into(), "b".into()));
}

#[test]
fn a_diff_of_several_files_is_applied() {
    let place = Place::new(&[("a.txt", "1\n2\n3\n"), ("gone.txt", "--- x\n+++ y\n")]);
    let diff = "diff --git a/a.txt b/a.txt\nindex 1..2 100644\n--- a/a.txt\n+++ b/a.txt\n@@ -1,3 +1,3 @@\n 1\n-2\n+two\n 3\n\
                diff --git a/gone.txt b/gone.txt\n--- a/gone.txt\n+++ /dev/null\n@@ -1,2 +0,0 @@\n---- x\n-+++ y\n\
                --- /dev/null\n+++ b/new/b.txt\t2026-01-01\n@@ -0,0 +1 @@\n+new\n\\ No newline at end of file\n\n";
    let done = call::<apply_diff>(json!({ "diff": diff })).unwrap();
    assert_eq!(done, json!({ "changed": ["a.txt"], "created": ["new/b.txt"], "removed": ["gone.txt"] }));
    assert_eq!(place.text("a.txt").unwrap(), "1\ntwo\n3\n");
    assert_eq!((place.text("gone.txt"), place.text("new/b.txt")), (None, Some("new".into())));
    assert_eq!(code::<apply_diff>(json!({ "diff": diff })), "does-not-fit");
    for bad in ["", "nothing", "--- a/../x\n+++ b/../x\n@@ -1 +1 @@\n-a\n+b\n", "--- a/x\n+++ b/x\n@@ what @@\n"] {
        assert!(call::<apply_diff>(json!({ "diff": bad })).is_err(), "{bad}");
    }
}

/// Stopped half-way: the host discards what was written so far.
#[test]
fn a_stop_is_heard_between_two_files() {
    let _place = Place::new(&[("a.txt", "x"), ("b.txt", "x"), ("c.txt", "x")]);
    let input = json!({ "find": "x", "replace": "y" }).to_string();
    let ended = Run::new().interrupt_at_checkpoint(3).call_json::<replace>(&input);
    assert!(ended.result.unwrap_err().is_interrupted());
}
