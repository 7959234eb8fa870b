//! Row 35: a guest that tries every way to whatever stops it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::scene::Scene;

/// What there is below a path, and when what it is was changed last.
fn below(path: &Path, found: &mut BTreeMap<PathBuf, (i64, i64)>) {
    let Ok(seen) = fs::symlink_metadata(path) else { return };
    // The log and its files change with every call.
    let is_log = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("estop.db"));
    let changed = if is_log || seen.is_dir() { (0, 0) } else { (seen.mtime(), seen.size().cast_signed()) };
    found.insert(path.to_owned(), changed);
    if seen.is_dir() {
        fs::read_dir(path).unwrap().flatten().for_each(|entry| below(&entry.path(), found));
    }
}

fn all(scene: &Scene, sockets: &Path) -> BTreeMap<PathBuf, (i64, i64)> {
    let mut found = BTreeMap::new();
    for path in [&*scene.machine.home(), sockets, &scene.config_path(), Path::new("/var/lib/estop")] {
        below(path, &mut found);
    }
    found
}

/// Neither halts, log, keys, sockets nor configuration: it sees none of them, changes none of them, and is halted as ever.
#[test]
fn a_guest_reaches_nothing_that_stops_it() {
    let (scene, host) = Scene::serving(&["misc", "runaway"]);
    scene.machine.estop(&["halt", "--agent", "somebody"]).has(0, &[]);
    let sockets = scene.socket(&host).parent().unwrap().to_owned();
    let before = all(&scene, &sockets);
    assert!(before.keys().any(|path| path.ends_with("estop.db")));
    assert!(before.keys().any(|path| path.parent().is_some_and(|folder| folder.ends_with("halts/latched"))));
    assert!(before.keys().any(|path| fs::metadata(path).unwrap().file_type().is_socket()));
    let mut paths: Vec<&str> = before.keys().map(|path| path.to_str().unwrap()).collect();
    paths.extend(["/", "/etc/passwd", "/proc/self/environ", "/var/lib/estop/halts/inbox", "/run/estop", "/bin/sh"]);
    let variables = ["ESTOP_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "HOME", "PATH", "NOTIFY_SOCKET"];
    let reached = scene.call("reach", &json!({ "paths": paths, "variables": variables }), &["--deadline", "5m"]);
    assert_eq!(reached.has(0, &[]).json(), Value::Array(Vec::new()));
    assert_eq!(all(&scene, &sockets), before);
    scene.machine.estop(&["log", "verify"]).has(0, &[]);
    let spinning = scene.calling("spin", &json!({}), &["--agent", "a"]);
    scene.until_running(1);
    scene.machine.estop(&["halt", "--agent", "a"]).has(0, &[]);
    spinning.ended().has(11, &[]);
}
