//! Reading, writing and searching through a workspace, beside the same guest on the same folder with Wasmtime's own files:
//! `cargo bench -p estop-tests --bench files`.
//!
//! What a call writes is staged and synced when it commits, which Wasmtime does not do: it is told apart, by a line in which
//! the call fails at its end.

#[path = "../tests/workspace/plain.rs"]
mod plain;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use estop::{CallLimits, Component, Grantee, Grants, Host, Source, WorkspaceGrant, WorkspaceLimits};
use estop_tests::guests;
use estop_tests::home::temporary;
use plain::Plain;
use serde_json::{Value, json};

/// Rounds; the median counts.
const ROUNDS: usize = 7;
/// What is read and written (bytes).
const MUCH_BYTES: u64 = 100 << 20;
/// Files in the tree that is searched, and the lines in each.
const FILES: usize = 4000;
const LINES: usize = 200;

#[tokio::main]
async fn main() {
    let home = temporary();
    let folder = home.folder().join("work");
    fill(&folder);
    let limits = WorkspaceLimits { bytes_max: 1 << 30, ..WorkspaceLimits::default() };
    let call_limits = CallLimits { deadline: Duration::from_secs(600), ..CallLimits::default() };
    let grants = Grants::new().workspace(WorkspaceGrant::new(&folder).limits(limits));
    let host = Host::builder().store_arc(home.store()).cache(home.home()).call_limits(call_limits);
    let host = host.grant(Grantee::everyone(), grants).build().expect("a host");
    for (what, guest, tool, input) in [
        ("read 100 MiB", "files", "read_much", json!({ "path": "big" })),
        ("write 100 MiB", "files", "write_much", json!({ "path": "new", "bytes": MUCH_BYTES, "spin": false })),
        (
            "write 100 MiB, uncommitted",
            "files",
            "write_and_fail",
            json!({ "path": "new", "bytes": MUCH_BYTES, "spin": false }),
        ),
        ("search 4000 files", "grep", "search", json!({ "pattern": "needle \\d+" })),
    ] {
        let component = host.load(Source::file(guests::path(guest))).await.expect("a component");
        let plain = Plain::new(&guests::bytes(guest));
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(through_estop(&host, &component, tool, &input).await);
            theirs.push(alone(&plain, &folder, tool, &input).await);
        }
        let (ours, theirs) = (median(ours), median(theirs));
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        println!("{what:28} estop {ours:>10.1?}   Wasmtime alone {theirs:>10.1?}   {ratio:.2}x");
    }
}

async fn through_estop(host: &Host, component: &Component, tool: &str, input: &Value) -> Duration {
    let begun = Instant::now();
    let call = host.agent("bench").call(component, tool, input.clone()).start();
    let outcome = call.outcome().await;
    let took = begun.elapsed();
    let as_asked = outcome.end.status() == if tool == "write_and_fail" { "failed" } else { "completed" };
    assert!(as_asked, "{:?}", outcome.end);
    took
}

async fn alone(plain: &Plain, folder: &Path, tool: &str, input: &Value) -> Duration {
    let begun = Instant::now();
    let answer = plain.run(folder, tool, &input.to_string()).await;
    let took = begun.elapsed();
    assert_eq!(answer.is_err(), tool == "write_and_fail");
    took
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn fill(folder: &Path) {
    fs::create_dir_all(folder).expect("a folder");
    fs::write(folder.join("big"), vec![b'x'; MUCH_BYTES as usize]).expect("a file");
    for number in 0..FILES {
        let path = folder.join(format!("tree/{}/{}/{number}.txt", number % 20, number % 7));
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        let needle = if number % 100 == 0 { format!("needle {number}\n") } else { String::new() };
        fs::write(path, "a line of a file that is searched\n".repeat(LINES) + &needle).expect("a file");
    }
}
