//! What a child writes is a part of its parent's transaction if it succeeds, and never was if not.

use std::sync::Arc;

use estop::{CallLimits, Cause, EffectState, End, Size};
use estop_tests::guests::Hostile;
use estop_tests::stage::{WAIT, grant, hostile};
use estop_tests::{call, completed, end_entry, log, small, within};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{Stage, children, line};

#[tokio::test]
async fn a_success_is_merged_and_durable_with_the_parent() {
    let stage = Stage::new().await;
    let steps = json!([
        { "set": "own" },
        { "tool": "look", "input": { "key": "own" } },
        { "tool": "kv/set", "input": { "key": "k", "value": 7 } },
        { "tool": "kv/add", "input": { "key": "k", "delta": 1 } },
        { "tool": "kv/list" },
    ]);
    let (outcome, answers) = stage.run(steps).await;
    assert_eq!(answers[0]["ok"], 0, "a child sees what its parent has written");
    assert_eq!(answers[2]["ok"]["value"], 8, "and what the one before it has");
    assert_eq!(answers[3]["ok"]["keys"], json!(["k"]));
    assert_eq!((outcome.commits.points, outcome.commits.writes), (1, 2));
    assert_eq!(stage.value("k").await, 8);
    let log = log(&stage.host).await;
    let ends = children(&log, &outcome.call.to_string());
    assert_eq!(ends.len(), 4);
    for end in ends {
        assert_eq!(
            end["commits"],
            json!({ "points": 0, "writes": 0, "bytes": 0 }),
            "nothing of it is durable by itself"
        );
        assert!(line(&log, "end", &end["call"]) < line(&log, "commit", &json!(outcome.call.to_string())));
    }
    let wrote: Vec<_> = log.iter().filter(|e| e["kind"] == "commit" && e["writes"] != 0).collect();
    assert_eq!(wrote.len(), 1, "one commit for all of them");
    assert_eq!((&wrote[0]["call"], &wrote[0]["writes"]), (&json!(outcome.call.to_string()), &json!(2)));
}

#[tokio::test]
async fn what_fails_or_traps_leaves_nothing_and_its_parent_goes_on() {
    let stage = Stage::new().await;
    let steps = json!([
        { "set": "own" },
        { "tool": "kv/set", "input": { "key": "k", "value": 1 } },
        { "tool": "write_then_fail" },
        { "tool": "kv/write_then_panic", "input": { "key": "k", "value": 2 } },
        { "tool": "kv/set", "input": { "key": 3, "value": 2 } },
        { "tool": "kv/get", "input": { "key": "k" } },
    ]);
    let (outcome, answers) = stage.run(steps).await;
    let failed = &answers[1];
    assert_eq!(
        (&failed["code"], &failed["retryable"], &failed["data"]),
        (&json!("as-asked"), &json!(true), &json!("[1,2]"))
    );
    assert_eq!(answers[2]["code"], "trapped");
    assert!(answers[2]["message"].as_str().unwrap().contains("as asked"), "{}", answers[2]);
    assert_eq!(answers[3]["code"], "invalid-input");
    assert_eq!(answers[4]["ok"]["value"], 1, "as before the one that panicked");
    assert_eq!(outcome.commits.writes, 2);
    assert_eq!((stage.value("k").await, stage.keys().await), (json!(1), vec!["own".to_owned()]));
    let log = log(&stage.host).await;
    let ends = children(&log, &outcome.call.to_string());
    let discarded: Vec<_> = ends.iter().map(|end| (&end["status"], &end["discarded"]["writes"])).collect();
    assert_eq!(discarded[1], (&json!("failed"), &json!(1)));
    assert_eq!(discarded[2], (&json!("trapped"), &json!(1)));
}

/// Fifty children that have finished, of two components, and their writes vanish with the parent.
#[tokio::test]
async fn fifty_finished_children_vanish_with_their_parent() {
    let stage = Stage::new().await;
    stage.kv("set", json!({ "key": "n", "value": 100 })).await;
    let mut steps: Vec<Value> = Vec::new();
    for _ in 0..25 {
        steps.push(json!({ "tool": "kv/add", "input": { "key": "n", "delta": 1 } }));
        steps.push(json!({ "tool": "nest/run", "input": { "steps": [{ "set": "by-a-child" }] } }));
    }
    let failing = json!({ "steps": steps, "fail": true });
    let failed = within(stage.host.agent("default").call(&stage.nest, "run", failing).start().outcome()).await;
    assert_eq!(failed.end.status(), "failed");
    assert_eq!((failed.commits.points, failed.discarded), (0, Size { writes: 2, bytes: 15, ..Size::default() }));

    steps.push(json!({ "tool": "nest/spin" }));
    let stopped = stage.start(json!(steps));
    within(stopped.progress().wait_for(|now| now.as_ref().is_some_and(|now| now.done == 50))).await.unwrap();
    let _ = stopped.interrupt(Cause::Operator, "alice");
    let stopped = within(stopped.outcome()).await;
    assert_eq!((stopped.end.status(), stopped.discarded.writes), ("stopped", 2));

    assert_eq!((stage.value("n").await, stage.keys().await.len()), (json!(100), 0));
    let log = log(&stage.host).await;
    for outcome in [failed, stopped] {
        let ends = children(&log, &outcome.call.to_string());
        let merged = ends.iter().filter(|end| end["merged"]["writes"] == 1 && end["status"] == "completed").count();
        assert_eq!(merged, 50);
        assert_eq!(end_entry(&log, &outcome)["commits"]["points"], 0);
    }
    // And so that the test can fail: the same without an end of that kind.
    steps.pop();
    stage.run(json!(steps)).await;
    assert_eq!((stage.value("n").await, stage.keys().await.len()), (json!(125), 1));
}

#[tokio::test]
async fn a_commit_point_of_the_parent_makes_its_children_durable() {
    let stage = Stage::new().await;
    let steps = json!([
        { "tool": "kv/set", "input": { "key": "k", "value": 1 } },
        { "commit": true },
        { "tool": "kv/set", "input": { "key": "k", "value": 2 } },
    ]);
    let input = json!({ "steps": steps, "fail": true });
    let outcome = within(stage.host.agent("default").call(&stage.nest, "run", input).start().outcome()).await;
    assert_eq!((outcome.commits.points, outcome.commits.writes, outcome.discarded.writes), (1, 1, 1));
    assert_eq!(stage.value("k").await, 1);
}

#[tokio::test]
async fn a_child_cannot_commit_and_loses_nothing_by_trying() {
    let stage = Stage::new().await;
    let child = json!({ "steps": [{ "set": "before" }, { "commit": true }, { "set": "after" }] });
    let (outcome, answers) = stage.run(json!([{ "tool": "run", "input": child }])).await;
    let inner = &answers[0]["ok"]["answers"][0];
    assert_eq!(inner["code"], "store");
    assert!(inner["message"].as_str().unwrap().contains("invoked"), "{inner}");
    assert_eq!(outcome.commits.writes, 2);
    assert_eq!(stage.keys().await, ["after", "before"]);
    let (_, answers) = stage.run(json!([{ "tool": "kv/commit_twice", "input": { "key": "k", "value": 1 } }])).await;
    assert_eq!(answers[0]["code"], "store");
    assert_eq!(stage.value("k").await, Value::Null);
}

/// What a child has read is validated with the parent's commit, also if the child has failed.
#[tokio::test]
async fn what_children_have_read_is_validated() {
    for fails in [false, true] {
        let (arrived, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (there, on) = (Arc::clone(&arrived), Arc::clone(&go));
        let builder = grant(small(), move |_| {
            there.notify_one();
            let on = Arc::clone(&on);
            Box::pin(async move {
                on.notified().await;
                Ok(())
            })
        });
        let stage = Stage::on(builder).await;
        stage.kv("set", json!({ "key": "k", "value": 1 })).await;
        let waits = hostile(&stage.host, Hostile { call: WAIT, ..Hostile::default() }).await;
        let reads = json!({ "steps": [{ "tool": "kv/get", "input": { "key": "k" } }], "fail": fails });
        let parent = stage.start(json!([
            { "tool": "nest/run", "input": reads }, { "tool": "victim" }, { "set": "written" },
        ]));
        within(arrived.notified()).await;
        stage.kv("set", json!({ "key": "k", "value": 2 })).await;
        go.notify_one();
        let outcome = within(parent.outcome()).await;
        let End::Conflict(what) = &outcome.end else { panic!("{fails}: {:?}", outcome.end) };
        assert!(what.contains("`k`"), "{what}");
        assert_eq!(stage.keys().await.len(), 0);
        drop(waits);
    }
}

/// What a child does outside of the transaction is told of it, and of those above it.
#[tokio::test]
async fn effects_of_a_child_are_its_parents_too() {
    let builder = grant(small(), |ctx| {
        let sent = ctx.effect("mail");
        Box::pin(async move {
            sent?.performed();
            Ok(())
        })
    });
    let stage = Stage::on(builder.call_limits(CallLimits { effects_max: 2, ..CallLimits::default() })).await;
    hostile(&stage.host, Hostile { call: WAIT, ..Hostile::default() }).await;
    let (outcome, answers) = stage.run(json!([{ "tool": "victim", "times": 3 }, { "tool": "nest/keys" }])).await;
    assert_eq!(answers[2]["code"], "trapped", "one more than its parent may have: {}", answers[2]);
    let log = log(&stage.host).await;
    let ends = children(&log, &outcome.call.to_string());
    let told: Vec<_> = outcome.effects.iter().map(|effect| (&*effect.name, effect.state)).collect();
    assert_eq!(told, [("mail", EffectState::Performed); 2]);
    for (effect, end) in outcome.effects.iter().zip(&ends) {
        assert_eq!(effect.call.map(|call| json!(call.to_string())).as_ref(), Some(&end["call"]));
        assert_eq!(end["effects"], json!([{ "name": "mail", "state": "performed" }]));
    }
    assert_eq!(end_entry(&log, &outcome)["effects"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn attachments_come_along() {
    let stage = Stage::new().await;
    let outcome = call(&stage.host, &stage.nest, "attached", json!({})).await;
    assert_eq!(completed(&outcome), &json!([["seven.bin", 7]]));
}
