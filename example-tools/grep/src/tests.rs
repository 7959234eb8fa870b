//! The tool as a host calls it. Natively it works on the current folder, of which a process has one.

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

use estop_tool::ToolError;
use estop_tool::testing::Run;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::search;

struct Place {
    _folder: TempDir,
    _turn: MutexGuard<'static, ()>,
}

fn place() -> Place {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    std::env::set_current_dir(folder.path()).unwrap();
    for (path, text) in [
        ("src/a.rs", "fn one() {}\nfn two() {}\n// nothing\n"),
        ("src/deep/b.rs", "fn three() {}\n"),
        ("notes.md", "a fn in a sentence, and ONE more\n"),
        ("left-out.rs", "fn left_out() {}\n"),
        (".hidden.rs", "fn hidden() {}\n"),
        (".gitignore", "left-out.rs\n"),
    ] {
        fs::create_dir_all(std::path::Path::new(path).parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fs::write("binary", b"fn \0 binary\n").unwrap();
    Place { _folder: folder, _turn: turn }
}

fn call(input: Value) -> Result<Value, ToolError> {
    let ended = Run::new().call_json::<search>(&input.to_string());
    ended.result.map(|answer| serde_json::from_str(&answer.json).unwrap())
}

fn lines(input: Value) -> Vec<String> {
    let line = |line: &Value| {
        format!("{}:{}:{}", line["path"].as_str().unwrap(), line["line"], line["text"].as_str().unwrap())
    };
    call(input).unwrap()["lines"].as_array().unwrap().iter().map(line).collect()
}

#[test]
fn lines_are_found_where_rg_finds_them() {
    let _place = place();
    let all = [
        "notes.md:1:a fn in a sentence, and ONE more",
        "src/a.rs:1:fn one() {}",
        "src/a.rs:2:fn two() {}",
        "src/deep/b.rs:1:fn three() {}",
    ];
    assert_eq!(lines(json!({ "pattern": r"\bfn\b" })), all);
    assert_eq!(lines(json!({ "pattern": r"\bfn\b", "globs": ["*.rs", "!deep"] })), all[1..3]);
    assert_eq!(lines(json!({ "pattern": "fn", "path": "src/deep" })), all[3..]);
    assert_eq!(lines(json!({ "pattern": "one", "ignore_case": true, "word": true })), all[..2]);
    assert_eq!(lines(json!({ "pattern": "() {}", "literal": true })).len(), 3);
    assert_eq!(lines(json!({ "pattern": "fn", "hidden": true })).len(), 6);
}

#[test]
fn answers_are_bounded() {
    let _place = place();
    let some = call(json!({ "pattern": "fn", "limit": 2 })).unwrap();
    assert_eq!((some["lines"].as_array().unwrap().len(), &some["more"], &some["files"]), (2, &json!(true), &json!(2)));
    let beside = call(json!({ "pattern": "two", "context": 1 })).unwrap();
    let contexts: Vec<_> = beside["lines"].as_array().unwrap().iter().map(|line| line["context"] == true).collect();
    assert_eq!(contexts, [true, false, true]);
    fs::write("long.txt", "long ".repeat(10_000)).unwrap();
    assert_eq!(call(json!({ "pattern": "long" })).unwrap()["lines"][0]["text"].as_str().unwrap().len(), 512);
}

/// Nor does a file with one endless line keep the others from being found.
#[test]
fn a_line_without_end_takes_no_memory() {
    let _place = place();
    fs::write("a-long-line.txt", "fn ".repeat(10 << 20)).unwrap();
    assert_eq!(lines(json!({ "pattern": "fn (one|two|three)" })).len(), 3);
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let _place = place();
    for (input, word) in [
        (json!({ "pattern": "(" }), "pattern"),
        (json!({ "pattern": "x", "limit": 0 }), "limit"),
        (json!({ "pattern": "x", "context": 21 }), "context"),
        (json!({ "pattern": "x", "path": "../x" }), "path"),
        (json!({ "pattern": "x", "globs": ["[z-a]"] }), "globs"),
        (json!({ "pattern": "x", "path": "missing" }), "missing"),
    ] {
        assert!(call(input.clone()).unwrap_err().message().contains(word), "{input}");
    }
}
