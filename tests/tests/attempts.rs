//! Row 19: the host does not try again. Whatever ends a call, it has run once.

use std::time::Duration;

use estop::{Cause, End};
use estop_tests::guests::Hostile;
use estop_tests::probe::Probe;
use estop_tests::stage::{ACTOR, MARK, WAIT, held_host, hostile, narrow, start, turns};
use estop_tests::{call, completed, log, within};
use serde_json::{Value, json};

/// A stop between two attempts: there is one. For each way to end that others would try again after.
#[tokio::test]
async fn what_ends_early_is_not_tried_again() {
    let probe = Probe::new();
    let host = probe.grant(narrow(4)).build().unwrap();
    let (waits, traps) = (format!("{MARK} {WAIT}"), format!("{MARK} unreachable"));
    let waiter = hostile(&host, Hostile { call: &waits, ..Hostile::default() }).await;
    let trapping = hostile(&host, Hostile { call: &traps, ..Hostile::default() }).await;
    let mut ends = Vec::new();
    for cause in [Cause::Operator, Cause::Priority, Cause::Disconnected] {
        let (marks, waits) = (probe.marks(), probe.waits());
        let call = start(&host, "a", &waiter);
        probe.waiting(waits + 1).await;
        let _ = call.interrupt(cause, ACTOR);
        ends.push((marks, within(call.outcome()).await));
    }
    let marks = probe.marks();
    let late = host.agent("a").call(&waiter, "victim", Value::Null).deadline(Duration::from_millis(5)).start();
    ends.push((marks, within(late.outcome()).await));
    let marks = probe.marks();
    ends.push((marks, call(&host, &trapping, "victim", Value::Null).await));

    // Whatever was to be tried again has had every chance to.
    turns(&host, &waiter, 50).await;
    assert_eq!(host.live_calls(), 0);
    let last = probe.marks();
    let befores = ends.iter().map(|(marks, _)| *marks).chain([last]).collect::<Vec<_>>();
    assert!(befores.windows(2).all(|pair| pair[1] - pair[0] == 1), "more than one attempt: {befores:?}");
    let log = log(&host).await;
    for (_, outcome) in &ends {
        let of_call = log.iter().filter(|entry| entry["call"] == json!(outcome.call) && entry["kind"] == "end");
        assert_eq!(of_call.count(), 1, "{:?}", outcome.end);
    }
}

/// A conflict is told to whoever called, and nobody else makes anything of it.
#[tokio::test]
async fn a_conflict_is_not_tried_again() {
    let (held, host, kv) = held_host().await;
    let before = held.reads();
    let slow = host.agent("default").call(&kv, "read_then_wait", json!({ "key": "n", "wait_ms": 50 })).start();
    within(slow.progress().wait_for(Option::is_some)).await.unwrap();
    let read = held.reads() - before;
    assert!(read > 0);
    completed(&call(&host, &kv, "set", json!({ "key": "n", "value": 10 })).await);
    let set = held.reads() - before - read;
    let outcome = within(slow.outcome()).await;
    assert!(matches!(&outcome.end, End::Conflict(_)), "{:?}", outcome.end);
    turns(&host, &kv, 50).await;
    assert_eq!((held.reads() - before, host.live_calls()), (read + set, 0), "it has read again");
    let victims: Vec<_> = log(&host).await.into_iter().filter(|entry| entry["tool"] == "read_then_wait").collect();
    let ended = victims.iter().filter(|entry| entry["kind"] == "end").count();
    assert_eq!(ended, 1, "{victims:?}");
}
