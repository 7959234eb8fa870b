//! Every function of `wasi:filesystem`, on a workspace and on the same folder by Wasmtime itself: the same answers, and the
//! same folder afterwards.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

use super::plain::Plain;
use super::*;

fn fill(folder: &Path) {
    fs::create_dir_all(folder.join("old/dir")).unwrap();
    fs::create_dir_all(folder.join("a/b")).unwrap();
    fs::write(folder.join("old/a"), "0123456789".repeat(20_000)).unwrap();
    fs::write(folder.join("old/dir/b"), "b").unwrap();
    fs::write(folder.join("a/b/c"), "c".repeat(65_536)).unwrap();
    fs::write(folder.join("b"), "").unwrap();
    std::os::unix::fs::symlink("old/dir", folder.join("c")).unwrap();
    std::os::unix::fs::symlink("c", folder.join("a/loop")).unwrap();
    std::os::unix::fs::symlink("loop", folder.join("loop")).unwrap();
    std::os::unix::fs::symlink("/etc", folder.join("out")).unwrap();
    std::os::unix::fs::symlink("../../etc", folder.join("up")).unwrap();
}

/// A home for estop and Wasmtime alone, each with a copy of one folder.
struct Both {
    place: Place,
    plain: Plain,
    theirs: tempfile::TempDir,
}

impl Both {
    fn new() -> Self {
        let plain = Plain::new(&guests::bytes("files"));
        Self { place: Place::new(), plain, theirs: tempfile::tempdir().unwrap() }
    }

    async fn same(&self, steps: Value) {
        let theirs = self.theirs.path().join("work");
        for folder in [&self.place.folder, &theirs] {
            // There is one at the beginning.
            let _ = fs::remove_dir_all(folder);
            fs::create_dir(folder).unwrap();
            fill(folder);
        }
        let host = self.place.host();
        let files = files(&host).await;
        let input = json!({ "root": "/", "steps": steps });
        let ours = super::steps(&host, &files, steps.clone()).await;
        let output = self.plain.run(&theirs, "steps", &input.to_string()).await.unwrap();
        let output: Value = serde_json::from_str(&output.json).unwrap();
        for (number, (one, other)) in ours.iter().zip(answers(&output)).enumerate() {
            assert!(
                alike(&steps[number], one, &other),
                "step {number}: {}: {one}, {other}; all: {steps}",
                steps[number]
            );
        }
        assert_eq!(self.place.tree(), tree(&theirs), "{steps}");
    }
}

/// What fails with a path that ends with dots may say so in several ways; and of two paths either may be looked at first.
fn alike(step: &Value, one: &str, other: &str) -> bool {
    let dots = |path: &Value| path.as_str().is_some_and(|path| path.ends_with('.'));
    let both_fail = one.starts_with('!') && other.starts_with('!');
    one == other || (both_fail && (dots(&step["path"]) || step["new_path"].is_string()))
}

/// Each function, with its errors.
#[tokio::test]
async fn each_function_answers_as_wasmtime_does() {
    let both = Both::new();
    let open = |at: &str, path: &str, name: &str, how: &str| {
        let how: Vec<_> = how.split(' ').filter(|word| !word.is_empty()).collect();
        json!({ "do": "open", "at": at, "path": path, "name": name, "how": how })
    };
    let mut steps = Vec::new();
    for (path, how) in [
        ("b", "read"),
        ("b", "write"),
        ("b", "read write"),
        ("b", ""),
        ("b", "directory"),
        ("b/", "read"),
        ("missing", "read"),
        ("missing/", "create write"),
        ("a", "directory read"),
        ("a", "read"),
        ("a", "write"),
        ("a", "create"),
        ("a", "truncate write"),
        ("a", "directory create"),
        ("a/.", "directory"),
        ("a/../a", "directory"),
        ("..", "directory"),
        ("a/../..", "directory"),
        ("/etc", "directory"),
        ("", "directory"),
        ("c", "directory"),
        ("c", "directory follow"),
        ("c", "read"),
        ("loop", "read follow"),
        ("loop", "read"),
        ("out", "directory follow"),
        ("out/passwd", "read"),
        ("up/passwd", "read"),
        ("up", "directory follow"),
        ("new", "create write"),
        ("new", "create exclusive write"),
        ("new", "create read"),
        ("other", "create exclusive"),
        ("old/a/x", "read"),
        ("old/a", "truncate write"),
        ("c/b", "read write"),
    ] {
        steps.push(open("root", path, "x", how));
        steps.push(json!({ "do": "flags", "name": "x" }));
        steps.push(json!({ "do": "kind", "name": "x" }));
        steps.push(json!({ "do": "stat", "name": "x" }));
        steps.push(json!({ "do": "read", "name": "x", "bytes": 5, "offset": 0 }));
        steps.push(json!({ "do": "read-stream", "name": "x", "bytes": 5, "offset": 0 }));
        steps.push(json!({ "do": "write", "name": "x", "text": "hello", "offset": 3 }));
        steps.push(json!({ "do": "write-stream", "name": "x", "text": "stream", "offset": 10 }));
        steps.push(json!({ "do": "write-stream", "name": "x", "text": "end", "offset": null }));
        steps.push(json!({ "do": "set-size", "name": "x", "bytes": 12 }));
        steps.push(json!({ "do": "read", "name": "x", "bytes": 100, "offset": 0 }));
        steps.push(json!({ "do": "advise", "name": "x" }));
        steps.push(json!({ "do": "sync", "name": "x" }));
        steps.push(json!({ "do": "sync-data", "name": "x" }));
        steps.push(json!({ "do": "list", "name": "x" }));
        steps.push(json!({ "do": "same", "name": "x", "other": "root" }));
        steps.push(json!({ "do": "hash", "name": "x", "at": "root", "path": path, "follow": true }));
        steps.push(json!({ "do": "set-times", "name": "x", "accessed": 1000, "modified": 2000 }));
        steps.push(json!({ "do": "close", "name": "x" }));
    }
    for path in ["b", "a", "c", "loop", "out", "up", "missing", "a/b/c", "..", "c/b", "a/", "."] {
        for follow in [true, false] {
            steps.push(json!({ "do": "stat-at", "at": "root", "path": path, "follow": follow }));
            steps.push(json!({ "do": "hash", "name": "root", "at": "root", "path": path, "follow": follow }));
            steps.push(json!({ "do": "set-times-at", "at": "root", "path": path, "follow": follow, "accessed": null, "modified": 77 }));
            steps.push(json!({ "do": "stat-at", "at": "root", "path": path, "follow": follow }));
        }
        steps.push(json!({ "do": "read-link", "at": "root", "path": path }));
    }
    let two = |what: &str, path: &str, new: &str| json!({ "do": what, "at": "root", "path": path, "to": "root", "new_path": new, "follow": false });
    for (path, new) in [
        ("b", "hard"),
        ("b", "a"),
        ("a", "hard2"),
        ("missing", "x"),
        ("b", "missing/x"),
        ("c", "linked"),
        ("b", "../x"),
        ("out", "hard3"),
    ] {
        steps.push(two("link", path, new));
        steps.push(json!({ "do": "stat-at", "at": "root", "path": new, "follow": false }));
    }
    for (target, path) in
        [("b", "s1"), ("missing", "s2"), ("/etc", "s3"), ("../x", "s4"), ("b", "s1"), ("b", "no/s5"), ("", "s6")]
    {
        steps.push(json!({ "do": "symlink", "at": "root", "target": target, "path": path }));
        steps.push(json!({ "do": "read-link", "at": "root", "path": path }));
    }
    for path in ["d1", "d1", "d1/d2/", "no/d3", "b", "b/d4", "..", ".", "d5/.", ""] {
        steps.push(json!({ "do": "create-directory", "at": "root", "path": path }));
    }
    for (path, new) in [
        ("d1", "d6"),
        ("d6", "d6/d2/inside"),
        ("d6", "a"),
        ("b", "a"),
        ("a", "b"),
        ("hard", "b"),
        ("old", "d6/d2"),
        ("d6/d2/a", "moved"),
        ("missing", "x"),
        ("b", "b"),
        (".", "x"),
        ("b", "../x"),
        ("c", "c2"),
    ] {
        steps.push(two("rename", path, new));
    }
    for path in ["a", "b", "missing", "c2", "s2", "d6", "..", "."] {
        steps.push(json!({ "do": "unlink", "at": "root", "path": path }));
    }
    for path in ["a", "moved", "d6", "d6/d2/dir", "missing", "..", "."] {
        steps.push(json!({ "do": "remove-directory", "at": "root", "path": path }));
    }
    steps.push(json!({ "do": "list", "name": "root" }));
    both.same(json!(steps)).await;
}

/// What goes where something else was, or out of what goes.
#[tokio::test]
async fn moves_among_moves_are_made_as_wasmtime_makes_them() {
    let both = Both::new();
    let rename =
        |path: &str, new: &str| json!({ "do": "rename", "at": "root", "path": path, "to": "root", "new_path": new });
    let link = |path: &str, new: &str| json!({ "do": "link", "at": "root", "path": path, "to": "root", "new_path": new, "follow": false });
    let at = |what: &str, path: &str| json!({ "do": what, "at": "root", "path": path });
    let make = |path: &str| {
        [
            json!({ "do": "open", "at": "root", "path": path, "name": "x", "how": ["create", "write"] }),
            json!({ "do": "write", "name": "x", "text": "made", "offset": 0 }),
            json!({ "do": "close", "name": "x" }),
        ]
    };
    let out_of_what_goes =
        [rename("a/b", "d"), at("unlink", "d/c"), at("unlink", "a/loop"), at("remove-directory", "a")];
    let look = |path: &str| json!({ "do": "stat-at", "at": "root", "path": path, "follow": false });
    for steps in [
        out_of_what_goes.to_vec(),
        [&out_of_what_goes[..], &[at("create-directory", "d/c")]].concat(),
        vec![rename("a", "t"), rename("old", "a"), rename("t", "old")],
        vec![
            rename("a/b", "old/dir/b2"),
            at("unlink", "a/loop"),
            at("remove-directory", "a"),
            at("create-directory", "a"),
            rename("old/dir/b2", "a/b"),
        ],
        [&[rename("old/a", "x")], &make("old/a")[..], &[rename("x", "a/b/c")]].concat(),
        [&[at("unlink", "a/b/c"), at("remove-directory", "a/b")], &make("a/b")[..]].concat(),
        vec![at("unlink", "old/dir/b"), at("create-directory", "old/dir/b"), at("create-directory", "old/dir/b/c")],
        vec![link("old/a", "h"), at("unlink", "old/a"), rename("h", "old/a")],
        [&[link("old/a", "h"), rename("old", "a/old")], &make("a/old/dir/new")[..], &[at("unlink", "a/old/a")]]
            .concat(),
        [&[at("create-directory", "n"), rename("a", "n/a")], &make("n/a/b/c")[..], &[rename("n", "a")]].concat(),
        [&[rename("old/dir", "dir"), rename("dir", "old/dir")], &make("old/dir/b")[..]].concat(),
        [&[link("b", "hard")], &make("hard")[..], &[rename("hard", "a/b/c")]].concat(),
        [&[link("b", "hard"), look("b")], &make("new")[..], &[rename("new", "b"), look("hard"), look("b")]].concat(),
    ] {
        both.same(json!(steps)).await;
    }
}

/// Without `.`: Wasmtime takes a link before it for the link itself, where POSIX has what it leads to.
fn path() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        8 => prop::sample::select(vec!["a", "b", "c", "d"]),
        2 => prop::sample::select(vec!["old", "dir"]),
        1 => Just(".."),
    ];
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn step() -> impl Strategy<Value = Value> {
    let at = || prop::sample::select(vec!["root", "root", "root", "x", "y"]);
    let name = || prop::sample::select(vec!["x", "y"]);
    let how = prop::sample::select(vec![
        "read",
        "write",
        "read write",
        "create write",
        "create exclusive write read",
        "directory read",
        "follow read",
        "truncate write",
        "follow directory",
        "follow create read write",
    ]);
    let offset = || prop_oneof![Just(0_u64), 0..300_u64, 60_000..70_000_u64, 131_000..200_000_u64];
    let text =
        || prop_oneof![4 => 1..300_usize, 1 => 65_000..140_000_usize].prop_map(|bytes| "text ".repeat(bytes / 5 + 1));
    prop_oneof![
        6 => (at(), path(), name(), how).prop_map(|(at, path, name, how)| {
            let how: Vec<_> = how.split(' ').collect();
            json!({ "do": "open", "at": at, "path": path, "name": name, "how": how })
        }),
        3 => (name(), offset(), 1..100_000_u64)
            .prop_map(|(name, offset, bytes)| json!({ "do": "read-stream", "name": name, "bytes": bytes, "offset": offset })),
        3 => (name(), offset(), text())
            .prop_map(|(name, offset, text)| json!({ "do": "write", "name": name, "text": text, "offset": offset })),
        2 => (name(), prop::option::of(offset()), text())
            .prop_map(|(name, offset, text)| json!({ "do": "write-stream", "name": name, "text": text, "offset": offset })),
        1 => (name(), offset()).prop_map(|(name, bytes)| json!({ "do": "set-size", "name": name, "bytes": bytes })),
        1 => (name(), 1..9999_u64).prop_map(|(name, s)| json!({ "do": "set-times", "name": name, "accessed": s, "modified": s })),
        1 => name().prop_map(|name| json!({ "do": "stat", "name": name })),
        1 => name().prop_map(|name| json!({ "do": "list", "name": name })),
        1 => name().prop_map(|name| json!({ "do": "close", "name": name })),
        2 => (at(), path(), any::<bool>())
            .prop_map(|(at, path, follow)| json!({ "do": "stat-at", "at": at, "path": path, "follow": follow })),
        3 => (at(), path()).prop_map(|(at, path)| json!({ "do": "create-directory", "at": at, "path": path })),
        2 => (at(), path()).prop_map(|(at, path)| json!({ "do": "remove-directory", "at": at, "path": path })),
        2 => (at(), path()).prop_map(|(at, path)| json!({ "do": "unlink", "at": at, "path": path })),
        4 => (at(), path(), at(), path()).prop_map(|(at, path, to, new)| {
            json!({ "do": "rename", "at": at, "path": path, "to": to, "new_path": new })
        }),
        1 => (at(), path(), at(), path()).prop_map(|(at, path, to, new)| {
            json!({ "do": "link", "at": at, "path": path, "to": to, "new_path": new, "follow": false })
        }),
        1 => (at(), path(), path()).prop_map(|(at, target, path)| {
            json!({ "do": "symlink", "at": at, "target": target, "path": path })
        }),
        1 => (at(), path()).prop_map(|(at, path)| json!({ "do": "read-link", "at": at, "path": path })),
        1 => (name(), name()).prop_map(|(name, other)| json!({ "do": "same", "name": name, "other": other })),
    ]
}

/// Whatever a guest does in whatever order.
#[tokio::test]
async fn random_steps_are_answered_as_wasmtime_does() {
    let both = Both::new();
    let mut runner = TestRunner::new(Config::default());
    let steps = prop::collection::vec(step(), 1..80);
    for _ in 0..RUNS {
        let steps = steps.new_tree(&mut runner).unwrap().current();
        both.same(json!(steps)).await;
    }
}

const RUNS: usize = 150;
