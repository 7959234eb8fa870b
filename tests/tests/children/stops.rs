//! A child is stopped with its parent, at whatever moment, and alone without it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use estop::{Cause, HaltScope, Interrupt, Scope};
use estop_tests::stage::{operator, stopped, until};
use estop_tests::{completed, end_entry, log, within};
use serde_json::{Value, json};

use super::{Stage, children};

/// Chains that are stopped, for figures.
const CHAINS: usize = 50;
/// Stops at random moments, or as many as there is time for.
const STOPS: u64 = 3_000;
const STOPS_WITHIN: Duration = Duration::from_secs(30);

/// Until the innermost of a chain spins.
async fn spins(stage: &Stage) -> estop::Call {
    let deep = json!({ "levels": 1, "tool": "nest/spin", "input": {}, "set": "level" });
    let root = stage.host.agent("default").call(&stage.nest, "deep", deep).start();
    until(|| stage.host.live_calls() == 3).await;
    root
}

/// A chain of three calls, the last of which spins, is stopped by stopping the first.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_three_is_stopped_with_its_first() {
    let stage = Stage::new().await;
    let (mut halted, mut released) = (Vec::new(), Vec::new());
    for _ in 0..CHAINS {
        let root = spins(&stage).await;
        let began = Instant::now();
        let interruption = root.interrupt_with(operator().reason("try it"));
        assert_eq!(interruption.len(), 3);
        let outcomes = within(interruption.released()).await;
        released.push(began.elapsed());
        let all: Vec<_> = outcomes.iter().map(|outcome| stopped(outcome)).collect();
        halted.push(all.iter().map(|stopped| stopped.halted).max().unwrap());
        let [first, others @ ..] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((first.cause, first.actor.as_str(), first.reason.as_str()), (Cause::Operator, "alice", "try it"));
        for other in others {
            assert_eq!((other.cause, other.actor.as_str()), (Cause::Parent, "alice"));
            assert!(other.reason.ends_with("which invoked it, was stopped by alice (operator): try it"), "{other:?}");
        }
        assert!(others.iter().any(|other| other.reason.starts_with(&root.id().to_string())), "{others:?}");
    }
    for times in [&mut halted, &mut released] {
        times.sort_unstable();
    }
    let [halted, released] = [&halted, &released].map(|times| (times[CHAINS / 2], times[CHAINS - 1]));
    println!(
        "chain of three: halted p50 {:?} max {:?}; released p50 {:?} max {:?}",
        halted.0, halted.1, released.0, released.1
    );
    assert!(released.1 < Duration::from_secs(5), "{released:?}");
    assert_eq!(stage.keys().await.len(), 0);
    // The record: who was stopped with whom.
    let log = log(&stage.host).await;
    let roots = log.iter().filter(|e| e["kind"] == "end" && e["cause"] == "operator");
    let roots: Vec<_> = roots.map(|end| end["call"].as_str().unwrap()).collect();
    assert_eq!(roots.len(), CHAINS);
    for root in roots {
        let [middle] = children(&log, root)[..] else { panic!("{root}") };
        let [leaf] = children(&log, middle["call"].as_str().unwrap())[..] else { panic!("{middle}") };
        assert_eq!((&middle["cause"], &leaf["cause"]), (&json!("parent"), &json!("parent")));
        assert_eq!(middle["interrupt"], leaf["interrupt"]);
    }
}

#[tokio::test]
async fn a_child_is_stopped_alone() {
    let stage = Stage::new().await;
    let parent = stage.start(json!([{ "tool": "nest/spin" }, { "set": "after" }]));
    let reached = loop {
        let reached = stage.host.interrupt(Scope::Tool("spin".into()), operator().reason("too slow"));
        if !reached.is_empty() {
            break reached;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(reached.len(), 1);
    let outcome = within(parent.outcome()).await;
    let answer = &completed(&outcome)["answers"][0];
    assert_eq!((&answer["code"], &answer["retryable"]), (&json!("stopped"), &json!(false)));
    assert!(answer["message"].as_str().unwrap().contains("alice (operator): too slow"), "{answer}");
    let data: Value = serde_json::from_str(answer["data"].as_str().unwrap()).unwrap();
    assert_eq!(data["cause"], "operator");
    assert_eq!(stage.keys().await, ["after"]);
}

/// Whatever names a parent stops its child with it; what names only the child stops only that.
#[tokio::test]
async fn every_scope_takes_the_children_along() {
    for scope in [Scope::Agent("default".into()), Scope::Tool("deep".into()), Scope::Host, Scope::Everything] {
        let stage = Stage::new().await;
        let root = spins(&stage).await;
        let outcomes = within(stage.host.interrupt(scope.clone(), operator()).released()).await;
        let causes: Vec<_> = outcomes.iter().map(|outcome| stopped(outcome).cause).collect();
        assert_eq!(causes.len(), 3, "{scope:?}");
        assert_eq!(causes.iter().filter(|cause| **cause == Cause::Parent).count(), 2, "{scope:?}: {causes:?}");
        assert_eq!(stopped(&*within(root.outcome()).await).cause, Cause::Operator);
    }
}

#[tokio::test]
async fn what_is_halted_is_refused_and_its_parent_goes_on() {
    let stage = Stage::new().await;
    stage.host.halt(HaltScope::Tool("set".into()), "alice", "not now").unwrap();
    let (outcome, answers) =
        stage.run(json!([{ "tool": "kv/set", "input": { "key": "k", "value": 1 } }, { "set": "own" }])).await;
    assert_eq!(answers[0]["code"], "refused");
    assert!(answers[0]["message"].as_str().unwrap().contains("halt"), "{}", answers[0]);
    assert_eq!(stage.keys().await, ["own"]);
    let log = log(&stage.host).await;
    let [refusal] = children(&log, &outcome.call.to_string())[..] else { panic!("no refusal") };
    assert_eq!((&refusal["kind"], &refusal["tool"]), (&json!("refusal"), &json!("set")));
}

/// A deadline of the parent is the end of its children, and is told as what it is.
#[tokio::test]
async fn a_deadline_of_the_parent_ends_its_child() {
    let stage = Stage::new().await;
    let steps = json!({ "steps": [{ "tool": "nest/spin" }] });
    let call = stage.host.agent("default").call(&stage.nest, "run", steps).deadline(Duration::from_millis(200));
    let outcome = within(call.start().outcome()).await;
    assert_eq!(stopped(&outcome).cause, Cause::Deadline);
    let log = log(&stage.host).await;
    let [child] = children(&log, &outcome.call.to_string())[..] else { panic!("no child") };
    assert_eq!(child["cause"], "parent");
    assert_eq!(child["interrupt"], end_entry(&log, &outcome)["interrupt"]);
}

#[tokio::test]
async fn in_its_grace_a_call_invokes_nothing() {
    let stage = Stage::new().await;
    let parent =
        stage.start(json!([{ "tool": "nest/spin" }, { "tool": "kv/set", "input": { "key": "k", "value": 1 } }]));
    until(|| stage.host.live_calls() == 2).await;
    let _ = parent.interrupt_with(operator().grace(Duration::from_secs(60)));
    // The child swallows the request, and is cut off alone: then the parent goes on in its grace.
    let spin = Interrupt::new(Cause::Operator, "bob");
    let _ = stage.host.interrupt(Scope::Tool("spin".into()), spin);
    let outcome = within(parent.outcome()).await;
    assert_eq!(stopped(&outcome).cause, Cause::Operator);
    let log = log(&stage.host).await;
    assert_eq!(children(&log, &outcome.call.to_string()).len(), 1, "the second was not begun");
    assert_eq!(stage.value("k").await, Value::Null);
}

/// Row 6: the parent is stopped at whatever moment of an `invoke`, and no child escapes.
#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_starts_late_does_not_escape() {
    // Children that come and go, and one that would never go.
    let add = json!({ "key": "n", "delta": 1 });
    for (tool, input, stops) in [("kv/add", add, STOPS / 2), ("nest/spin", json!({}), STOPS / 2)] {
        let stage = Stage::new().await;
        let chain = json!({ "levels": 2, "set": "level", "tool": tool, "input": input });
        let steps = json!([{ "tool": "nest/deep", "input": chain, "times": 1_000_000 }]);
        let (began, mut done, mut with_children) = (Instant::now(), 0, 0);
        while done < stops && began.elapsed() < STOPS_WITHIN {
            let root = stage.start(steps.clone());
            // From before it is taken up to the middle of its children.
            let until = Duration::from_micros(done * 37 % 3_000);
            let begun = Instant::now();
            while begun.elapsed() < until {
                std::hint::spin_loop();
            }
            let interruption = root.interrupt(Cause::Operator, "alice");
            with_children += u64::from(interruption.len() > 1);
            let outcome = within(root.outcome()).await;
            assert_eq!(stopped(&outcome).cause, Cause::Operator);
            assert_eq!(stage.host.live_calls(), 0, "something of {} runs on after {done} stops", outcome.call);
            done += 1;
        }
        println!("{tool}: {done} stops of a parent, {with_children} of them reached children");
        assert!(with_children > 0, "no child was ever met");
        assert_eq!((stage.value("n").await, stage.keys().await.len()), (Value::Null, 0), "nothing was committed");
        all_stopped_by_one_interrupt(&log(&stage.host).await);
    }
}

/// Whether it was met or has met the closed gate: a child that was stopped was stopped by what has stopped its parent.
fn all_stopped_by_one_interrupt(log: &[Value]) {
    let ends = log.iter().filter(|entry| entry["kind"] == "end" && entry["cause"].is_string());
    let stopped: HashMap<&str, &Value> = ends.map(|end| (end["call"].as_str().unwrap(), end)).collect();
    for end in stopped.values() {
        assert_eq!(end["actor"], "alice", "{end}");
        let parent = end["parent"].as_str().and_then(|parent| stopped.get(parent));
        assert!(parent.is_none_or(|parent| parent["interrupt"] == end["interrupt"]), "{end}");
    }
}
