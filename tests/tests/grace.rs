//! Promises 3, 8 and 19, and rows 17 and 18 of the failure modes: time that is granted is granted, and no more of it.

use std::sync::Arc;
use std::time::Duration;

use estop::store::memory::Memory;
use estop::store::{Space, Store};
use estop::{Cause, Commits, Component, Host, Interrupt, Reached};
use estop_tests::clock::ManualClock;
use estop_tests::guests::Hostile;
use estop_tests::probe::Probe;
use estop_tests::stage::{SPIN, WAIT, held_host, hostile, narrow, operator, start, stop, stopped, ticks, turns, value};
use estop_tests::{load, within};
use serde_json::{Value, json};

const SPINNER: Hostile<'_> = Hostile { start: "", realloc: "", call: SPIN, post: "" };

/// Row 17, promise 19: the deadline begins when the guest does.
#[tokio::test]
async fn waiting_for_room_is_not_billed_to_the_deadline() {
    const DEADLINE: Duration = Duration::from_secs(10);
    let (probe, clock) = (Probe::new(), ManualClock::new());
    let host = probe.grant(narrow(2)).clock(clock.clone()).build().unwrap();
    let waiter = hostile(&host, Hostile { call: WAIT, ..Hostile::default() }).await;
    let spinner = hostile(&host, SPINNER).await;
    let (holder, blocker) = (start(&host, "holder", &waiter), host.agent("blocker").call(&waiter, "victim", json!({})));
    let blocker = blocker.deadline(3 * DEADLINE).start();
    probe.waiting(2).await;
    let queued = host.agent("queued").call(&waiter, "victim", Value::Null).deadline(DEADLINE).start();
    turns(&host, &waiter, 1).await;

    // The blocker's deadline makes room, long after the queued call's would have been over.
    clock.advance(6 * DEADLINE);
    assert_eq!(stopped(&*within(blocker.outcome()).await).cause, Cause::Deadline);
    probe.waiting(3).await;
    stop(&holder).await;
    clock.advance(DEADLINE - Duration::from_nanos(1));
    ticks(&host, &spinner).await;
    assert!(queued.try_outcome().is_none(), "its time in the queue was billed to it: {:?}", queued.try_outcome());
    clock.advance(Duration::from_nanos(1));
    let outcome = within(queued.outcome()).await;
    assert_eq!((stopped(&outcome).cause, outcome.elapsed), (Cause::Deadline, DEADLINE));
}

async fn manual_host() -> (ManualClock, Host, Component, Component) {
    let clock = ManualClock::new();
    let host = Probe::new().grant(narrow(4)).clock(clock.clone()).build().unwrap();
    let (runaway, spinner) = (load(&host, "runaway").await, hostile(&host, SPINNER).await);
    (clock, host, runaway, spinner)
}

const GRACE: Duration = Duration::from_secs(10);
const MOMENT: Duration = Duration::from_nanos(1);

/// Row 18, promise 3: it sees the request, swallows every error and goes on; with the end of its grace it is over.
#[tokio::test]
async fn a_guest_that_swallows_the_request_is_cut_off_at_the_end_of_its_grace_and_not_before() {
    let (clock, host, runaway, spinner) = manual_host().await;
    let misc = load(&host, "misc").await;
    for (component, tool) in [(&misc, "swallow"), (&runaway, "ignore")] {
        let victim = host.agent("default").call(component, tool, json!({})).start();
        turns(&host, component, 5).await;
        let interruption = victim.interrupt_with(operator().grace(GRACE));
        assert_eq!(interruption.reached().collect::<Vec<_>>(), [(victim.id(), Reached::Warned)]);
        clock.advance(GRACE - MOMENT);
        ticks(&host, &spinner).await;
        assert!(victim.try_outcome().is_none(), "{tool} was cut off before the end of its grace");
        clock.advance(MOMENT);
        let outcome = within(victim.outcome()).await;
        assert_eq!((stopped(&outcome).cause, stopped(&outcome).halted), (Cause::Operator, GRACE), "{tool}");
        assert_eq!(outcome.commits, Commits::default());
    }
}

/// Promise 3: of several graces, and of the deadline, the earliest end counts; the first cause stays.
#[tokio::test]
async fn a_later_interrupt_shortens_the_grace_and_never_lengthens_it() {
    let (clock, host, runaway, spinner) = manual_host().await;
    let begin = async || {
        let victim = host.agent("default").call(&runaway, "ignore", json!({})).deadline(3 * GRACE).start();
        turns(&host, &runaway, 5).await;
        let _ = victim.interrupt_with(operator().grace(10 * GRACE));
        victim
    };
    let victim = begin().await;
    for grace in [GRACE, 20 * GRACE] {
        let _ = victim.interrupt_with(Interrupt::new(Cause::Priority, "later").grace(grace));
    }
    clock.advance(GRACE - MOMENT);
    ticks(&host, &spinner).await;
    assert!(victim.try_outcome().is_none(), "it was cut off before the shortest grace");
    clock.advance(MOMENT);
    let outcome = within(victim.outcome()).await;
    assert_eq!((stopped(&outcome).cause, stopped(&outcome).halted), (Cause::Operator, GRACE), "lengthened");

    let victim = begin().await;
    let _ = victim.interrupt(Cause::Priority, "later");
    let outcome = within(victim.outcome()).await;
    assert_eq!((stopped(&outcome).cause, stopped(&outcome).halted), (Cause::Operator, Duration::ZERO), "at once");

    let victim = begin().await;
    clock.advance(3 * GRACE);
    let outcome = within(victim.outcome()).await;
    assert_eq!((stopped(&outcome).cause, stopped(&outcome).halted), (Cause::Operator, 3 * GRACE), "the deadline");
}

/// Row 18: it ends within its grace by itself; no time passes on the host's clock. What it had written is gone.
#[tokio::test]
async fn a_polite_tool_ends_in_its_grace_and_leaves_nothing() {
    let (clock, store) = (ManualClock::new(), Arc::new(Memory::new()));
    let host = narrow(2).clock(clock).store_arc(Arc::clone(&store) as Arc<_>).build().unwrap();
    let runaway = load(&host, "runaway").await;
    let polite = host.agent("default").call(&runaway, "polite", json!({ "steps": 100_000, "step_ms": 1 })).start();
    let mut progress = polite.progress();
    within(progress.wait_for(|progress| progress.as_ref().is_some_and(|progress| progress.done >= 3))).await.unwrap();
    let _ = polite.interrupt_with(operator().grace(GRACE));
    let outcome = within(polite.outcome()).await;
    assert_eq!((stopped(&outcome).cause, stopped(&outcome).halted), (Cause::Operator, Duration::ZERO));
    assert!(outcome.discarded.writes >= 3, "{:?}", outcome.discarded);
    assert_eq!(outcome.commits, Commits::default());
    let space = Space { agent: "default".into(), component: "runaway".into() };
    let left = Store::list(&*store, &space, &"runaway".into(), 10).await.unwrap();
    assert!(left.keys.is_empty(), "{:?}", left.keys);
}

/// Row 18, promise 8: the tool succeeds within its grace, and its success is discarded.
#[tokio::test]
async fn a_success_in_the_grace_is_discarded() {
    let (held, host, kv) = held_host().await;
    held.hold_reads();
    let call = host.agent("default").call(&kv, "add", json!({ "key": "k", "delta": 1 })).start();
    held.reading(1).await;
    let _ = call.interrupt_with(operator().grace(Duration::from_secs(600)));
    held.release();
    let outcome = within(call.outcome()).await;
    assert_eq!(stopped(&outcome).cause, Cause::Operator);
    assert_eq!((outcome.commits, outcome.discarded.writes), (Commits::default(), 1));
    assert_eq!(value(&host, &kv).await, Value::Null);
}

/// Row 18, promise 8: a commit that was decided before the grace stays; in it `commit()` answers `interrupted`.
#[tokio::test]
async fn nothing_can_be_committed_in_the_grace() {
    let (held, host, kv) = held_host().await;
    held.hold_decided();
    let call = host.agent("default").call(&kv, "commit_twice", json!({ "key": "k", "value": 1 })).start();
    held.holding(1).await;
    let _ = call.interrupt_with(operator().grace(Duration::from_secs(600)));
    held.release();
    let outcome = within(call.outcome()).await;
    assert_eq!(stopped(&outcome).cause, Cause::Operator);
    assert_eq!((outcome.commits.points, outcome.discarded.writes), (1, 1));
    assert_eq!(value(&host, &kv).await, 1);
}
