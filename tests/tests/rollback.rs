//! Promise 3 where much was written: however much that is, a stop is a stop. Alone, as it keeps the disk busy.

use std::fs;
use std::path::Path;
use std::time::Duration;

use estop::{CallLimits, Cause, End, Grantee, Grants, Source, WorkspaceGrant, WorkspaceLimits};
use estop_tests::home::temporary;
use estop_tests::{PATIENCE, guests, small, within};
use serde_json::json;

/// Generous: `estop drill` and the benches have the times.
const SOON: Duration = Duration::from_secs(1);

/// It halts at once, and nothing of it is left on the disk.
#[tokio::test]
async fn a_gibibyte_is_rolled_back() {
    let home = temporary();
    let folder = home.folder().join("work");
    fs::create_dir(&folder).unwrap();
    let limits = WorkspaceLimits { bytes_max: 4 << 30, ..WorkspaceLimits::default() };
    let grants = Grants::new().workspace(WorkspaceGrant::new(&folder).limits(limits));
    let call_limits = CallLimits { deadline: PATIENCE, fuel: u64::MAX, ..CallLimits::default() };
    let host = small().store_arc(home.store()).cache(home.home()).call_limits(call_limits);
    let host = host.grant(Grantee::everyone(), grants).build().unwrap();
    let files = host.load(Source::file(guests::path("files"))).await.unwrap();
    let input = json!({ "path": "big", "bytes": 1 << 30, "spin": true });
    let running = host.agent("tester").call(&files, "write_much", input).start();
    let mut progress = running.progress();
    progress.mark_changed();
    within(async {
        while progress.borrow_and_update().is_none() {
            assert!(running.try_outcome().is_none(), "{:?}", running.try_outcome());
            progress.changed().await.unwrap();
        }
    })
    .await;
    let _ = running.interrupt(Cause::Operator, "alice");
    let outcome = within(running.outcome()).await;
    let End::Stopped(stopped) = &outcome.end else { panic!("{:?}", outcome.end) };
    println!("halted after {:?}, released after {:?}", stopped.halted, stopped.released);
    assert!(stopped.halted < SOON, "{stopped:?}");
    assert!(outcome.discarded.file_bytes >= 1 << 30, "{:?}", outcome.discarded);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    let left = bytes(home.home().path());
    assert!(left < 64 << 20, "{left} bytes are left");
    // Nor in a file that has no name.
    let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let nameless = |path: &std::path::PathBuf| {
        path.starts_with(home.home().path()) && path.to_string_lossy().ends_with("(deleted)")
    };
    assert_eq!(open.filter(nameless).collect::<Vec<_>>(), [] as [&Path; 0]);
}

fn bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let of = |entry: fs::DirEntry| match entry.metadata().unwrap() {
        found if found.is_dir() => bytes(&entry.path()),
        found => found.len(),
    };
    entries.map(of).sum()
}
