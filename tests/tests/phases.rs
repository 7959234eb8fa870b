//! Promises 4 and 8, and rows 5, 13, 15 and 20 of the failure modes: an interrupt reaches a call in every phase.

use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use estop::{CallLimits, Cause, Commits, FUEL_INTERVAL, Host, LoadError, Outcome, Reached, Scope, Source};
use estop_tests::clock::ManualClock;
use estop_tests::counter::Counter;
use estop_tests::guests::Hostile;
use estop_tests::probe::Probe;
use estop_tests::stage::{
    ACTOR, MARK, MARK_FIRST, SPIN, WAIT, grant, held_host, hostile, load_bytes, narrow, operator, spins_in_destructor,
    spins_while_listing, start, stop, stop_suspended, stopped, turns, value,
};
use estop_tests::{call, completed, end_entry, load, log, small, within};
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};

const SPINNER: Hostile<'_> = Hostile { start: "", realloc: "", call: SPIN, post: "" };

fn never_ran(outcome: &Outcome) {
    assert_eq!((outcome.fuel, outcome.elapsed), (0, Duration::ZERO), "{:?}", outcome.end);
    assert_eq!((outcome.commits, outcome.discarded.writes), (Commits::default(), 0));
}

/// Promise 4, row 5: it has been polled and waits for room in the pool.
#[tokio::test]
async fn a_call_that_queues_for_room_is_stopped_without_a_guest_instruction() {
    let probe = Probe::new();
    let host = probe.grant(narrow(1)).build().unwrap();
    let waiter = hostile(&host, Hostile { start: MARK_FIRST, call: WAIT, ..Hostile::default() }).await;
    let holder = start(&host, "holder", &waiter);
    probe.waiting(1).await;
    for _ in 0..20 {
        let queued = start(&host, "queued", &waiter);
        turns(&host, &waiter, 1).await;
        let outcome = stop_suspended(&queued).await;
        never_ran(&outcome);
        assert_eq!(end_entry(&log(&host).await, &outcome)["fuel"], 0);
    }
    assert_eq!(probe.marks(), 1, "a stopped call has run");
    assert!(holder.try_outcome().is_none(), "the stop has hit the call that has the room");

    let next = start(&host, "queued", &waiter);
    stop(&holder).await;
    probe.waiting(2).await;
    assert!(stop(&next).await.fuel > 0, "the room was lost");
}

/// Promise 4, row 5: it is registered, and no worker has taken it up yet.
#[tokio::test]
async fn a_call_that_no_worker_has_taken_up_is_stopped_without_a_guest_instruction() {
    let (release, released) = mpsc::channel::<()>();
    let (released, blocked, began) = (Mutex::new(released), Counter::new(), Counter::new());
    let (count_blocked, count_began) = (blocked.clone(), began.clone());
    let builder = grant(narrow(8), move |ctx| {
        if ctx.agent() == "blocker" {
            count_blocked.add();
            let _ = released.lock().unwrap().recv();
        } else if !ctx.is_describing() {
            count_began.add();
        }
        Box::pin(async { Ok(()) })
    });
    let host = builder.build().unwrap();
    let victim = hostile(&host, Hostile { start: "(func $f (call $wait)) (start $f)", ..SPINNER }).await;
    let blocker = hostile(&host, Hostile { call: WAIT, ..Hostile::default() }).await;
    let blocking = start(&host, "blocker", &blocker);
    blocked.reached(1).await;

    let victims: Vec<_> = (0..5).map(|_| start(&host, "default", &victim)).collect();
    for victim in &victims {
        let interruption = victim.interrupt_with(operator());
        assert_eq!(interruption.reached().next(), Some((victim.id(), Reached::Halted)));
    }
    release.send(()).unwrap();
    for victim in &victims {
        never_ran(&*within(victim.outcome()).await);
    }
    assert_eq!(began.get(), 0, "a stopped call has run");
    completed(&within(blocking.outcome()).await);
}

/// Row 5: whenever it comes, from before the first poll until well into the guest's loop, it is not lost.
#[tokio::test]
async fn a_stop_that_comes_early_is_never_lost() {
    let probe = Probe::new();
    let host = probe.grant(small()).build().unwrap();
    let spinner = hostile(&host, Hostile { start: MARK_FIRST, ..SPINNER }).await;
    let mut unrun = 0;
    for run in 0..400_u32 {
        let marks = probe.marks();
        let victim = start(&host, "default", &spinner);
        let until = Instant::now() + Duration::from_nanos(u64::from(run) * 500);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        let outcome = stop(&victim).await;
        if probe.marks() == marks {
            unrun += 1;
            // It may have come between the guest's entry and its first call to the host, which is the mark: the gate
            // refuses that one, and two instructions were counted.
            assert!(outcome.fuel <= 2, "run {run}: {} of fuel, and no mark", outcome.fuel);
        }
    }
    assert!((1..400).contains(&unrun), "{unrun} of 400 stops came before the guest: the delays do not straddle it");
}

async fn describing_is_stopped(
    component: Vec<u8>,
    stop: impl FnOnce(&Host, &ManualClock),
    is_it: impl FnOnce(&LoadError) -> bool,
) {
    let (clock, begun) = (ManualClock::new(), Counter::new());
    let count = begun.clone();
    let host = grant(narrow(1).clock(clock.clone()), move |_| {
        count.add();
        Box::pin(async { Ok(()) })
    });
    let limits = CallLimits { deadline: Duration::from_secs(5), ..CallLimits::default() };
    let host = host.call_limits(limits).build().unwrap();
    let loading = tokio::spawn({
        let host = host.clone();
        async move { host.load(Source::bytes(component)).await }
    });
    begun.reached(1).await;
    assert_eq!(host.live_calls(), 2, "loading is a call like any other, and so is describing, below it");
    stop(&host, &clock);
    let error = within(loading).await.unwrap().unwrap_err();
    assert!(is_it(&error), "{error:?}");
    assert_eq!(host.live_calls(), 0);
    let quick = hostile(&host, Hostile::default()).await;
    completed(&call(&host, &quick, "victim", Value::Null).await);
}

fn stop_agent_host(host: &Host, _: &ManualClock) {
    assert_eq!(host.interrupt(Scope::Agent("host".into()), operator()).len(), 2);
}

/// Only what it is in, by its name: what is below it is stopped with it.
fn stop_load(host: &Host, _: &ManualClock) {
    assert_eq!(host.interrupt(Scope::Tool("load".into()), operator()).len(), 2);
}

/// Only the description. Then there is nothing to load.
fn stop_list_tools(host: &Host, _: &ManualClock) {
    assert_eq!(host.interrupt(Scope::Tool("list-tools".into()), operator()).len(), 1);
}

fn by_operator(error: &LoadError) -> bool {
    matches!(error, LoadError::Stopped { cause: Cause::Operator, actor, .. } if actor == ACTOR)
}

/// Promise 4: describing is guest code.
#[tokio::test]
async fn a_component_that_spins_in_list_tools_is_stopped() {
    describing_is_stopped(spins_while_listing(), stop_agent_host, by_operator).await;
    describing_is_stopped(spins_while_listing(), stop_load, by_operator).await;
    describing_is_stopped(spins_while_listing(), stop_list_tools, by_operator).await;
}

/// Promise 4, row 15: so is a start function that runs before it.
#[tokio::test]
async fn a_start_function_that_spins_while_the_component_is_described_is_stopped() {
    let start = format!("(func $spin (call $wait) {SPIN}) (start $spin)");
    let component = Hostile { start: &start, ..Hostile::default() }.component();
    describing_is_stopped(component, stop_agent_host, by_operator).await;
}

/// Promise 4: nobody has to be there to stop it.
#[tokio::test]
async fn describing_has_a_deadline() {
    let wait = |_: &Host, clock: &ManualClock| clock.advance(Duration::from_secs(6));
    let is_it = |error: &LoadError| matches!(error, LoadError::Describe(why) if why.contains("deadline"));
    describing_is_stopped(spins_while_listing(), wait, is_it).await;
}

/// Stops a guest that has marked a point and then kept its worker busy through many turns of others.
async fn busy_is_stopped(component: Vec<u8>) {
    let probe = Probe::new();
    let host = probe.grant(narrow(2)).build().unwrap();
    let component = load_bytes(&host, component).await;
    let victim = start(&host, "default", &component);
    probe.marked(1).await;
    turns(&host, &component, 20).await;
    assert!(victim.try_outcome().is_none(), "it has ended by itself");
    let outcome = stop(&victim).await;
    assert!(outcome.fuel >= FUEL_INTERVAL, "it has not spun: {} units of fuel", outcome.fuel);
    assert_eq!(host.live_calls(), 0);
}

/// Promise 4: running.
#[tokio::test]
async fn a_spinning_tool_is_stopped() {
    busy_is_stopped(Hostile { call: &format!("{MARK} {SPIN}"), ..Hostile::default() }.component()).await;
}

/// Promise 4, row 15: instantiating.
#[tokio::test]
async fn a_spinning_start_function_is_stopped() {
    let start = format!("(func $spin (if (call $describing) (then (return))) {SPIN}) (start $spin)");
    busy_is_stopped(Hostile { start: &start, ..Hostile::default() }.component()).await;
}

/// Promise 4, row 15: lowering the arguments.
#[tokio::test]
async fn a_spinning_realloc_is_stopped() {
    busy_is_stopped(Hostile { start: MARK_FIRST, realloc: SPIN, ..Hostile::default() }.component()).await;
}

/// Promise 4, row 15: the answer has been lifted already, and is not told.
#[tokio::test]
async fn a_spinning_post_return_is_stopped() {
    busy_is_stopped(Hostile { call: MARK, post: SPIN, ..Hostile::default() }.component()).await;
}

/// Promise 4, row 15: dropping a resource of the component's own. Dropping the store runs no destructor, and no other
/// resource passes through the contract.
#[tokio::test]
async fn a_spinning_destructor_is_stopped() {
    busy_is_stopped(spins_in_destructor()).await;
}

/// Promise 4, row 13: a host function that waits for ever, and one that sleeps for an hour.
#[tokio::test]
async fn a_call_that_waits_or_sleeps_in_the_host_is_stopped() {
    let probe = Probe::new();
    let host = probe.grant(narrow(2)).build().unwrap();
    for (at, code) in (1..).zip([WAIT, "(call $sleep)"]) {
        let component = hostile(&host, Hostile { call: code, ..Hostile::default() }).await;
        let victim = start(&host, "default", &component);
        probe.waiting(at).await;
        turns(&host, &component, 1).await;
        assert!(stop_suspended(&victim).await.fuel > 0);
    }
}

/// Row 13: the standard library's sleep.
#[tokio::test]
async fn a_tool_that_sleeps_for_an_hour_is_stopped() {
    let host = narrow(2).build().unwrap();
    let misc = load(&host, "misc").await;
    let victim = host.agent("default").call(&misc, "sleep", json!({ "ms": 3_600_000 })).start();
    turns(&host, &misc, 50).await;
    assert!(stop_suspended(&victim).await.fuel > 0);
}

/// Rows 13 and 20: an approval, a lock, a rate limit, each held by somebody else; nothing of them is taken afterwards.
#[tokio::test]
async fn a_wait_for_approval_a_lock_or_a_rate_limit_is_stopped() {
    let (approval, lock, rate) = (Arc::new(Notify::new()), Arc::new(tokio::sync::Mutex::new(())), Semaphore::new(0));
    let (rate, pending) = (Arc::new(rate), Counter::new());
    let held = Arc::clone(&lock).lock_owned().await;
    let (wait_lock, wait_rate, count) = (Arc::clone(&lock), Arc::clone(&rate), pending.clone());
    let builder = grant(narrow(8), move |ctx| {
        count.add();
        let (approval, lock, rate) = (Arc::clone(&approval), Arc::clone(&wait_lock), Arc::clone(&wait_rate));
        match ctx.agent() {
            "approval" => Box::pin(async move {
                approval.notified().await;
                Ok(())
            }),
            "lock" => Box::pin(async move {
                let _locked = lock.lock_owned().await;
                Ok(())
            }),
            _ => Box::pin(async move { rate.acquire_owned().await.map(|permit| permit.forget()).map_err(Into::into) }),
        }
    });
    let host = builder.build().unwrap();
    let waiter = hostile(&host, Hostile { call: WAIT, ..Hostile::default() }).await;
    for (at, agent) in (1..).zip(["approval", "lock", "rate"]) {
        let victim = start(&host, agent, &waiter);
        pending.reached(at).await;
        turns(&host, &waiter, 1).await;
        stop_suspended(&victim).await;
    }
    drop(held);
    assert!(lock.try_lock().is_ok(), "a stopped call has got the lock");
    rate.add_permits(1);
    assert_eq!(rate.available_permits(), 1, "a stopped call has used the rate limit");
}

fn kinds(log: &[Value], outcome: &Outcome) -> Vec<String> {
    let id = outcome.call.to_string();
    let of_call = log.iter().filter(|entry| entry["call"] == id && entry["kind"] != "start");
    of_call.map(|entry| entry["kind"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Promises 4 and 8, row 13: a read that does not come back.
#[tokio::test]
async fn a_call_that_waits_for_the_store_is_stopped() {
    let (held, host, kv) = held_host().await;
    held.hold_reads();
    let victim = host.agent("default").call(&kv, "add", json!({ "key": "k", "delta": 1 })).start();
    held.reading(1).await;
    turns(&host, &kv, 1).await;
    stop_suspended(&victim).await;
    held.release();
    assert_eq!(value(&host, &kv).await, Value::Null);
}

/// Promises 4 and 8: its ticket is queued, so the stop withdraws it, and does not wait for the I/O.
#[tokio::test]
async fn a_queued_commit_is_withdrawn_and_never_applied() {
    let (held, host, kv) = held_host().await;
    held.hold_undecided();
    let victim = host.agent("default").call(&kv, "set", json!({ "key": "k", "value": 1 })).start();
    held.holding(1).await;
    let outcome = stop(&victim).await;
    assert_eq!((outcome.commits, outcome.discarded.writes), (Commits::default(), 1));
    held.release();
    assert_eq!(value(&host, &kv).await, Value::Null);
    assert_eq!(kinds(&log(&host).await, &outcome), ["end"]);
}

/// Promises 4, 8 and 11: its commit point is decided, so it is stopping until the I/O ends, and then tells what became
/// durable. Its guest runs no further.
#[tokio::test]
async fn a_stop_after_a_decided_commit_point_waits_for_it_and_tells_it() {
    let (held, host, kv) = held_host().await;
    held.hold_decided();
    let victim = host.agent("default").call(&kv, "commit_then_spin", json!({ "key": "k", "value": 1 })).start();
    held.holding(1).await;
    turns(&host, &kv, 1).await;
    let interruption = victim.interrupt_with(operator());
    assert_eq!(interruption.reached().collect::<Vec<_>>(), [(victim.id(), Reached::Halted)]);
    turns(&host, &kv, 20).await;
    assert_eq!(interruption.unconfirmed().collect::<Vec<_>>(), [victim.id()], "released before its I/O has ended");
    assert_eq!(host.live_calls(), 1);

    held.release();
    let outcome = within(victim.outcome()).await;
    assert_eq!(stopped(&outcome).cause, Cause::Operator);
    assert_eq!((outcome.commits.points, outcome.commits.writes, outcome.discarded.writes), (1, 1, 0));
    assert_eq!(*victim.progress().borrow(), None, "the guest has gone on");
    assert_eq!(value(&host, &kv).await, 1);
    let log = log(&host).await;
    assert_eq!(kinds(&log, &outcome), ["commit", "end"]);
    assert_eq!(end_entry(&log, &outcome)["commits"]["points"], 1);
}

/// Promise 8: the commit of a call's successful end is decided, so the answer is the outcome.
#[tokio::test]
async fn a_stop_after_the_decided_end_of_a_call_is_too_late() {
    let (held, host, kv) = held_host().await;
    held.hold_decided();
    let call = host.agent("default").call(&kv, "set", json!({ "key": "k", "value": 1 })).start();
    held.holding(1).await;
    let interruption = call.interrupt_with(operator());
    assert_eq!(interruption.reached().collect::<Vec<_>>(), [(call.id(), Reached::TooLate)]);
    held.release();
    let outcome = within(call.outcome()).await;
    completed(&outcome);
    assert_eq!(outcome.commits.points, 1);
    assert_eq!(value(&host, &kv).await, 1);
}
