//! Row 20, promises 4 and 18: who is let in, in which order, who has to give way for whom, and that no place is ever lost.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use estop::{Call, Cause, Component, End, Host, HostLimits, Interrupt, Outcome, Reached, Scope};
use estop_tests::counter::Counter;
use estop_tests::guests::Hostile;
use estop_tests::stage::{ACTOR, MARK_FIRST, WAIT, grant, hostile, operator, sized, stop, stopped, turns, until};
use estop_tests::{end_entry, log, within};
use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use serde_json::Value;
use tokio::sync::Semaphore;

/// Calls of the test without lost wake-ups.
const STORM: usize = 2_000;

/// A host whose guests wait in a host function until they are let go, and the agents in the order in which they came there.
struct Stage {
    host: Host,
    waiter: Component,
    let_go: Arc<Semaphore>,
    came: Arc<Mutex<Vec<String>>>,
    waits: Counter,
}

impl Stage {
    async fn new(workers: usize, sandboxes_max: u32, queue_max: usize) -> Self {
        let (let_go, came, waits) = (Arc::new(Semaphore::new(0)), Arc::<Mutex<Vec<String>>>::default(), Counter::new());
        let (opens, comes, counts) = (Arc::clone(&let_go), Arc::clone(&came), waits.clone());
        let limits = HostLimits { sandboxes_max, queue_max, workers, ..HostLimits::default() };
        let builder = grant(sized(workers, sandboxes_max).limits(limits), move |ctx| {
            comes.lock().unwrap().push(ctx.agent().to_owned());
            counts.add();
            let opens = Arc::clone(&opens);
            Box::pin(async move {
                opens.acquire().await?.forget();
                Ok(())
            })
        });
        let host = builder.build().unwrap();
        let waiter = hostile(&host, Hostile { start: MARK_FIRST, call: WAIT, ..Hostile::default() }).await;
        Self { host, waiter, let_go, came, waits }
    }

    fn start(&self, agent: &str, priority: u8) -> Call {
        self.host.agent(agent).call(&self.waiter, "victim", Value::Null).priority(priority).start()
    }

    /// Starts a call that waits for room: with one worker, short calls after it show that it has been polled.
    async fn queue(&self, agent: &str, priority: u8) -> Call {
        let call = self.start(agent, priority);
        turns(&self.host, &self.waiter, 2).await;
        assert!(call.try_outcome().is_none(), "{:?}", call.try_outcome());
        call
    }

    fn came(&self) -> Vec<String> {
        self.came.lock().unwrap().clone()
    }
}

async fn ended(call: &Call) -> Arc<Outcome> {
    within(call.outcome()).await
}

#[track_caller]
fn runs(call: &Call) {
    assert!(call.try_outcome().is_none(), "{:?}", call.try_outcome());
}

/// The more urgent first, and among equals who came first.
#[tokio::test]
async fn calls_are_let_in_by_priority_and_then_in_the_order_in_which_they_came() {
    let stage = Stage::new(1, 1, 100).await;
    let holder = stage.start("holder", 255);
    stage.waits.reached(1).await;
    let mut queued = Vec::new();
    for (agent, priority) in [("c1", 100), ("d1", 7), ("b1", 101), ("c2", 100), ("a1", 255), ("b2", 101), ("d2", 7)] {
        queued.push(stage.queue(agent, priority).await);
    }
    runs(&holder);
    stage.let_go.add_permits(1 + queued.len());
    for call in &queued {
        assert_eq!(ended(call).await.end.status(), "completed");
    }
    assert_eq!(stage.came(), ["holder", "a1", "b1", "b2", "c1", "c2", "d1", "d2"]);
}

/// Promise 18: the queue has a bound. Beyond it a call is refused and told what to do; one that is more urgent takes the turn
/// of the last.
#[tokio::test]
async fn queue_max() {
    let stage = Stage::new(1, 1, 2).await;
    let _holder = stage.start("holder", 200);
    stage.waits.reached(1).await;
    let (first, last) = (stage.queue("first", 150).await, stage.queue("last", 120).await);
    for priority in [0, 120] {
        let outcome = ended(&stage.start("late", priority)).await;
        let End::Refused(why) = &outcome.end else { panic!("{:?}", outcome.end) };
        for word in ["2 calls", "no room", "higher priority", "queue_max", "sandboxes_max"] {
            assert!(why.contains(word), "`{word}` is not in: {why}");
        }
    }
    runs(&last);
    let urgent = stage.start("urgent", 121);
    let outcome = ended(&last).await;
    assert_eq!((stopped(&outcome).cause, outcome.fuel), (Cause::Priority, 0));
    assert!(stopped(&outcome).reason.contains(&urgent.id().to_string()), "{:?}", outcome.end);
    runs(&first);
    stage.let_go.add_permits(3);
    assert_eq!(ended(&urgent).await.end.status(), "completed");
    assert_eq!(stage.came(), ["holder", "first", "urgent"]);
}

/// "When there is no room a higher priority stops the lowest running call, naming for whom"; and by whom is in the log.
#[tokio::test]
async fn the_least_urgent_gives_way_and_is_told_for_whom() {
    let stage = Stage::new(1, 4, 100).await;
    let mut running = Vec::new();
    for (agent, priority) in [("low", 50), ("older", 20), ("younger", 20), ("high", 90)] {
        running.push(stage.start(agent, priority));
        stage.waits.reached(running.len() as u64).await;
    }
    let urgent = stage.start("urgent", 60);
    let outcome = ended(&running[2]).await;
    assert_eq!((stopped(&outcome).cause, &*stopped(&outcome).actor), (Cause::Priority, "host"));
    for word in [&*urgent.id().to_string(), "agent urgent", "priority 60", "against 20"] {
        assert!(stopped(&outcome).reason.contains(word), "`{word}` is not in: {}", stopped(&outcome).reason);
    }
    stage.waits.reached(5).await;
    let log = log(&stage.host).await;
    let end = end_entry(&log, &outcome);
    assert_eq!((&end["cause"], &end["actor"]), (&"priority".into(), &"host".into()));
    let interrupts: Vec<_> = log.iter().filter(|entry| entry["kind"] == "interrupt").collect();
    assert_eq!(interrupts.len(), 1, "more than one place was made: {interrupts:?}");
    assert_eq!((&interrupts[0]["interrupt"], &interrupts[0]["reached"]), (&end["interrupt"], &1.into()));

    // The next ones, until everybody is as urgent as who comes.
    for index in [1, 0] {
        let next = stage.start("urgent", 60);
        assert_eq!(stopped(&*ended(&running[index]).await).cause, Cause::Priority);
        next.detach();
    }
    stage.waits.reached(7).await;
    let equal = stage.queue("urgent", 60).await;
    [&urgent, &running[3], &equal].into_iter().for_each(runs);
    assert_eq!(stage.waits.get(), 7);
}

/// Equals wait, however many come, and whoever is less urgent.
#[tokio::test]
async fn nobody_gives_way_to_an_equal() {
    let stage = Stage::new(1, 2, 100).await;
    let running = [stage.start("a", 100), stage.start("b", 100)];
    stage.waits.reached(2).await;
    for priority in [100, 99, 0, 100] {
        stage.queue("waits", priority).await.detach();
    }
    running.iter().for_each(runs);
    assert_eq!(stage.came(), ["a", "b"]);
}

/// What is being stopped already makes the room: nobody else is stopped for it, and nobody twice.
#[tokio::test]
async fn what_is_stopping_already_is_not_stopped_again_and_counts() {
    let stage = Stage::new(1, 2, 100).await;
    let (warned, other) = (stage.start("warned", 10), stage.start("other", 20));
    stage.waits.reached(2).await;
    let _ = warned.interrupt_with(operator().grace(Duration::from_secs(600)));
    // The one that tidies up is let alone, so the next one has to go.
    let first = stage.start("first", 50);
    assert_eq!(stopped(&*ended(&other).await).cause, Cause::Priority);
    stage.waits.reached(3).await;
    runs(&warned);
    // Nobody less urgent is left.
    let second = stage.queue("second", 50).await;
    runs(&warned);
    // Stopped by its operator: that is the room for whoever waits, and the first cause stays.
    let _ = warned.interrupt_with(operator());
    assert_eq!(stopped(&*ended(&warned).await).cause, Cause::Operator);
    stage.waits.reached(4).await;
    [&first, &second].into_iter().for_each(runs);
}

/// A call that does not come out of its host function is not waited for if somebody else can give way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_stuck_does_not_keep_the_urgent_waiting() {
    let (stuck, let_go) = (Counter::new(), Arc::new((Mutex::new(false), std::sync::Condvar::new())));
    let waits = Counter::new();
    let (counts, counts_waits, gate) = (stuck.clone(), waits.clone(), Arc::clone(&let_go));
    let builder = grant(sized(2, 2), move |ctx| {
        if ctx.agent() == "stuck" {
            counts.add();
            let (open, changed) = &*gate;
            drop(changed.wait_while(open.lock().unwrap(), |open| !*open).unwrap());
        }
        counts_waits.add();
        Box::pin(std::future::pending())
    });
    let host = builder.build().unwrap();
    let waiter = hostile(&host, Hostile { call: WAIT, ..Hostile::default() }).await;
    let start =
        |agent: &str, priority| host.agent(agent).call(&waiter, "victim", Value::Null).priority(priority).start();
    let blocked = start("stuck", 10);
    stuck.reached(1).await;
    let other = start("other", 20);
    waits.reached(1).await;
    let urgent = start("urgent", 50);
    assert_eq!(stopped(&*ended(&other).await).cause, Cause::Priority, "it waits for what never comes");
    waits.reached(2).await;
    [&blocked, &urgent].into_iter().for_each(runs);
    *let_go.0.lock().unwrap() = true;
    let_go.1.notify_all();
    assert_eq!(stopped(&*ended(&blocked).await).cause, Cause::Priority);
}

/// Row 20: a wait for room is stopped, at once and without an instruction, and its turn goes to the next.
#[tokio::test]
async fn a_wait_for_room_is_stopped_and_the_turn_goes_to_the_next() {
    let stage = Stage::new(1, 1, 3).await;
    let holder = stage.start("holder", 100);
    stage.waits.reached(1).await;
    for _ in 0..20 {
        // A stopped one leaves its turn: otherwise the queue would be full after three.
        let (queued, next) = (stage.queue("queued", 90).await, stage.queue("next", 80).await);
        let interruption = queued.interrupt(Cause::Operator, ACTOR);
        assert_eq!(interruption.reached().next(), Some((queued.id(), Reached::Halted)));
        let outcome = ended(&queued).await;
        assert_eq!((stopped(&outcome).cause, outcome.fuel, outcome.elapsed), (Cause::Operator, 0, Duration::ZERO));
        drop(next);
        until(|| stage.host.live_calls() == 1).await;
    }
    let next = stage.queue("next", 80).await;
    stop(&holder).await;
    stage.waits.reached(2).await;
    runs(&next);
    assert_eq!(stage.came(), ["holder", "next"]);
}

/// However calls come, are stopped, dropped and let go at random: in the end every place is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_place_is_lost_and_no_wake_up() {
    const PLACES: u32 = 4;
    let stage = Stage::new(2, PLACES, 8).await;
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut below = move |bound: u64| random.next_u64() % bound;
    let (mut calls, mut ends): (Vec<Call>, Vec<&'static str>) = (Vec::new(), Vec::new());
    for _ in 0..STORM {
        calls.push(stage.start("storm", below(3) as u8));
        for _ in 0..below(200) {
            std::hint::spin_loop();
        }
        let at = below(calls.len() as u64) as usize;
        match below(5) {
            0 => drop(calls.swap_remove(at)),
            1 => drop(calls[at].interrupt(Cause::Operator, ACTOR)),
            2 => stage.let_go.add_permits(1),
            3 => drop(stage.host.interrupt(Scope::Call(calls[at].id()), Interrupt::new(Cause::Drill, ACTOR))),
            _ => {}
        }
        if calls.len() > 40 {
            let all = std::mem::take(&mut calls);
            stage.let_go.add_permits(all.len());
            for call in &all {
                ends.push(ended(call).await.end.status());
            }
            stage.let_go.forget_permits(usize::MAX);
        }
    }
    stage.host.interrupt(Scope::Everything, operator()).released().await;
    drop(calls);
    within(async {
        while stage.host.live_calls() > 0 {
            tokio::task::yield_now().await
        }
    })
    .await;
    let count = |status: &str| ends.iter().filter(|end| **end == status).count();
    println!("{} completed, {} stopped, {} refused", count("completed"), count("stopped"), count("refused"));
    assert!(["completed", "stopped", "refused"].into_iter().all(|status| count(status) > 0));

    // All of them at once, and not one more.
    stage.let_go.forget_permits(usize::MAX);
    let before = stage.waits.get();
    let all: Vec<Call> = (0..PLACES).map(|_| stage.start("after", 1)).collect();
    stage.waits.reached(before + u64::from(PLACES)).await;
    let one_more = stage.start("after", 1);
    assert!(tokio::time::timeout(Duration::from_millis(50), one_more.outcome()).await.is_err());
    assert_eq!(stage.waits.get(), before + u64::from(PLACES));
    stage.let_go.add_permits(all.len() + 1);
    for call in all.iter().chain([&one_more]) {
        assert_eq!(ended(call).await.end.status(), "completed");
    }
}
