//! Row 35 for files, and what a folder may hold that no tool has put there: no way out, no wait, and nothing lost.

use std::ffi::OsStr;
use std::os::unix::fs::symlink;

use estop::{BuildError, GrantError, WorkspaceError};

use super::*;

fn at(what: &str, path: &str) -> Value {
    json!({ "do": what, "at": "root", "path": path, "follow": true })
}

fn open(path: &str, how: &[&str]) -> Value {
    json!({ "do": "open", "at": "root", "path": path, "name": "x", "how": how })
}

/// However it is spelled, there is no way out.
#[tokio::test]
async fn there_is_no_way_out() {
    let place = Place::new();
    let secret = place.folder.parent().unwrap().join("secret");
    fs::write(&secret, "secret").unwrap();
    for (number, target) in
        ["../secret", "/etc/passwd", "tree/../../secret", "tree/of/../../..", "s0"].iter().enumerate()
    {
        symlink(target, place.folder.join(format!("s{number}"))).unwrap();
    }
    symlink("..", place.folder.join("tree/up")).unwrap();
    let host = place.host();
    let files = files(&host).await;
    let mut tried = Vec::new();
    for path in [
        "../secret",
        "tree/../../secret",
        "/etc/passwd",
        "s0",
        "s1",
        "s2",
        "s3/secret",
        "s4",
        "tree/up/../secret",
        "tree/up/up/secret",
        "./../secret",
        "tree/of/../../../secret",
        "//etc/passwd",
        "..",
    ] {
        tried.push(open(path, &["read", "follow"]));
        tried.push(open(path, &["create", "write", "follow"]));
        tried.push(at("stat-at", path));
        tried.push(json!({ "do": "rename", "at": "root", "path": path, "to": "root", "new_path": "stolen" }));
        tried.push(
            json!({ "do": "rename", "at": "root", "path": "kept.txt", "to": "root", "new_path": format!("{path}/x") }),
        );
        tried.push(
            json!({ "do": "link", "at": "root", "path": path, "to": "root", "new_path": "stolen", "follow": false }),
        );
        tried.push(json!({ "do": "read", "name": "x", "bytes": 100, "offset": 0 }));
    }
    for answer in steps(&host, &files, json!(tried)).await {
        assert!(!answer.contains("secret") && !answer.contains("root:"), "{answer}");
    }
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
    assert_eq!(fs::read_dir(secret.parent().unwrap()).unwrap().count(), 3);
}

/// Pipes, sockets, devices and mounts are seen, and never waited for.
#[tokio::test]
async fn special_files_are_seen_and_never_opened() {
    let place = Place::new();
    rustix::fs::mknodat(rustix::fs::CWD, place.folder.join("pipe"), rustix::fs::FileType::Fifo, 0o666.into(), 0)
        .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(place.folder.join("socket")).unwrap();
    fs::write(place.folder.join(OsStr::from_bytes(b"not \xff utf-8")), "x").unwrap();
    let host = place.host();
    let files = files(&host).await;
    let tried = json!([
        open("pipe", &["read"]),
        open("pipe", &["write"]),
        open("pipe", &["create", "write"]),
        open("socket", &["read"]),
        open("socket", &["truncate", "write"]),
        at("stat-at", "pipe"),
        { "do": "rename", "at": "root", "path": "pipe", "to": "root", "new_path": "tree/pipe" },
        { "do": "unlink", "at": "root", "path": "socket" },
        open(".", &["directory"]),
        { "do": "list", "name": "x" },
    ]);
    let answers = steps(&host, &files, tried).await;
    assert!(answers[..5].iter().all(|answer| answer.contains("no-such-device")), "{answers:?}");
    assert!(answers[5].starts_with("DescriptorType::Fifo"), "{answers:?}");
    assert!(answers[9].contains("illegal-byte-sequence") && answers[9].contains("kept.txt"), "{answers:?}");
    let tree = place.tree();
    assert!(tree.contains_key(&b"tree/pipe"[..]) && !tree.contains_key(&b"socket"[..]), "{tree:?}");
    assert!(tree.contains_key(&b"not \xff utf-8"[..]));
}

/// What is ours in the folder is not the guest's.
#[tokio::test]
async fn the_stage_is_hidden() {
    let place = Place::new();
    let host = place.host();
    let files = files(&host).await;
    let tried = json!([
        open(".estop-workspace", &["create", "write"]),
        { "do": "create-directory", "at": "root", "path": ".estop-workspace" },
        { "do": "rename", "at": "root", "path": "tree", "to": "root", "new_path": ".estop-workspace" },
        { "do": "symlink", "at": "root", "target": "tree", "path": ".estop-workspace" },
        at("stat-at", ".estop-workspace"),
        { "do": "create-directory", "at": "root", "path": ".ESTOP-workspace" },
        { "do": "create-directory", "at": "root", "path": "tree/.estop-workspace" },
    ]);
    let answers = steps(&host, &files, tried).await;
    assert!(answers[..4].iter().all(|answer| answer.contains("not-permitted")), "{answers:?}");
    assert!(answers[4].contains("no-entry"), "{answers:?}");
    assert_eq!(answers[5], "");
    assert!(answers[6].contains("not-permitted"), "{answers:?}");
}

/// To read is not to write.
#[tokio::test]
async fn a_folder_that_may_be_read_is_not_written() {
    let place = Place::new();
    let before = place.tree();
    let host = place.granting(WorkspaceGrant::read_only(&place.folder));
    let files = files(&host).await;
    let tried = json!([
        open("kept.txt", &["write"]),
        open("new", &["create", "write"]),
        open("kept.txt", &["truncate"]),
        { "do": "create-directory", "at": "root", "path": "d" },
        { "do": "unlink", "at": "root", "path": "kept.txt" },
        { "do": "remove-directory", "at": "root", "path": "tree/of/folders" },
        { "do": "rename", "at": "root", "path": "kept.txt", "to": "root", "new_path": "x" },
        { "do": "link", "at": "root", "path": "kept.txt", "to": "root", "new_path": "x", "follow": false },
        { "do": "symlink", "at": "root", "target": "kept.txt", "path": "x" },
        { "do": "set-times-at", "at": "root", "path": "kept.txt", "follow": true, "accessed": 1, "modified": 1 },
        open("kept.txt", &["read"]),
        { "do": "read", "name": "x", "bytes": 100, "offset": 0 },
        { "do": "set-size", "name": "x", "bytes": 0 },
        { "do": "write", "name": "x", "text": "x", "offset": 0 },
    ]);
    let answers = steps(&host, &files, tried).await;
    assert!(answers[..10].iter().all(|answer| answer.starts_with("! ")), "{answers:?}");
    assert_eq!(answers[11], "as it was false");
    assert!(answers[12..].iter().all(|answer| answer.starts_with("! ")), "{answers:?}");
    assert_eq!(place.tree(), before);
}

/// Without a grant there is nothing.
#[tokio::test]
async fn what_is_not_granted_is_not_there() {
    let place = Place::new();
    let grants = Grants::new().workspace(WorkspaceGrant::new(&place.folder));
    let host = place.builder().grant(Grantee::everyone().agent("somebody"), grants).build().unwrap();
    let files = files(&host).await;
    let refused = call(&host, &files, "steps", json!({ "root": "/", "steps": [] })).await;
    assert_eq!(refused.end.status(), "failed", "{:?}", refused.end);
    let outcome = ended(|| host.agent("somebody").call(&files, "steps", json!({ "root": "/", "steps": [] }))).await;
    completed(&outcome);
}

/// Row 40: each bound is met by something.
#[tokio::test]
async fn bounds_hold() {
    let place = Place::new();
    let before = place.tree();
    let limits = WorkspaceLimits { bytes_max: 1 << 20, entries_max: 20, memory_bytes_max: 0 };
    let host = place.granting(WorkspaceGrant::new(&place.folder).limits(limits));
    let files = files(&host).await;
    let much = call(&host, &files, "write_much", json!({ "path": "big", "bytes": 2 << 20, "spin": false })).await;
    // When it writes, not when it commits.
    assert!(matches!(&much.end, End::Failed(failure) if failure.code == "io"), "{:?}", much.end);
    let many = call(&host, &files, "write_many", json!({ "count": 30, "bytes": 1, "text": "x" })).await;
    assert_eq!(many.end.status(), "failed", "{:?}", many.end);
    let looks: Vec<_> = (0..30).map(|number| at("stat-at", &format!("missing{number}"))).collect();
    let answers = steps(&host, &files, json!(looks)).await;
    assert!(answers[0].contains("no-entry") && answers[29].contains("insufficient-memory"), "{answers:?}");
    assert_eq!(place.tree(), before);
}

/// What is not written takes no room, and a path that leads round and round comes to an end.
#[tokio::test]
async fn holes_and_long_ways_cost_little() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    for number in 0..40 {
        let next = format!("{}round{}", "tree/../".repeat(400), number + 1);
        symlink(next, place.folder.join(format!("round{number}"))).unwrap();
    }
    let host = place.host();
    let files = files(&host).await;
    let tried = json!([
        open("sparse", &["create", "write", "read"]),
        { "do": "set-size", "name": "x", "bytes": 1_u64 << 40 },
        { "do": "write", "name": "x", "text": "end", "offset": (1_u64 << 40) + 5 },
        { "do": "write", "name": "x", "text": "x", "offset": u64::MAX },
        { "do": "write", "name": "x", "text": "x", "offset": i64::MAX },
        { "do": "read", "name": "x", "bytes": 9, "offset": 1_u64 << 40 },
        at("stat-at", "round0"),
    ]);
    let answers = steps(&host, &files, tried).await;
    assert_eq!(answers[..3], ["", "", "3"]);
    assert!(answers[3..5].iter().all(|answer| answer.contains("file-too-large")), "{answers:?}");
    assert_eq!(answers[5], "\0\0\0\0\0end false");
    assert!(answers[6].contains("loop"), "{answers:?}");
    let found = fs::metadata(place.folder.join("sparse")).unwrap();
    assert_eq!(found.len(), (1 << 40) + 8);
    assert!(found.blocks() < 1000, "{} blocks", found.blocks());
}

/// What cannot be promised is refused, and says why.
#[tokio::test]
async fn what_cannot_be_granted_is_refused_when_the_host_is_built() {
    let place = Place::new();
    let refused = |grants: Grants| match place.builder().grant(Grantee::everyone(), grants).build() {
        Err(BuildError::Grant(error)) => error,
        other => panic!("{:?}", other.err()),
    };
    let home = place.home.path();
    for folder in [home.to_owned(), home.join("cache"), home.parent().unwrap().to_owned(), "/".into()] {
        let error = refused(Grants::new().workspace(WorkspaceGrant::read_only(&folder)));
        assert!(matches!(error, GrantError::Workspace(WorkspaceError::Overlaps { .. })), "{error}");
    }
    let error = refused(Grants::new().workspace(WorkspaceGrant::new(place.folder.join("missing"))));
    assert!(matches!(error, GrantError::Workspace(WorkspaceError::Open { .. })), "{error}");
    let error = refused(Grants::new().workspace(WorkspaceGrant::new(place.folder.join("kept.txt"))));
    assert!(matches!(error, GrantError::Workspace(WorkspaceError::Open { .. })), "{error}");
    let error = refused(Grants::new().workspace(WorkspaceGrant::new(&place.folder).at("data")));
    assert!(matches!(error, GrantError::At(_)), "{error}");
    let twice = WorkspaceGrant::new(&place.folder);
    let error = refused(Grants::new().workspace(twice.clone()).workspace(twice.clone()));
    assert!(matches!(error, GrantError::Twice(_)), "{error}");
    // A store that forgets cannot finish what was decided.
    let memory = Host::builder().grant(Grantee::everyone(), Grants::new().workspace(twice)).build();
    let Err(BuildError::Grant(GrantError::Workspace(WorkspaceError::NotDurable(_)))) = memory else {
        panic!("{:?}", memory.err());
    };
}
