//! A child has at most what its parent has, and never waits for room.

use std::time::Duration;

use estop::{CallLimits, Cause, HostLimits, Source};
use estop_tests::stage::stopped;
use estop_tests::{PATIENCE, call, completed, guests, load, log, small, within};
use serde_json::json;

use super::{Stage, children};

fn limits() -> CallLimits {
    CallLimits { deadline: PATIENCE, ..CallLimits::default() }
}

#[tokio::test]
async fn depth_max() {
    let stage = Stage::on(small().call_limits(CallLimits { depth_max: 3, ..limits() })).await;
    let deep = |levels: u64| json!({ "levels": levels, "tool": "kv/set", "input": { "key": "k", "value": levels } });
    let deepest = call(&stage.host, &stage.nest, "deep", deep(2)).await;
    assert_eq!(completed(&deepest)["done"], true);
    let outcome = call(&stage.host, &stage.nest, "deep", deep(3)).await;
    let estop::End::Failed(failure) = &outcome.end else { panic!("{:?}", outcome.end) };
    assert_eq!(failure.code, "too-deep");
    assert!(failure.message.contains('3'), "{failure}");
    assert_eq!(stage.value("k").await, 2);
    let none = Stage::on(small().call_limits(CallLimits { depth_max: 0, ..limits() })).await;
    let (_, answers) = none.run(json!([{ "tool": "kv/list" }])).await;
    assert_eq!(answers[0]["code"], "too-deep");
}

/// Counted for the whole tree, also those that are refused: each is a call with entries of its own.
#[tokio::test]
async fn children_max() {
    let stage = Stage::on(small().call_limits(CallLimits { children_max: 3, ..limits() })).await;
    let set = json!({ "tool": "kv/set", "input": { "key": "k", "value": 1 } });
    let nested = json!({ "tool": "nest/run", "input": { "steps": [set, set, set] } });
    let (_, answers) = stage.run(json!([nested, set])).await;
    let inner = &answers[0]["ok"]["answers"];
    assert!(inner[0]["code"].is_null() && inner[1]["code"].is_null(), "{answers:?}");
    assert_eq!((&inner[2]["code"], &answers[1]["code"]), (&json!("too-many"), &json!("too-many")));
    let refused = json!({ "tool": "kv/set", "input": { "nothing": "of it" }, "times": 5 });
    let (_, answers) = stage.run(json!([refused, set])).await;
    assert_eq!(answers.last().unwrap()["code"], "too-many", "{answers:?}");
}

#[tokio::test]
async fn the_tree_has_no_more_fuel_than_its_root() {
    let stage = Stage::new().await;
    let burn = |rounds: u64| json!({ "steps": [{ "tool": "burn", "input": { "rounds": rounds } }] });
    let mut fuel = Vec::new();
    for rounds in [1, 1_000_000, 1_000_000] {
        let outcome = call(&stage.host, &stage.nest, "run", burn(rounds)).await;
        let log = log(&stage.host).await;
        let [child] = children(&log, &outcome.call.to_string())[..] else { panic!("no child") };
        fuel.push((outcome.fuel, child["fuel"].as_u64().unwrap()));
    }
    assert_eq!(fuel[1], fuel[2], "the same for the same input");
    let [root, child] = [fuel[1].0 - fuel[0].0, fuel[1].1 - fuel[0].1];
    assert!(child > 1_000_000 && root.abs_diff(child) < 10_000, "what a child uses is its parent's: {fuel:?}");

    let granted = 5_000_000;
    let much = stage.host.agent("default").call(&stage.nest, "run", burn(1 << 40)).fuel(granted);
    let outcome = within(much.start().outcome()).await;
    assert_eq!((stopped(&outcome).cause, outcome.fuel), (Cause::Fuel, granted));
    let log = log(&stage.host).await;
    let [child] = children(&log, &outcome.call.to_string())[..] else { panic!("no child") };
    assert_eq!((&child["status"], &child["cause"]), (&json!("stopped"), &json!("fuel")));
    assert!(child["fuel"].as_u64().unwrap() < granted);
}

#[tokio::test]
async fn a_child_has_the_hosts_deadline_if_that_is_less() {
    let stage = Stage::on(small().call_limits(CallLimits { deadline: Duration::from_millis(300), ..limits() })).await;
    let steps = json!({ "steps": [{ "tool": "nest/spin" }] });
    let call = stage.host.agent("default").call(&stage.nest, "run", steps).deadline(PATIENCE);
    let outcome = within(call.start().outcome()).await;
    let answer = &completed(&outcome)["answers"][0];
    assert_eq!(answer["code"], "stopped");
    assert!(answer["data"].as_str().unwrap().contains("deadline"), "{answer}");
}

#[tokio::test]
async fn a_child_has_no_more_memory_than_its_parent() {
    let stage = Stage::new().await;
    let _misc = load(&stage.host, "misc").await;
    let steps = json!({ "steps": [{ "tool": "misc/big_output", "input": { "bytes": 6 << 20 } }] });
    let with = |bytes: usize| {
        let call = stage.host.agent("default").call(&stage.nest, "run", steps.clone()).memory_bytes(bytes);
        async move { completed(&within(call.start().outcome()).await)["answers"][0].clone() }
    };
    let small = with(8 << 20).await;
    assert_eq!(small["code"], "stopped");
    assert!(small["data"].as_str().unwrap().contains("memory"), "{small}");
    assert_eq!(with(64 << 20).await["code"], "output", "there is enough, and the answer is too long");
}

/// Parents that fill the pool, and all want children: nobody waits for anybody.
#[tokio::test(flavor = "multi_thread")]
async fn without_room_there_is_no_child_and_no_deadlock() {
    let pool = HostLimits { calls_max: 64, sandboxes_max: 4, workers: 2, ..HostLimits::default() };
    let stage = Stage::on(small().limits(pool)).await;
    let child = json!([{ "tool": "nest/burn", "input": { "rounds": 200_000 }, "times": 20 }]);
    let calls: Vec<_> = (0..12).map(|_| stage.start(child.clone())).collect();
    let (mut refused, mut answered) = (0, 0);
    for call in calls {
        let outcome = within(call.outcome()).await;
        for answer in completed(&outcome)["answers"].as_array().unwrap() {
            if answer["ok"].is_u64() {
                answered += 1;
            } else {
                assert_eq!((&answer["code"], &answer["retryable"]), (&json!("no-room"), &json!(true)), "{answer}");
                refused += 1;
            }
        }
    }
    println!("{answered} children had room, {refused} had none");
    assert!(refused > 0, "the pool was never full");
    // Whoever keeps places for its children has room for each.
    let input = json!({ "steps": child, "strict": true });
    let prepare = || stage.host.agent("default").call(&stage.nest, "run", input.clone()).places_for_children(1);
    let calls: Vec<_> = (0..12).map(|_| prepare().start()).collect();
    for call in calls {
        completed(&within(call.outcome()).await);
    }
    let never = stage.host.agent("default").call(&stage.nest, "run", input.clone()).places_for_children(4);
    assert_eq!(within(never.start().outcome()).await.end.status(), "refused", "more than there are");
}

#[tokio::test]
async fn calls_max_counts_children() {
    let pool = HostLimits { calls_max: 2, sandboxes_max: 4, workers: 1, ..HostLimits::default() };
    let stage = Stage::on(small().limits(pool)).await;
    let deep = |levels: u64| json!([{ "tool": "deep", "input": { "levels": levels, "tool": "keys", "input": {} } }]);
    let (_, answers) = stage.run(json!([{ "tool": "keys" }])).await;
    assert_eq!(answers[0]["ok"], json!([]));
    let (_, answers) = stage.run(deep(0)).await;
    assert_eq!((&answers[0]["code"], &answers[0]["retryable"]), (&json!("no-room"), &json!(true)));
}

#[tokio::test]
async fn a_tool_is_named_alone_where_that_says_which() {
    let stage = Stage::new().await;
    let _misc = load(&stage.host, "misc").await;
    let steps = json!([
        // Of `nest` and of `misc`: the caller's own.
        { "tool": "attach" },
        { "tool": "misc/attach", "input": { "bytes": 1 } },
        { "tool": "list" },
        { "tool": "nothing" },
        { "tool": "kv/nothing" },
        { "tool": "nobody/list" },
        { "tool": "kv/list/more" },
    ]);
    let (_, answers) = stage.run(steps).await;
    assert_eq!(answers[0]["ok"], 7);
    assert!(answers[1]["ok"].is_object(), "{}", answers[1]);
    assert_eq!(answers[2]["ok"]["keys"], json!([]));
    for answer in &answers[3..] {
        assert_eq!(answer["code"], "no-such-tool", "{answer}");
    }
    let _other = stage.host.load(Source::file(guests::path("kv")).named("kv-2")).await.unwrap();
    let (_, answers) = stage.run(json!([{ "tool": "list" }, { "tool": "kv-2/list" }])).await;
    assert_eq!(answers[0]["code"], "ambiguous-tool");
    assert!(answers[0]["message"].as_str().unwrap().contains("`kv-2/list`"), "{}", answers[0]);
    assert!(answers[1]["ok"].is_object(), "{}", answers[1]);
}
