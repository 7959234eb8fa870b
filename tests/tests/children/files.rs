//! Files of a workspace that a call and its child are both granted.

use std::fs;
use std::path::PathBuf;

use estop::store::sqlite::Sqlite;
use estop::{Cause, Component, Grantee, Grants, Home, Host, WorkspaceGrant};
use estop_tests::{completed, end_entry, load, log, small, within};
use serde_json::{Value, json};

use super::children;

struct Place {
    _root: tempfile::TempDir,
    folder: PathBuf,
    host: Host,
    nest: Component,
}

impl Place {
    async fn new(grant: impl Fn(&std::path::Path) -> Vec<(Grantee, WorkspaceGrant)>) -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("work");
        fs::create_dir_all(folder.join("tree/of/folders")).unwrap();
        for name in ["kept.txt", "moved.txt", "removed.txt", "appended.txt", "tree/of/folders/leaf"] {
            fs::write(folder.join(name), "as it was").unwrap();
        }
        let home = Home::open(root.path().join("home")).unwrap();
        let grants = grant(&folder).into_iter();
        let builder = small().store(Sqlite::open(&home).unwrap()).cache(&home);
        let builder = grants.fold(builder, |builder, (who, what)| builder.grant(who, Grants::new().workspace(what)));
        let host = builder.build().unwrap();
        let nest = load(&host, "nest").await;
        load(&host, "files").await;
        Self { _root: root, folder, host, nest }
    }

    async fn everyone() -> Self {
        Self::new(|folder| vec![(Grantee::everyone(), WorkspaceGrant::new(folder))]).await
    }

    fn start(&self, input: Value) -> estop::Call {
        self.host.agent("default").call(&self.nest, "run", input).start()
    }

    async fn answers(&self, steps: Value) -> Vec<Value> {
        let outcome = within(self.start(json!({ "steps": steps })).outcome()).await;
        completed(&outcome)["answers"].as_array().unwrap().clone()
    }

    fn text(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.folder.join(name)).ok()
    }
}

/// Changes files in every way, and succeeds or fails.
fn edit(fails: bool) -> Value {
    json!({ "tool": "files/edit_and_fail", "input": { "path": "", "bytes": 0, "spin": fails } })
}

fn write(path: &str, bytes: u64) -> Value {
    json!({ "tool": "files/write_much", "input": { "path": path, "bytes": bytes, "spin": false } })
}

fn length(path: &str) -> Value {
    json!({ "tool": "files/read_much", "input": { "path": path } })
}

#[tokio::test]
async fn changes_of_a_child_are_there_with_its_parents() {
    let place = Place::everyone().await;
    let answers = place.answers(json!([edit(false), length("new.txt"), write("much", 3 << 20), length("much")])).await;
    assert_eq!((&answers[1]["ok"], &answers[3]["ok"]), (&json!(3), &json!(3 << 20)), "{answers:?}");
    assert_eq!(place.text("kept.txt").as_deref(), Some("changed"));
    assert_eq!(place.text("folder/moved.txt").as_deref(), Some("as it was"));
    assert_eq!(fs::metadata(place.folder.join("much")).unwrap().len(), 3 << 20);
}

/// What has failed has changed nothing, also of what spilled from memory.
#[tokio::test]
async fn changes_of_a_child_that_fails_are_taken_back() {
    let place = Place::everyone().await;
    let mut fails = write("much", 40 << 20);
    fails["tool"] = json!("files/write_and_fail");
    let answers = place
        .answers(json!([
            write("much", 30 << 20),
            edit(true),
            length("kept.txt"),
            length("tree/of/folders/leaf"),
            length("new.txt"),
            fails,
            length("much"),
            edit(false),
            length("new.txt"),
        ]))
        .await;
    assert_eq!(answers[1]["code"], "asked");
    assert_eq!((&answers[2]["ok"], &answers[3]["ok"]), (&json!(9), &json!(9)));
    assert_eq!(answers[4]["code"], "io", "{}", answers[4]);
    assert_eq!((&answers[5]["code"], &answers[6]["ok"]), (&json!("asked"), &json!(30 << 20)));
    assert_eq!(answers[8]["ok"], 3);
    assert_eq!(place.text("kept.txt").as_deref(), Some("changed"));
    let much = fs::read(place.folder.join("much")).unwrap();
    assert!(much.len() == 30 << 20 && much.iter().all(|byte| *byte == b'x'));
}

/// What had left the memory is still there, whatever a child that fails has written in its place.
#[tokio::test]
async fn what_has_spilled_is_taken_back_too() {
    let place = Place::everyone().await;
    let many =
        |text: &str| json!({ "tool": "files/write_many", "input": { "count": 20, "bytes": 1 << 20, "text": text } });
    let fails = json!({ "steps": [many("b"), write("other", 20 << 20)], "fail": true });
    let answers =
        place.answers(json!([many("a"), { "tool": "nest/run", "input": fails }, write("more", 20 << 20)])).await;
    let codes: Vec<_> = answers.iter().map(|answer| answer["code"].as_str()).collect();
    assert_eq!(codes, [None, Some("as-asked"), None]);
    for number in 0..20 {
        let text = fs::read(place.folder.join(format!("many/deep/{number}.txt"))).unwrap();
        assert_eq!(text.len(), 1 << 20);
        assert!(text.iter().all(|byte| *byte == b'a'), "file {number} is not as it was");
    }
    assert_eq!(place.text("other"), None);
}

#[tokio::test]
async fn files_of_finished_children_vanish_with_the_parent() {
    let place = Place::everyone().await;
    let mut steps: Vec<Value> = (0..20).map(|number| write(&format!("file-{number}"), 100)).collect();
    steps.push(edit(false));
    let failed = within(place.start(json!({ "steps": steps, "fail": true })).outcome()).await;
    assert_eq!(failed.end.status(), "failed");
    assert!(failed.discarded.files >= 21, "{:?}", failed.discarded);
    steps.push(json!({ "tool": "nest/spin" }));
    let parent = place.start(json!({ "steps": steps }));
    within(parent.progress().wait_for(|now| now.as_ref().is_some_and(|now| now.done == 21))).await.unwrap();
    let _ = parent.interrupt(Cause::Operator, "alice");
    let stopped = within(parent.outcome()).await;
    assert_eq!(stopped.discarded.files, failed.discarded.files);
    assert_eq!(fs::read_dir(&place.folder).unwrap().count(), 5);
    assert_eq!(place.text("kept.txt").as_deref(), Some("as it was"));
    let log = log(&place.host).await;
    let merged = children(&log, &stopped.call.to_string());
    let merged = merged.iter().filter(|end| end["merged"]["files"].as_u64() >= Some(1)).count();
    assert_eq!(merged, 21);
    assert_eq!(end_entry(&log, &stopped)["commits"]["points"], 0);
}

/// What is narrower counts: of where it may be seen and of whether it may be written.
#[tokio::test]
async fn a_child_has_no_more_files_than_its_parent() {
    let nest = || Grantee::everyone().component("nest");
    let files = || Grantee::everyone().component("files");
    let cases: [(&str, bool, Option<bool>, [bool; 2]); 3] = [
        ("the parent may only read", true, Some(false), [true, false]),
        ("the child may only read", false, Some(true), [true, false]),
        ("the parent has nothing", false, None, [false, false]),
    ];
    for (what, parent, child, [reads, writes]) in cases {
        let place = Place::new(|folder| {
            let grant = |is_read_only: bool| match is_read_only {
                true => WorkspaceGrant::read_only(folder),
                false => WorkspaceGrant::new(folder),
            };
            match child {
                Some(child) => vec![(nest(), grant(parent)), (files(), grant(child))],
                None => vec![(files(), grant(false))],
            }
        })
        .await;
        let answers = place.answers(json!([length("kept.txt"), write("new", 1)])).await;
        assert_eq!(answers[0].get("ok").is_some(), reads, "{what}: {}", answers[0]);
        assert_eq!(answers[1].get("code").is_none(), writes, "{what}: {}", answers[1]);
        assert_eq!(place.text("new"), None, "{what}");
    }
}

/// What a child that has failed had read is validated with the parent's commit.
#[tokio::test]
async fn what_others_change_after_a_child_has_read_it_is_a_conflict() {
    let place = Place::everyone().await;
    let parent = place.start(json!({ "steps": [edit(true), { "tool": "files/edit_and_wait" }] }));
    within(parent.progress().wait_for(|now| now.as_ref().is_some_and(|now| now.done == 1))).await.unwrap();
    fs::write(place.folder.join("appended.txt"), "by someone else").unwrap();
    let outcome = within(parent.outcome()).await;
    assert_eq!(outcome.end.status(), "conflict", "{:?}", outcome.end);
    assert_eq!(place.text("kept.txt").as_deref(), Some("as it was"));
}
