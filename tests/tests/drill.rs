//! A host that drills itself while it runs, as an embedding program sees it.

use std::time::{Duration, Instant};

use estop::drill::{DrillError, LIVE_RUNS_MAX};
use estop::{HaltScope, HostLimits};
use estop_tests::guests::Hostile;
use estop_tests::probe::Probe;
use estop_tests::stage::{SPIN, hostile, start};
use estop_tests::{call, completed, load, log, small, within};
use serde_json::json;

/// Calls that work while a drill goes on give what they give without one.
#[tokio::test]
async fn calls_that_work_during_a_drill_are_as_without_one() {
    let host = small().build().expect("a host");
    let echo = load(&host, "echo").await;
    let tool = echo.tools()[0].name.clone();
    let expected = completed(&call(&host, &echo, &tool, json!({"text": "x"})).await).clone();
    let drill = tokio::spawn({
        let host = host.clone();
        async move { host.drill("carol", 50).await }
    });
    let mut calls = 0;
    while !drill.is_finished() || calls == 0 {
        let outcome = call(&host, &echo, &tool, json!({"text": "x"})).await;
        assert_eq!(completed(&outcome), &expected);
        calls += 1;
    }
    let found = within(drill).await.expect("it does not panic").expect("it is held");
    println!("{calls} calls beside a drill: {found:?}");
    assert_eq!((found.others_interrupted, found.not_held), (0, None));
    assert!(found.cases.iter().all(|case| case.unconfirmed == 0 && case.runs > 0));
    let stopped: Vec<_> = log(&host).await.into_iter().filter(|entry| entry["cause"] == "drill").collect();
    assert!(stopped.iter().all(|entry| entry["kind"] == "interrupt" || entry["agent"] == "host"), "{stopped:?}");
    assert_eq!(host.live_calls(), 0);
}

/// Where there is no room for a call of its own a drill says so, fails, and is entered; it takes nobody's room.
#[tokio::test]
async fn a_drill_without_room_fails_and_stops_nobody() {
    let limits = HostLimits { sandboxes_max: 2, workers: 2, ..HostLimits::default() };
    let probe = Probe::new();
    let host = probe.grant(small().limits(limits)).build().expect("a host");
    let spins = hostile(&host, Hostile { call: SPIN, ..Hostile::default() }).await;
    let calls = [start(&host, "ada", &spins), start(&host, "ada", &spins)];
    let began = Instant::now();
    let found = within(host.drill("carol", 5)).await.expect("it is told what happened");
    assert!(!found.passed, "{found:?}");
    assert!(found.not_held.as_deref().is_some_and(|why| why.contains("did not start")), "{found:?}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert!(calls.iter().all(|call| call.try_outcome().is_none()), "somebody was stopped for it");
    let entries = log(&host).await;
    let entry = entries.iter().find(|entry| entry["kind"] == "drill").expect("it is entered");
    assert_eq!((&entry["passed"], &entry["others_interrupted"]), (&json!(false), &json!(0)));
}

/// What cannot be asked for, and what a halt refuses.
#[tokio::test]
async fn a_drill_is_refused_in_words() {
    let host = small().build().expect("a host");
    for runs in [0, LIVE_RUNS_MAX + 1] {
        assert!(matches!(host.drill("carol", runs).await, Err(DrillError::Runs(found)) if found == runs));
    }
    let (one, other) = tokio::join!(within(host.drill("carol", 20)), within(host.drill("dave", 20)));
    assert!(one.is_ok() && matches!(other, Err(DrillError::Busy)), "{one:?} {other:?}");
    for scope in
        [HaltScope::All, HaltScope::Host(host.id()), HaltScope::Agent("host".into()), HaltScope::Tool("victim".into())]
    {
        let halt = host.halt(scope, "alice", "not now").expect("it is in force");
        let refused = within(host.drill("carol", 1)).await;
        assert!(matches!(&refused, Err(DrillError::Refused(why)) if why.contains("not now")), "{refused:?}");
        host.lift(halt.halt, "alice", "now").expect("nothing runs");
    }
    assert!(within(host.drill("carol", 1)).await.is_ok());
    let entered: Vec<_> = log(&host).await.into_iter().filter(|entry| entry["kind"] == "drill").collect();
    let actors: Vec<_> = entered.iter().map(|entry| entry["actor"].as_str().unwrap_or_default()).collect();
    assert_eq!(actors, ["carol"; 6], "{entered:?}");
    within(host.shutdown()).await;
    assert!(matches!(host.drill("carol", 1).await, Err(DrillError::Refused(why)) if why.contains("shutting down")));
}
