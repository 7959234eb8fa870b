//! Promises 4, 8 and 18 for files: a workspace is as it was before the call, or as the call has left it.

mod plain;
mod review;
mod rollback;
mod side_by_side;
mod strange;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use estop::store::sqlite::Sqlite;
use estop::{
    Call, CallBuilder, CallLimits, Cause, Component, End, Grantee, Grants, Home, Host, HostBuilder, Outcome, Source,
    WorkspaceGrant, WorkspaceLimits,
};
use estop_tests::{PATIENCE, guests, small, within};
use serde_json::{Value, json};

/// A home and a folder to work in.
struct Place {
    _root: tempfile::TempDir,
    home: Home,
    folder: PathBuf,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("work");
        fs::create_dir(&folder).unwrap();
        for (name, text) in
            [("kept.txt", "as it was"), ("moved.txt", "moved"), ("removed.txt", "removed"), ("appended.txt", "first")]
        {
            fs::write(folder.join(name), text).unwrap();
        }
        fs::create_dir_all(folder.join("tree/of/folders")).unwrap();
        fs::write(folder.join("tree/of/folders/leaf"), "leaf").unwrap();
        Self { home: Home::open(root.path().join("home")).unwrap(), folder, _root: root }
    }

    fn builder(&self) -> HostBuilder {
        let limits = CallLimits { deadline: PATIENCE, fuel: u64::MAX, ..CallLimits::default() };
        small().store(Sqlite::open(&self.home).unwrap()).cache(&self.home).call_limits(limits)
    }

    fn granting(&self, grant: WorkspaceGrant) -> Host {
        self.builder().grant(Grantee::everyone(), Grants::new().workspace(grant)).build().unwrap()
    }

    fn host(&self) -> Host {
        let limits = WorkspaceLimits { bytes_max: 4 << 30, ..WorkspaceLimits::default() };
        self.granting(WorkspaceGrant::new(&self.folder).limits(limits))
    }

    fn tree(&self) -> Tree {
        tree(&self.folder)
    }
}

/// These tests write much, and a disk that is slow for a moment keeps calls out: then they are made again.
fn is_for_the_disk(why: &str) -> bool {
    why.contains("the log has been waiting")
}

async fn files(host: &Host) -> Component {
    within(async {
        loop {
            match host.load(Source::file(guests::path("files"))).await {
                Err(error) if is_for_the_disk(&error.to_string()) => tokio::task::yield_now().await,
                loaded => return loaded.unwrap(),
            }
        }
    })
    .await
}

async fn call(host: &Host, files: &Component, tool: &str, input: Value) -> Arc<Outcome> {
    ended(|| host.agent("tester").call(files, tool, input.clone())).await
}

async fn ended(prepare: impl Fn() -> CallBuilder) -> Arc<Outcome> {
    within(async {
        loop {
            let call = prepare().start();
            let outcome = call.outcome().await;
            if !matches!(&outcome.end, End::Refused(why) if is_for_the_disk(why)) {
                return outcome;
            }
        }
    })
    .await
}

/// A call that has said so for the nth time.
async fn says(host: &Host, files: &Component, tool: &str, done: u64) -> Call {
    saying(|| host.agent("tester").call(files, tool, json!({})), done).await
}

async fn saying(prepare: impl Fn() -> CallBuilder, done: u64) -> Call {
    within(async {
        'again: loop {
            let call = prepare().start();
            let mut progress = call.progress();
            progress.mark_changed();
            while progress.borrow_and_update().as_ref().is_none_or(|now| now.done < done) {
                tokio::select! {
                    changed = progress.changed() => changed.unwrap(),
                    outcome = call.outcome() => match &outcome.end {
                        End::Refused(why) if is_for_the_disk(why) => continue 'again,
                        end => panic!("{end:?}"),
                    },
                }
            }
            return call;
        }
    })
    .await
}

async fn stop(call: &Call) -> Arc<Outcome> {
    let _ = call.interrupt(Cause::Operator, "alice");
    let outcome = within(call.outcome()).await;
    assert!(matches!(&outcome.end, End::Stopped(_)), "{:?}", outcome.end);
    outcome
}

fn completed(outcome: &Outcome) -> &Value {
    match &outcome.end {
        End::Completed(output) => &output.json,
        end => panic!("{end:?}"),
    }
}

type Tree = BTreeMap<Vec<u8>, String>;

/// Everything in a folder.
fn tree(folder: &Path) -> Tree {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let mut all = Tree::new();
    let mut left = vec![folder.to_owned()];
    while let Some(here) = left.pop() {
        for entry in fs::read_dir(&here).unwrap().map(Result::unwrap) {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let what = if kind.is_dir() {
                left.push(path.clone());
                "directory".into()
            } else if kind.is_symlink() {
                format!("link to {}", fs::read_link(&path).unwrap().display())
            } else if kind.is_fifo() || kind.is_socket() {
                "special".into()
            } else {
                let found = entry.metadata().unwrap();
                format!("{:o} {:?}", found.mode() & 0o7777, fs::read(&path).unwrap())
            };
            all.insert(path.strip_prefix(folder).unwrap().as_os_str().as_bytes().to_vec(), what);
        }
    }
    all
}

/// The tree after the guest's `edit`.
fn edited(before: &Tree) -> Tree {
    let mut after: Tree =
        before.iter().filter(|(path, _)| !path.starts_with(b"tree")).map(|(p, w)| (p.clone(), w.clone())).collect();
    let file = |text: &str| format!("644 {:?}", text.as_bytes());
    for (path, text) in [("kept.txt", "changed"), ("new.txt", "new"), ("appended.txt", "first and more")] {
        after.insert(path.into(), file(text));
    }
    after.insert("folder".into(), "directory".into());
    let moved = after.remove(&b"moved.txt"[..]).unwrap();
    after.insert("folder/moved.txt".into(), moved);
    after.remove(&b"removed.txt"[..]);
    after
}

/// Runs steps and says what each answered.
async fn steps(host: &Host, files: &Component, steps: Value) -> Vec<String> {
    let outcome = call(host, files, "steps", json!({ "root": "/", "steps": steps })).await;
    answers(completed(&outcome))
}

fn answers(output: &Value) -> Vec<String> {
    let answer = |answer: &Value| match answer["error"].as_str() {
        Some(error) => format!("! {error}"),
        None => answer["ok"].as_str().unwrap().to_owned(),
    };
    output.as_array().unwrap().iter().map(answer).collect()
}
