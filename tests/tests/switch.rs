//! Promises 1, 2, 3, 7, 9, 10, 11 and 16, and rows 3, 4, 12, 22, 34 and 39 of the failure modes: there is one switch, it
//! works at once, and what it did is told as it was.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime};

use estop::log::Entry;
use estop::store::Store;
use estop::store::memory::Memory;
use estop::{
    Call, CallCtx, CallId, Cause, Clock, Commits, End, Host, HostLimits, Interrupt, Outcome, Reached, Scope,
    SystemClock,
};
use estop_tests::clock::ManualClock;
use estop_tests::counter::Counter;
use estop_tests::guests::Hostile;
use estop_tests::held::Held;
use estop_tests::probe::Probe;
use estop_tests::stage::{
    ACTOR, MARK, SPIN, WAIT, Waiting, grant, hostile, narrow, operator, start, stop, stopped, turns, until,
};
use estop_tests::{CAUSES, completed, end_entry, load, log, small, within};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// What an interrupt may take at most, even on a loaded machine. It takes microseconds.
const PROMPT: Duration = Duration::from_millis(50);

fn call_code(code: &str) -> Hostile<'_> {
    Hostile { call: code, ..Hostile::default() }
}

fn reached(interruption: &estop::Interruption) -> Vec<Reached> {
    interruption.reached().map(|(_, reached)| reached).collect()
}

fn interrupts(log: &[Value]) -> Vec<&Value> {
    log.iter().filter(|entry| entry["kind"] == "interrupt").collect()
}

/// Outcome and entry say the same: who stopped it and why.
fn assert_stopped_by(entry: &Value, outcome: &Outcome, cause: Cause, actor: &str) {
    assert_eq!((stopped(outcome).cause, stopped(outcome).actor.as_str()), (cause, actor));
    assert_entry_stopped_by(entry, cause, actor);
}

fn assert_entry_stopped_by(entry: &Value, cause: Cause, actor: &str) {
    assert_eq!((&entry["status"], &entry["cause"]), (&json!("stopped"), &json!(cause.as_str())), "{entry}");
    assert_eq!(entry["actor"], actor, "{entry}");
    assert!(entry["interrupt"].is_string() && entry["halted_us"].is_number(), "{entry}");
}

/// Row 34: what whoever stops says is what is told, word for word, and the end refers to the interrupt.
#[tokio::test]
async fn every_cause_is_told_as_it_was_given() {
    let probe = Probe::new();
    let host = probe.grant(small()).build().unwrap();
    let waiter = hostile(&host, call_code(WAIT)).await;
    for (at, cause) in (1..).zip(CAUSES) {
        let call = start(&host, "default", &waiter);
        probe.waiting(at).await;
        let _ = call.interrupt_with(Interrupt::new(cause, "somebody").reason("because"));
        let outcome = within(call.outcome()).await;
        assert_eq!(stopped(&outcome).reason, "because");
        let log = log(&host).await;
        let entry = end_entry(&log, &outcome);
        assert_stopped_by(entry, &outcome, cause, "somebody");
        let interrupt = interrupts(&log).into_iter().find(|i| i["interrupt"] == entry["interrupt"]).unwrap();
        assert_eq!((&interrupt["cause"], &interrupt["reason"]), (&json!(cause.as_str()), &json!("because")));
        assert_eq!(interrupt["scope"], json!({ "call": call.id().to_string() }));
    }
}

/// Row 34, promise 1: what the host stops by itself: a deadline, fuel and memory that are used up.
#[tokio::test]
async fn limits_stop_calls_by_the_same_switch_each_with_its_cause() {
    let clock = ManualClock::new();
    let host = Probe::new().grant(narrow(2)).clock(clock.clone()).build().unwrap();
    let spinner = hostile(&host, call_code(SPIN)).await;
    let grower = hostile(&host, call_code("(loop $again (drop (memory.grow (i32.const 1))) (br $again))")).await;
    let victim = |component| host.agent("default").call(component, "victim", Value::Null);

    let late = victim(&spinner).deadline(Duration::from_secs(5)).start();
    turns(&host, &spinner, 3).await;
    assert!(late.try_outcome().is_none(), "no time has passed");
    clock.advance(Duration::from_secs(5));
    let hungry = victim(&spinner).fuel(1_000_000).start();
    let big = victim(&grower).memory_bytes(1 << 20).start();
    for (call, cause) in [(late, Cause::Deadline), (hungry, Cause::Fuel), (big, Cause::Memory)] {
        let outcome = within(call.outcome()).await;
        let log = log(&host).await;
        assert_stopped_by(end_entry(&log, &outcome), &outcome, cause, "host");
        let told = within(async {
            loop {
                let log = estop_tests::log(&host).await;
                if let Some(entry) = interrupts(&log).into_iter().find(|i| i["cause"] == cause.as_str()) {
                    return entry.clone();
                }
            }
        })
        .await;
        assert_eq!(told["actor"], "host");
    }
}

/// Promise 1: what ends a call that nobody stopped is told as what it was, and nothing of it remains.
#[tokio::test]
async fn traps_exits_and_panics_are_settled_like_every_other_end() {
    let host = grant(small(), |_| resume_unwind(Box::new("as asked"))).build().unwrap();
    let (trap, panic) = (hostile(&host, call_code("unreachable")).await, hostile(&host, call_code(WAIT)).await);
    let (misc, kv) = (load(&host, "misc").await, load(&host, "kv").await);
    let write = json!({ "key": "k", "value": 1 });
    for (component, tool, input, says) in [
        (&trap, "victim", json!({}), "unreachable"),
        (&panic, "victim", json!({}), "a host function panicked: as asked"),
        (&misc, "exit", json!({}), "exited with status 0"),
        (&kv, "write_then_panic", write, "as asked, after writing `k`"),
    ] {
        let outcome = estop_tests::call(&host, component, tool, input).await;
        assert_eq!(outcome.end.status(), "trapped", "{:?}", outcome.end);
        assert!(outcome.end.error().is_some_and(|error| error.contains(says)), "{:?}", outcome.end);
        assert_eq!(
            (outcome.commits, outcome.discarded.writes),
            (Commits::default(), u64::from(tool != "exit" && tool != "victim"))
        );
        let log = log(&host).await;
        let entry = end_entry(&log, &outcome);
        assert_eq!((&entry["status"], &entry["cause"]), (&json!("trapped"), &Value::Null));
    }
    let value = estop_tests::call(&host, &kv, "get", json!({ "key": "k" })).await;
    assert_eq!(completed(&value)["value"], Value::Null);
}

async fn entry_of(host: &Host, call: CallId) -> Value {
    let log = log(host).await;
    let mut ends = log.into_iter().filter(|entry| entry["kind"] == "end" && entry["call"] == call.to_string());
    ends.next().expect("the call has an end")
}

/// Promise 1, row 34: a handle that is dropped is `cancelled`; a future of the outcome that is dropped is nothing.
#[tokio::test]
async fn a_dropped_handle_stops_its_call() {
    let probe = Probe::new();
    let host = probe.grant(small()).build().unwrap();
    for (at, code) in [WAIT, SPIN].into_iter().enumerate() {
        let component = hostile(&host, call_code(&format!("{MARK} {code}"))).await;
        let call = start(&host, "default", &component);
        probe.marked(at as u64 + 1).await;
        assert!(tokio::time::timeout(Duration::ZERO, call.outcome()).await.is_err());
        turns(&host, &component, 5).await;
        assert!(call.try_outcome().is_none(), "dropping the future of the outcome has stopped the call");
        let id = call.id();
        drop(call);
        until(|| host.live_calls() == 0).await;
        assert_entry_stopped_by(&entry_of(&host, id).await, Cause::Cancelled, "client");
    }
}

/// Promise 1: detaching is explicit, and lets the call run to its end; it can still be stopped.
#[tokio::test]
async fn a_detached_call_goes_on_and_can_still_be_stopped() {
    let (permits, waiting) = (Arc::new(Semaphore::new(0)), Counter::new());
    let (acquire, count) = (Arc::clone(&permits), waiting.clone());
    let builder = grant(small(), move |_| {
        let permits = Arc::clone(&acquire);
        count.add();
        Box::pin(async move { permits.acquire_owned().await.map(|permit| permit.forget()).map_err(Into::into) })
    });
    let host = builder.build().unwrap();
    let waiter = hostile(&host, call_code(WAIT)).await;
    let detached = start(&host, "default", &waiter).detach();
    waiting.reached(1).await;
    turns(&host, &waiter, 10).await;
    assert_eq!(host.live_calls(), 1, "the detached call has ended");
    permits.add_permits(1);
    until(|| host.live_calls() == 0).await;
    assert_eq!(entry_of(&host, detached).await["status"], "completed");

    let detached = start(&host, "default", &waiter).detach();
    waiting.reached(2).await;
    let outcomes = within(host.interrupt(Scope::Call(detached), operator()).released()).await;
    assert_eq!(stopped(&outcomes[0]).cause, Cause::Operator);
}

/// Promise 1, row 34: with the last handle on the host everything stops, and is entered as that; nothing starts any more.
#[tokio::test]
async fn a_dropped_host_stops_everything_as_shutdown() {
    let (probe, store) = (Probe::new(), Arc::new(Memory::new()));
    let host = probe.grant(small()).store_arc(Arc::clone(&store) as Arc<dyn Store>).build().unwrap();
    let waiter = hostile(&host, call_code(&format!("{MARK} {WAIT}"))).await;
    let spinner = hostile(&host, call_code(&format!("{MARK} {SPIN}"))).await;
    let calls: Vec<Call> = [&waiter, &spinner].map(|component| start(&host, "default", component)).into();
    probe.marked(2).await;
    let agent = host.agent("default");
    drop(host.clone());
    assert!(calls.iter().all(|call| call.try_outcome().is_none()), "a clone of the handle was dropped, not the last");
    drop(host);
    for call in &calls {
        let outcome = within(call.outcome()).await;
        let id = call.id().to_string();
        let entries = || store.entries(0, usize::MAX).unwrap().iter().map(Entry::to_json).collect::<Vec<_>>();
        until(|| entries().iter().any(|entry| entry["kind"] == "end" && entry["call"] == id)).await;
        assert_stopped_by(end_entry(&entries(), &outcome), &outcome, Cause::Shutdown, "host");
    }
    let outcome = within(agent.call(&waiter, "victim", Value::Null).start().outcome()).await;
    assert_eq!(outcome.end.status(), "refused");
}

/// Interrupts each call and says how long that took, without what came of it.
fn interrupt_timed(calls: &[Call]) -> Vec<Duration> {
    let timed = |call: &Call| {
        let begin = Instant::now();
        let interruption = call.interrupt_with(operator());
        let took = begin.elapsed();
        assert_eq!(interruption.len(), 1);
        took
    };
    let mut took: Vec<_> = calls.iter().map(timed).collect();
    took.sort();
    took
}

/// Row 22, promises 2 and 13: while the store keeps the committer, interrupts return, calls stop and are released.
#[tokio::test]
async fn neither_an_interrupt_nor_a_release_waits_for_a_write_of_the_store() {
    let (probe, held) = (Probe::new(), Held::new());
    let host = probe.grant(small()).store(held.clone()).build().unwrap();
    let kv = load(&host, "kv").await;
    let spinner = hostile(&host, call_code(&format!("{MARK} {SPIN}"))).await;
    let waiter = hostile(&host, call_code(&format!("{MARK} {WAIT}"))).await;
    held.hold_undecided();
    let write = host.agent("default").call(&kv, "set", json!({ "key": "k", "value": 1 })).start();
    held.holding(1).await;

    let mut calls: Vec<Call> =
        (0..50).map(|at| start(&host, "default", if at % 5 == 0 { &spinner } else { &waiter })).collect();
    probe.marked(50).await;
    calls.push(write);
    let took = interrupt_timed(&calls);
    assert!(took[took.len() / 2] < PROMPT, "{took:?}");
    for call in &calls {
        assert_eq!(stopped(&*within(call.outcome()).await).cause, Cause::Operator);
    }
    let ids: Vec<String> = calls.iter().map(|call| call.id().to_string()).collect();
    let ends = |log: &[Value]| {
        let ended = |entry: &&Value| entry["kind"] == "end" && ids.iter().any(|id| entry["call"] == *id);
        log.iter().filter(ended).count()
    };
    let before: Vec<Value> = held.entries(0, usize::MAX).unwrap().iter().map(Entry::to_json).collect();
    assert_eq!(ends(&before), 0, "the write was not held");
    held.release();
    assert_eq!(ends(&log(&host).await), calls.len(), "the log has lost something");
}

/// Row 12, promise 16: more spinning guests than workers. Interrupts work, others get their turns, and whoever is not
/// stopped goes on.
#[tokio::test]
async fn spinning_guests_on_every_worker_hold_up_neither_interrupts_nor_other_calls() {
    let probe = Probe::new();
    let host = probe.grant(small()).build().unwrap();
    let spinner = hostile(&host, call_code(&format!("{MARK} {SPIN}"))).await;
    let quick = hostile(&host, call_code("")).await;
    let spinners: Vec<Call> = (0..8).map(|_| start(&host, "spinners", &spinner)).collect();
    probe.marked(8).await;
    for _ in 0..20 {
        completed(&within(start(&host, "default", &quick).outcome()).await);
    }
    assert_eq!(host.live_calls(), 8);
    let took = interrupt_timed(&spinners[..4]);
    assert!(took[2] < PROMPT, "{took:?}");
    for call in &spinners[..4] {
        assert_eq!(stopped(&*within(call.outcome()).await).cause, Cause::Operator);
    }
    assert_eq!(host.live_calls(), 4, "somebody else was stopped too");
    let rest = within(host.interrupt(Scope::Host, operator()).released()).await;
    assert_eq!(rest.len(), 4);
}

/// Row 4, promise 7: asking again is harmless, delivers again and is entered; the first cause wins.
#[tokio::test]
async fn asking_again_is_harmless_delivered_and_entered() {
    let probe = Probe::new();
    let host = probe.grant(small()).build().unwrap();
    let waiter = hostile(&host, call_code(WAIT)).await;
    let call = start(&host, "default", &waiter);
    probe.waiting(1).await;
    let first = call.interrupt_with(operator().reason("first"));
    let second = call.interrupt_with(Interrupt::new(Cause::Priority, "bob").reason("second"));
    assert_eq!((first.len(), second.len()), (1, 1), "the second was not delivered");
    let outcome = within(call.outcome()).await;
    let third = call.interrupt(Cause::Drill, "carol");
    assert_eq!(within(third.released()).await[0].call, outcome.call);

    let log = log(&host).await;
    let told: Vec<_> = interrupts(&log).iter().map(|i| (i["cause"].clone(), i["reached"].clone())).collect();
    assert_eq!(told, [(json!("operator"), json!(1)), (json!("priority"), json!(1)), (json!("drill"), json!(1))]);
    let entry = end_entry(&log, &outcome);
    assert_stopped_by(entry, &outcome, Cause::Operator, ACTOR);
    assert_eq!((&entry["reason"], &entry["interrupt"]), (&json!("first"), &interrupts(&log)[0]["interrupt"]));
}

/// A host function that blocks the thread of its worker, not as a future, until it is let go.
fn blocking(entered: &Counter) -> (mpsc::Sender<()>, impl Fn(&mut CallCtx) -> Waiting + Send + Sync + 'static) {
    let (let_go, blocked) = mpsc::channel::<()>();
    let (blocked, entered) = (Mutex::new(blocked), entered.clone());
    let wait = move |_: &mut CallCtx| -> Waiting {
        entered.add();
        let _ = blocked.lock().unwrap().recv();
        Box::pin(async { Ok(()) })
    };
    (let_go, wait)
}

/// Row 3, promises 3 and 11: a host function that blocks its thread. Halted, acknowledged and released are told apart:
/// the call is not said to be stopped before it is released; it stays listed, and can be stopped again.
#[tokio::test]
async fn a_call_whose_teardown_is_blocked_stays_unconfirmed_listed_and_stoppable() {
    let entered = Counter::new();
    let (let_go, wait) = blocking(&entered);
    let host = grant(small(), wait).build().unwrap();
    let (blocker, quick) = (hostile(&host, call_code(WAIT)).await, hostile(&host, call_code("")).await);
    let call = start(&host, "default", &blocker);
    entered.reached(1).await;

    let first = call.interrupt_with(operator());
    assert_eq!(reached(&first), [Reached::Running]);
    for _ in 0..20 {
        completed(&within(start(&host, "default", &quick).outcome()).await);
    }
    assert_eq!(first.unconfirmed().collect::<Vec<_>>(), [call.id()]);
    assert!(call.try_outcome().is_none(), "`stopped` was said before the release");
    assert_eq!(host.live_calls(), 1);
    let second = host.interrupt(Scope::Agent("default".into()), Interrupt::new(Cause::Priority, "bob"));
    assert_eq!(reached(&second), [Reached::Running]);
    assert_eq!(second.unconfirmed().count(), 1);
    assert_eq!(interrupts(&log(&host).await).len(), 2);

    let_go.send(()).unwrap();
    let outcome = within(call.outcome()).await;
    assert_eq!(stopped(&outcome).cause, Cause::Operator);
    assert_eq!(first.unconfirmed().count() + second.unconfirmed().count(), 0);
    assert_eq!(within(second.released()).await[0].call, call.id());
    assert_eq!(host.live_calls(), 0);
}

/// Promise 11: where each call stood is told rightly.
#[tokio::test]
async fn an_interrupt_tells_where_each_call_stood() {
    let entered = Counter::new();
    let (let_go, wait) = blocking(&entered);
    let host = grant(narrow(4), wait).build().unwrap();
    let (blocker, quick) = (hostile(&host, call_code(WAIT)).await, hostile(&host, call_code("")).await);
    let ended = start(&host, "default", &quick);
    completed(&within(ended.outcome()).await);
    let running = start(&host, "default", &blocker);
    entered.reached(1).await;
    let (waiting, warned) = (start(&host, "default", &quick), start(&host, "default", &quick));

    assert_eq!(reached(&ended.interrupt_with(operator())), [Reached::TooLate]);
    assert_eq!(reached(&running.interrupt_with(operator())), [Reached::Running]);
    assert_eq!(reached(&waiting.interrupt_with(operator())), [Reached::Halted]);
    assert_eq!(reached(&warned.interrupt_with(operator().grace(Duration::from_secs(60)))), [Reached::Warned]);
    assert!(host.interrupt(Scope::Agent("nobody".into()), operator()).is_empty());
    let_go.send(()).unwrap();
    for call in [running, waiting, warned] {
        assert_eq!(stopped(&*within(call.outcome()).await).cause, Cause::Operator);
    }
    completed(&within(ended.outcome()).await);
}

/// Row 39, promise 9: the store is gone with its call. The same component runs again, in the same place of the pool, and
/// finds nothing of it.
#[tokio::test]
async fn after_a_stop_the_same_component_works_again_in_a_fresh_store() {
    let probe = Probe::new();
    let host = probe.grant(narrow(1)).build().unwrap();
    let code = format!(
        "(if (i32.load (i32.const 60000)) (then unreachable)) (i32.store (i32.const 60000) (i32.const 1)) {WAIT}"
    );
    let waiter = hostile(&host, call_code(&code)).await;
    let mut fuel = None;
    for round in 1..=100 {
        let call = start(&host, "default", &waiter);
        probe.waiting(round).await;
        turns(&host, &waiter, 1).await;
        let outcome = stop(&call).await;
        assert_eq!(*fuel.get_or_insert(outcome.fuel), outcome.fuel, "round {round}");
    }
}

/// The clock of a host whose ticker dies.
struct Deadly {
    clock: SystemClock,
    kills: Arc<AtomicBool>,
}

impl Clock for Deadly {
    fn monotonic(&self) -> Duration {
        let is_tickers = || std::thread::current().name() == Some("estop-tick");
        assert!(!self.kills.load(Ordering::Acquire) || !is_tickers(), "as asked, the ticker dies");
        self.clock.monotonic()
    }

    fn wall(&self) -> SystemTime {
        self.clock.wall()
    }
}

/// Row 11: a host whose ticker is dead keeps no deadline, so it lets nobody in. What runs is stopped as ever, on its only
/// worker, without a tick.
#[tokio::test]
async fn a_dead_ticker_keeps_calls_out_and_delays_no_stop() {
    let kills = Arc::new(AtomicBool::new(false));
    let clock = Deadly { clock: SystemClock::new(), kills: Arc::clone(&kills) };
    let limits = HostLimits { workers: 1, ..HostLimits::default() };
    let host = small().limits(limits).clock(clock).build().expect("a host");
    let runaway = load(&host, "runaway").await;
    let spin = |agent| host.agent(agent).call(&runaway, "spin", json!({})).start();
    let spinning: Vec<Call> = ["a", "b"].map(spin).into();
    kills.store(true, Ordering::Release);
    // Until it is found dead; what was let in before that is stopped.
    let why = within(async {
        loop {
            let call = spin("late");
            let refused = tokio::time::timeout(Duration::from_millis(50), call.outcome()).await;
            match refused.as_deref().map(|outcome| &outcome.end) {
                Ok(End::Refused(why)) => return why.clone(),
                _ => drop(call.interrupt(Cause::Operator, "alice")),
            }
        }
    })
    .await;
    assert!(why.contains("ticker") && why.contains("restart"), "{why}");
    for call in &spinning {
        let _ = call.interrupt(Cause::Operator, "alice");
        let outcome = within(call.outcome()).await;
        let stopped = outcome.end.stopped().expect("it is stopped");
        // Generous: on a busy machine.
        assert!(stopped.halted < Duration::from_secs(1), "{:?}", stopped.halted);
    }
}
