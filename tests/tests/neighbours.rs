//! Promise 5, and rows 7, 8, 9, 10 and 36 of the failure modes: an interrupt stops what it names and nothing else.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use estop::{Call, CallId, Cause, Component, Host, Interrupt, Outcome, Reached, Scope};
use estop_tests::clock::ManualClock;
use estop_tests::counter::Counter;
use estop_tests::guests::Hostile;
use estop_tests::probe::Probe;
use estop_tests::stage::{
    MARK, SPIN, WAIT, grant, hostile, load_bytes, narrow, operator, rewritten, sized, start, stop, stopped, ticks,
};
use estop_tests::{completed, load, log, small, within};
use serde_json::{Value, json};

const CROWD: u64 = 100;
const CROWD_SANDBOXES: u32 = 101;
const VICTIM: u64 = 50;

/// Calls that compute for up to twenty turns and end one after another, so that most are under way when the first ends.
/// The victim takes longer than all of them.
fn crowd(host: &Host, bench: &Component) -> Vec<Call> {
    let size = |index| if index == VICTIM { 100_000_000 } else { 40_000 * (index + 1) };
    let call = |index| host.agent("default").call(bench, "hash", json!({ "size": size(index) }));
    (0..CROWD).map(|index| call(index).start()).collect()
}

async fn outcomes(calls: &[Call]) -> Vec<Arc<Outcome>> {
    let mut outcomes = Vec::with_capacity(calls.len());
    for call in calls {
        outcomes.push(within(call.outcome()).await);
    }
    outcomes
}

/// What a caller gets, and what it costs.
fn figures(outcome: &Arc<Outcome>) -> (String, u64) {
    (completed(outcome).to_string(), outcome.fuel)
}

/// Row 9, promise 5: stop 1 of 100; the outputs and the fuel of the other 99 are what they are without the stop.
#[tokio::test]
async fn stopping_1_of_100_leaves_the_other_99_as_they_are_without_the_stop() {
    let host = narrow(CROWD_SANDBOXES).build().unwrap();
    let bench = load(&host, "bench").await;
    let without = outcomes(&crowd(&host, &bench)).await;

    let calls = crowd(&host, &bench);
    // A turn is at most `FUEL_INTERVAL` long, and this one has had several: so all have begun.
    within(calls[20].outcome()).await;
    let victim = stop(&calls[VICTIM as usize]).await;
    assert!(host.live_calls() > 0, "nobody was left beside whom something could be stopped");
    assert!(victim.fuel > 0, "it was stopped before it ran");

    let with = outcomes(&calls).await;
    for (index, (without, with)) in (0..CROWD).zip(without.iter().zip(&with)) {
        if index != VICTIM {
            assert_eq!(figures(with), figures(without), "call {index}");
        }
    }
}

/// Agents, components and tools, each combined with each, two calls of every kind: all wait in the host.
struct Table {
    host: Host,
    probe: Probe,
    components: Vec<(Component, &'static str)>,
    started: u64,
}

struct Row {
    call: Call,
    agent: &'static str,
    component: usize,
}

impl Table {
    async fn new() -> Self {
        let probe = Probe::new();
        let host = probe.grant(small()).build().unwrap();
        let waiter = Hostile { call: WAIT, ..Hostile::default() };
        let other = Hostile { call: WAIT, post: "(drop (i32.const 1))", ..Hostile::default() };
        let renamed = rewritten(waiter, &[("(i32.const 128) \"victim\"", "(i32.const 128) \"target\"")]);
        let components = vec![
            (hostile(&host, waiter).await, "victim"),
            (hostile(&host, other).await, "victim"),
            (load_bytes(&host, renamed).await, "target"),
        ];
        Self { host, probe, components, started: 0 }
    }

    async fn fill(&mut self) -> Vec<Row> {
        let mut rows = Vec::new();
        for agent in ["anna", "bert"] {
            for (at, (component, tool)) in self.components.iter().enumerate() {
                for _ in 0..2 {
                    let call = self.host.agent(agent).call(component, *tool, json!({})).start();
                    rows.push(Row { call, agent, component: at });
                }
            }
        }
        self.started += rows.len() as u64;
        self.probe.waiting(self.started).await;
        rows
    }

    /// Interrupts the scope: exactly the rows that are named stop, the others by what clears the table afterwards.
    async fn check(&mut self, scope: Scope, named: impl Fn(&Row) -> bool) {
        let rows = self.fill().await;
        let expected: Vec<CallId> = rows.iter().filter(|row| named(row)).map(|row| row.call.id()).collect();
        let interruption = self.host.interrupt(scope.clone(), operator());
        let mut reached: Vec<CallId> = interruption.reached().map(|(call, _)| call).collect();
        reached.sort();
        assert_eq!(reached.len(), expected.len(), "{scope:?} reached {reached:?}");
        assert!(expected.iter().all(|call| reached.contains(call)), "{scope:?} reached {reached:?}");
        within(interruption.released()).await;
        assert_eq!(self.host.live_calls(), rows.len() - expected.len(), "{scope:?}");
        let cleared = self.host.interrupt(Scope::Everything, Interrupt::new(Cause::Drill, "cleaner"));
        assert_eq!(cleared.len(), rows.len() - expected.len(), "{scope:?}");
        for row in &rows {
            let outcome = within(row.call.outcome()).await;
            let cause = if named(row) { Cause::Operator } else { Cause::Drill };
            assert_eq!(stopped(&outcome).cause, cause, "{scope:?}, agent {}", row.agent);
        }
    }
}

/// Promise 5, rows 7 and 36: each scope stops what it names, all of it, and nothing else.
#[tokio::test]
async fn every_scope_stops_exactly_what_it_names() {
    let mut table = Table::new().await;
    table.check(Scope::Agent("anna".into()), |row| row.agent == "anna").await;
    table.check(Scope::Agent("ann".into()), |_| false).await;
    table.check(Scope::Tool("victim".into()), |row| row.component < 2).await;
    table.check(Scope::Tool("target".into()), |row| row.component == 2).await;
    table.check(Scope::Component(table.components[1].0.digest()), |row| row.component == 1).await;
    table.check(Scope::Host, |_| true).await;
    table.check(Scope::Everything, |_| true).await;
}

/// Row 36, promise 5: one call of an agent is stopped; its siblings, the agent and the host go on.
#[tokio::test]
async fn the_scope_of_one_call_is_one_call() {
    let mut table = Table::new().await;
    let rows = table.fill().await;
    for (stopped_before, row) in rows.iter().enumerate() {
        let interruption = table.host.interrupt(Scope::Call(row.call.id()), operator());
        assert_eq!(interruption.reached().map(|(call, _)| call).collect::<Vec<_>>(), [row.call.id()]);
        within(interruption.released()).await;
        assert_eq!(table.host.live_calls(), rows.len() - stopped_before - 1);
    }
    assert!(table.host.interrupt(Scope::Call(rows[0].call.id()), operator()).is_empty(), "a released call was found");
}

/// Row 7: many calls of one agent, on processors and not, all stop at once; another agent's go on.
#[tokio::test]
async fn all_calls_of_one_agent_stop_and_those_of_another_go_on() {
    let probe = Probe::new();
    let host = probe.grant(small()).build().unwrap();
    let spinner = hostile(&host, Hostile { call: &format!("{MARK} {SPIN}"), ..Hostile::default() }).await;
    let waiter = hostile(&host, Hostile { call: &format!("{MARK} {WAIT}"), ..Hostile::default() }).await;
    let crowd = |agent| (0..20).map(move |at| (agent, if at % 2 == 0 { 0 } else { 1 }));
    let mine: Vec<Call> = crowd("anna").map(|(agent, at)| start(&host, agent, [&spinner, &waiter][at])).collect();
    let others: Vec<Call> = crowd("bert").map(|(agent, at)| start(&host, agent, [&spinner, &waiter][at])).collect();
    probe.marked(40).await;

    let interruption = host.agent("anna").interrupt(operator());
    assert_eq!(interruption.len(), 20);
    assert!(interruption.reached().all(|(_, reached)| matches!(reached, Reached::Halted | Reached::Running)));
    for outcome in within(interruption.released()).await {
        assert_eq!((&*outcome.agent, stopped(&outcome).cause), ("anna", Cause::Operator));
    }
    assert_eq!(host.live_calls(), 20);
    assert!(others.iter().all(|call| call.try_outcome().is_none()));
    assert!(mine.iter().all(|call| call.try_outcome().is_some()));
    for call in others {
        stop(&call).await;
    }
}

/// Row 8, promise 9: one thread; after each stop, guest's trap and host function's panic the next call on it is clean.
#[tokio::test]
async fn ten_thousand_stops_and_panics_leave_nothing_to_the_next_call_of_the_thread() {
    const ROUNDS: u64 = 2_500;
    let entered = Counter::new();
    let count = entered.clone();
    let builder = grant(narrow(4), move |ctx| {
        count.add();
        match ctx.agent() {
            "spins" => Box::pin(async { Ok(()) }),
            "waits" => Box::pin(std::future::pending()),
            _ => resume_unwind(Box::new("as asked")),
        }
    });
    let host = builder.build().unwrap();
    // Whoever finds the memory as somebody else left it traps, and whoever leaves it leaves it dirty.
    let dirty = "(if (i32.load (i32.const 60000)) (then unreachable)) (i32.store (i32.const 60000) (i32.const 1))";
    let component = async |code: &str| {
        let code = format!("{dirty} {code}");
        hostile(&host, Hostile { call: &code, ..Hostile::default() }).await
    };
    let (quick, waiter) = (component("").await, component(WAIT).await);
    let (spinner, trap) = (component(&format!("{WAIT} {SPIN}")).await, component("unreachable").await);

    let ended = async |agent: &str, component: &Component| within(start(&host, agent, component).outcome()).await;
    let stopped_once_in = async |agent: &str, component: &Component, times: u64| {
        let victim = start(&host, agent, component);
        entered.reached(times).await;
        stop(&victim).await
    };
    let clean = figures(&ended("default", &quick).await);
    for round in (0..3 * ROUNDS).step_by(3) {
        stopped_once_in("spins", &spinner, round + 1).await;
        assert_eq!(figures(&ended("default", &quick).await), clean);

        stopped_once_in("waits", &waiter, round + 2).await;
        assert_eq!(figures(&ended("default", &quick).await), clean);

        let outcome = ended("default", &trap).await;
        assert_eq!(outcome.end.status(), "trapped", "{:?}", outcome.end);
        assert_eq!(figures(&ended("default", &quick).await), clean);

        let outcome = ended("panics", &waiter).await;
        assert_eq!(outcome.end.error(), Some("a host function panicked: as asked"), "{:?}", outcome.end);
        assert_eq!(figures(&ended("default", &quick).await), clean);
    }
    assert_eq!((entered.get(), host.live_calls()), (3 * ROUNDS, 0));
}

/// Row 10: epochs are not time. However often others are stopped, no neighbour comes to its deadline early, or is
/// billed for it.
#[tokio::test]
async fn a_storm_of_stops_brings_no_neighbour_to_its_deadline() {
    const STORM: usize = 5_000;
    const DEADLINE: Duration = Duration::from_millis(1);
    let (probe, clock) = (Probe::new(), ManualClock::new());
    let host = probe.grant(sized(2, 64)).clock(clock.clone()).build().unwrap();
    let bench = load(&host, "bench").await;
    let spinner = hostile(&host, Hostile { call: SPIN, ..Hostile::default() }).await;
    let waiter = hostile(&host, Hostile { call: WAIT, ..Hostile::default() }).await;
    let work =
        || host.agent("neighbour").call(&bench, "hash", json!({ "size": 50_000_000 })).deadline(DEADLINE).start();
    let alone = figures(&within(work().outcome()).await);

    let neighbours: Vec<Call> = (0..4).map(|_| work()).collect();
    let sleeper = host.agent("neighbour").call(&waiter, "victim", Value::Null).deadline(DEADLINE).start();
    let mut stopped_while_running = 0;
    for at in 0..STORM {
        let victim = start(&host, "storm", if at % 4 == 0 { &waiter } else { &spinner });
        if at % 4 != 0 {
            tokio::task::yield_now().await;
        }
        let interruption = victim.interrupt_with(operator());
        stopped_while_running += interruption.reached().filter(|(_, reached)| *reached == Reached::Running).count();
        within(interruption.released()).await;
    }
    for neighbour in &neighbours {
        assert_eq!(figures(&within(neighbour.outcome()).await), alone);
    }
    ticks(&host, &spinner).await;
    assert!(sleeper.try_outcome().is_none(), "{:?}", sleeper.try_outcome());
    clock.advance(DEADLINE);
    assert_eq!(stopped(&*within(sleeper.outcome()).await).cause, Cause::Deadline);
    println!("{stopped_while_running} of {STORM} were on a processor");
}

/// Promise 5, rows 7 and 36: agents that stop their own calls all the time, beside agents that nobody stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn agents_that_stop_themselves_do_not_stop_each_other() {
    const ROUNDS: usize = 60;
    let probe = Probe::new();
    let host = probe.grant(sized(2, 64)).build().unwrap();
    let spinner = hostile(&host, Hostile { call: &format!("{MARK} {SPIN}"), ..Hostile::default() }).await;
    let quick = hostile(&host, Hostile { call: MARK, ..Hostile::default() }).await;

    let stopping = |name: String, host: Host, spinner: Component| async move {
        for _ in 0..ROUNDS {
            let calls: Vec<Call> = (0..3).map(|_| start(&host, &name, &spinner)).collect();
            tokio::task::yield_now().await;
            let interruption = host.agent(&name).interrupt(Interrupt::new(Cause::Operator, name.clone()));
            assert_eq!(interruption.len(), 3);
            for call in calls {
                assert_eq!(stopped(&*within(call.outcome()).await).actor, name, "somebody else stopped it");
            }
        }
    };
    let working = |name: String, host: Host, quick: Component| async move {
        for _ in 0..ROUNDS {
            completed(&within(start(&host, &name, &quick).outcome()).await);
        }
    };
    let mut tasks = Vec::new();
    for agent in 0..4 {
        tasks.push(tokio::spawn(stopping(format!("stopping-{agent}"), host.clone(), spinner.clone())));
        tasks.push(tokio::spawn(working(format!("working-{agent}"), host.clone(), quick.clone())));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(host.live_calls(), 0);
    let log = log(&host).await;
    let ends = |status: &str| log.iter().filter(|e| e["kind"] == "end" && e["status"] == status).count();
    // Beside them the two components have been loaded and described.
    assert_eq!((ends("stopped"), ends("completed")), (4 * 3 * ROUNDS, 4 * ROUNDS + 4));
}
