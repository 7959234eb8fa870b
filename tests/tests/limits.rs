//! Every limit that can be set has a test here that hits it, called after the field; and what is not granted is empty.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use estop::store::Key;
use estop::{
    CallCtx, CallLimits, Cause, Component, End, FUEL_INTERVAL, Host, HostBuilder, HostLimits, Interrupt, LoadError,
    Outcome, Scope, Source, StateLimits, wasmtime,
};
use estop_tests::guests::{Described, Hostile, Imports, Spec};
use estop_tests::probe::Probe;
use estop_tests::{PATIENCE, call, completed, load, within};
use futures_util::future::join_all;
use serde_json::{Value, json};

const PAGE_BYTES: usize = 64 << 10;
const MIB: usize = 1 << 20;

fn limits() -> HostLimits {
    HostLimits { calls_max: 1024, sandboxes_max: 16, workers: 2, ..HostLimits::default() }
}

fn call_limits() -> CallLimits {
    CallLimits { deadline: PATIENCE, ..CallLimits::default() }
}

fn builder(limits: HostLimits, call_limits: CallLimits) -> HostBuilder {
    Host::builder().limits(limits).call_limits(call_limits)
}

fn host_with(limits: HostLimits, call_limits: CallLimits) -> (Host, Probe) {
    let probe = Probe::new();
    (probe.grant(builder(limits, call_limits)).build().unwrap(), probe)
}

/// A host that gives its guests `describing` and `wait` as a test wants them, instead of the probe's.
fn host_giving(
    builder: HostBuilder,
    describing: impl Fn(&mut CallCtx) -> wasmtime::Result<()> + Send + Sync + 'static,
) -> Host {
    let interface = builder.interface(move |linker| {
        let mut instance = linker.instance("estop:drill/probe@0.1.0")?;
        instance.func_wrap("wait", |_, (): ()| Ok(()))?;
        instance.func_wrap("sleep", |_, (): ()| Ok(()))?;
        instance.func_wrap("describing", move |mut cx, (): ()| {
            if !cx.data().is_describing() {
                describing(cx.data_mut())?;
            }
            Ok((cx.data().is_describing(),))
        })
    });
    interface.build().unwrap()
}

/// A component with one tool `victim` that runs these instructions; `fields` are fields of its module.
fn victim(fields: &str, call: &str) -> Source {
    let guest = Hostile { start: fields, call, ..Hostile::default() };
    Source::bytes(Described { tools: &[Spec::new("victim")], guest, ..Described::default() }.component())
}

async fn call_victim(host: &Host, component: &Component) -> Arc<Outcome> {
    call(host, component, "victim", Value::Null).await
}

fn stopped_by(outcome: &Arc<Outcome>, cause: Cause) {
    match &outcome.end {
        End::Stopped(stopped) if stopped.cause == cause => {
            let actor = if cause == Cause::Operator { "test" } else { "host" };
            assert_eq!(stopped.actor, actor);
        }
        end => panic!("{} was not stopped by {cause}: {end:?}; standard error: {}", outcome.call, outcome.stderr),
    }
}

fn failed(outcome: &Arc<Outcome>, code: &str, words: &[&str]) {
    match &outcome.end {
        End::Failed(failure) if failure.code == code => contains(&failure.message, words),
        end => panic!("{} did not fail with `{code}`: {end:?}; standard error: {}", outcome.call, outcome.stderr),
    }
}

fn trapped(outcome: &Arc<Outcome>, words: &[&str]) {
    match &outcome.end {
        End::Trapped(why) => contains(why, words),
        end => panic!("{} did not trap: {end:?}", outcome.call),
    }
}

fn contains(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
}

// What a host may use

/// Promise 18, row 40: more calls are refused, with a reason, and there is room again when one has ended.
#[tokio::test]
async fn calls_max() {
    let (host, probe) = host_with(HostLimits { calls_max: 3, ..limits() }, call_limits());
    let component = host.load(victim("", "(call $wait)")).await.unwrap();
    let start = || host.agent("a").call(&component, "victim", Value::Null).start();
    let calls: Vec<_> = (0..3).map(|_| start()).collect();
    probe.waiting(3).await;
    for _ in 0..100 {
        let outcome = within(start().outcome()).await;
        let End::Refused(why) = &outcome.end else { panic!("{:?}", outcome.end) };
        contains(why, &["3 calls run or wait already", "try again"]);
        assert_eq!((outcome.fuel, host.live_calls()), (0, 3));
    }
    // A component cannot be described either: that is a call as well.
    let error = host.load(victim("", "nop")).await.unwrap_err();
    contains(&error.to_string(), &["3 calls run or wait already"]);
    let _ = calls[0].interrupt(Cause::Operator, "test");
    stopped_by(&within(calls[0].outcome()).await, Cause::Operator);
    let fourth = start();
    probe.waiting(4).await;
    drop(fourth);
}

/// How many guests have been between two of their instructions at one time.
#[derive(Clone, Default)]
struct Crowd {
    active: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Crowd {
    /// A host whose guests meet in `wait`.
    fn host(&self, limits: HostLimits) -> Host {
        let crowd = self.clone();
        let builder = builder(limits, call_limits()).interface(move |linker| {
            let mut instance = linker.instance("estop:drill/probe@0.1.0")?;
            instance.func_wrap_async("wait", move |_, (): ()| {
                let Crowd { active, most } = crowd.clone();
                Box::new(async move {
                    most.fetch_max(active.fetch_add(1, Ordering::AcqRel) + 1, Ordering::AcqRel);
                    // Every other guest that can run has a turn meanwhile.
                    for _ in 0..100 {
                        tokio::task::yield_now().await;
                    }
                    active.fetch_sub(1, Ordering::AcqRel);
                    Ok(())
                })
            })?;
            instance.func_wrap("sleep", |_, (): ()| Ok(()))?;
            instance.func_wrap("describing", |_, (): ()| Ok((false,)))
        });
        builder.build().unwrap()
    }

    /// Calls a component fifty times at once. All must complete.
    async fn meets(&self, host: &Host, component: &Component) -> usize {
        let calls: Vec<_> = (0..50).map(|_| host.agent("a").call(component, "victim", Value::Null).start()).collect();
        for outcome in within(join_all(calls.iter().map(estop::Call::outcome))).await {
            completed(&outcome);
        }
        assert_eq!(self.active.load(Ordering::Acquire), 0);
        self.most.load(Ordering::Acquire)
    }
}

/// Promise 18, row 40: no more guests than this exist at one time; the others wait and come to run.
#[tokio::test]
async fn sandboxes_max() {
    let crowd = Crowd::default();
    let host = crowd.host(HostLimits { sandboxes_max: 3, ..limits() });
    let component = host.load(victim("", "(call $wait)")).await.unwrap();
    assert_eq!(crowd.meets(&host, &component).await, 3);
}

/// Promise 18, row 40: a component takes as many places as it has memories, so the pool is never exhausted.
#[tokio::test]
async fn sandboxes_max_counts_every_memory() {
    let crowd = Crowd::default();
    let host = crowd.host(HostLimits { sandboxes_max: 8, ..limits() });
    let beside = "(core module $m (memory 1)) (core instance (instantiate $m)) (core instance (instantiate $m))";
    let guest = Hostile { call: "(call $wait)", ..Hostile::default() };
    let described = Described { tools: &[Spec::new("victim")], guest, beside, ..Described::default() };
    let component = host.load(Source::bytes(described.component())).await.unwrap();
    assert_eq!(crowd.meets(&host, &component).await, 2);
}

/// Promise 18, row 40: what cannot be granted to any call is refused when it is loaded.
#[tokio::test]
async fn memory_bytes_max_of_the_host_bounds_the_initial_memory() {
    let (host, _) = host_with(HostLimits { memory_bytes_max: MIB, ..limits() }, call_limits());
    let beside = "(core module $m (memory 17)) (core instance (instantiate $m))";
    let bytes = Described { tools: &[Spec::new("victim")], beside, ..Described::default() }.component();
    let error = host.load(Source::bytes(bytes)).await.unwrap_err();
    assert!(matches!(error, LoadError::Compile(_)), "{error:?}");
    contains(&error.to_string(), &["memory"]);
}

/// Promise 18, row 40: a call is not granted more than the host has, whatever its own limit says, and it is told so.
#[tokio::test]
async fn memory_bytes_max_of_the_host_bounds_what_calls_are_granted() {
    let host_limits = HostLimits { memory_bytes_max: 4 * MIB, ..limits() };
    let (host, _) = host_with(host_limits, CallLimits { memory_bytes_max: 64 * MIB, ..call_limits() });
    let runaway = load(&host, "runaway").await;
    let outcome = call(&host, &runaway, "allocate", json!({})).await;
    stopped_by(&outcome, Cause::Memory);
    contains(&outcome.end.stopped().unwrap().reason, &["granted 4194304"]);
    let more = host.agent("a").call(&runaway, "allocate", json!({})).memory_bytes(1 << 40).start();
    stopped_by(&within(more.outcome()).await, Cause::Memory);
}

/// Promise 18, row 40: growth past the limit stops the call, with a cause and not with a crash of its allocator.
#[tokio::test]
async fn memory_bytes_max() {
    let (host, _) = host_with(limits(), CallLimits { memory_bytes_max: 8 * MIB, ..call_limits() });
    let runaway = load(&host, "runaway").await;
    let outcome = call(&host, &runaway, "allocate", json!({})).await;
    stopped_by(&outcome, Cause::Memory);
    contains(&outcome.end.stopped().unwrap().reason, &["granted 8388608"]);
    // To the byte: 128 pages are granted.
    let grow = |pages: usize| {
        victim("", &format!("(if (i32.lt_s (memory.grow (i32.const {pages})) (i32.const 0)) (then unreachable))"))
    };
    let fits = host.load(grow(126)).await.unwrap();
    completed(&call_victim(&host, &fits).await);
    let one_more = host.load(grow(127)).await.unwrap();
    stopped_by(&call_victim(&host, &one_more).await, Cause::Memory);
}

/// Promise 18, row 40: memory that a component begins with counts, before its first instruction.
#[tokio::test]
async fn memory_bytes_max_bounds_the_initial_memory() {
    let (host, probe) = host_with(limits(), call_limits());
    let start = "(func $mark (drop (call $describing))) (start $mark)";
    let component = host.load(victim(start, "nop")).await.unwrap();
    let call = |bytes| host.agent("a").call(&component, "victim", Value::Null).memory_bytes(bytes).start();
    let outcome = within(call(2 * PAGE_BYTES - 1).outcome()).await;
    stopped_by(&outcome, Cause::Memory);
    assert_eq!((outcome.fuel, probe.marks()), (0, 0));
    completed(&within(call(2 * PAGE_BYTES).outcome()).await);
    assert_eq!(probe.marks(), 1);
}

/// Promise 18, row 40: all memories of a call together.
#[tokio::test]
async fn memory_bytes_max_bounds_several_memories_together() {
    let (host, _) = host_with(limits(), CallLimits { memory_bytes_max: 20 * PAGE_BYTES, ..call_limits() });
    let component = |beside: &str, call: &str| {
        let guest = Hostile { call, ..Hostile::default() };
        let described = Described { tools: &[Spec::new("victim")], guest, beside, ..Described::default() };
        Source::bytes(described.component())
    };
    let nine = "(core module $m (memory 9)) (core instance (instantiate $m))";
    let fits = host.load(component(nine, "(drop (memory.grow (i32.const 9)))")).await.unwrap();
    completed(&call_victim(&host, &fits).await);
    let one_more = host.load(component(nine, "(drop (memory.grow (i32.const 10)))")).await.unwrap();
    stopped_by(&call_victim(&host, &one_more).await, Cause::Memory);
    let ten_twice = "(core module $m (memory 10)) (core instance (instantiate $m)) (core instance (instantiate $m))";
    let error = host.load(component(ten_twice, "nop")).await.unwrap_err();
    contains(&error.to_string(), &["stopped (cause memory)"]);
}

/// The limit is the host's; a memory's own declared maximum is the guest's affair, and `memory.grow` answers -1.
#[tokio::test]
async fn memory_bytes_max_is_not_what_a_memory_declares() {
    let (host, _) = host_with(limits(), call_limits());
    let call = "(if (i32.ne (memory.grow (i32.const 3)) (i32.const -1)) (then unreachable))";
    let guest = Hostile { call, ..Hostile::default() };
    let described = Described { tools: &[Spec::new("victim")], guest, pages_max: 4, ..Described::default() };
    let component = host.load(Source::bytes(described.component())).await.unwrap();
    completed(&call_victim(&host, &component).await);
}

/// Promise 18, row 40: a larger table is refused when it is loaded, and one that would grow does not.
#[tokio::test]
async fn table_elements_max() {
    let (host, _) = host_with(HostLimits { table_elements_max: 100, ..limits() }, call_limits());
    let grow = |elements: u32, answer: i32| {
        let grown = format!("(table.grow $t (ref.null func) (i32.const {elements}))");
        let call = format!("(if (i32.ne {grown} (i32.const {answer})) (then unreachable))");
        victim("(table $t 10 funcref)", &call)
    };
    for (elements, answer) in [(90, 10), (91, -1), (u32::MAX, -1)] {
        let component = host.load(grow(elements, answer)).await.unwrap();
        completed(&call_victim(&host, &component).await);
    }
    let error = host.load(victim("(table 101 funcref)", "nop")).await.unwrap_err();
    assert!(matches!(error, LoadError::Compile(_)), "{error:?}");
    contains(&error.to_string(), &["table", "101", "100"]);
}

/// Promise 18, row 40: also of a file, which is not read to its end.
#[tokio::test]
async fn component_bytes_max() {
    let bytes = Hostile::default().component();
    let limited = |component_bytes_max| host_with(HostLimits { component_bytes_max, ..limits() }, call_limits()).0;
    limited(bytes.len()).load(Source::bytes(bytes.clone())).await.unwrap();
    let host = limited(bytes.len() - 1);
    let error = host.load(Source::bytes(bytes.clone())).await.unwrap_err();
    assert!(matches!(error, LoadError::TooLarge { path: None, .. }), "{error:?}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("huge.wasm");
    std::fs::write(&path, &bytes).unwrap();
    // A file of a terabyte, without one.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
    let error = host.load(Source::file(&path)).await.unwrap_err();
    assert!(matches!(error, LoadError::TooLarge { path: Some(_), .. }), "{error:?}");
    let most = (bytes.len() - 1).to_string();
    contains(&error.to_string(), &[&path.display().to_string(), &most, "component_bytes_max"]);
}

/// Promise 18, row 40.
#[tokio::test]
async fn components_max() {
    let (host, _) = host_with(HostLimits { components_max: 2, ..limits() }, call_limits());
    let named = |name: &str| Source::bytes(Hostile::default().component()).named(name);
    let first = host.load(named("first")).await.unwrap();
    host.load(named("second")).await.unwrap();
    let error = host.load(named("third")).await.unwrap_err();
    assert!(matches!(error, LoadError::TooMany(2)), "{error:?}");
    contains(&error.to_string(), &["2 components are loaded", "unload one"]);
    // What is there already needs no room.
    host.load(named("first")).await.unwrap();
    host.unload(&first);
    host.load(named("third")).await.unwrap();
}

/// Promise 18, row 40.
#[tokio::test]
async fn tools_max() {
    let (host, _) = host_with(HostLimits { tools_max: 3, ..limits() }, call_limits());
    let tools: Vec<Spec> = (0..4).map(|n| Spec::new(format!("tool-{n}"))).collect();
    let described = |tools| Source::bytes(Described { tools, ..Described::default() }.component());
    assert_eq!(host.load(described(&tools[..3])).await.unwrap().tools().len(), 3);
    let error = host.load(described(&tools)).await.unwrap_err();
    assert!(matches!(error, LoadError::Tools(_)), "{error:?}");
    contains(&error.to_string(), &["it has 4", "limit is 3"]);
}

/// Row 40: guests run on this many threads, which are the host's own.
#[tokio::test]
async fn workers() {
    let threads = Arc::new(Mutex::new(HashSet::new()));
    let seen = Arc::clone(&threads);
    let host = host_giving(builder(HostLimits { workers: 3, ..limits() }, call_limits()), move |_| {
        let name = thread::current().name().unwrap_or_default().to_owned();
        seen.lock().unwrap().insert((thread::current().id(), name));
        Ok(())
    });
    let component = host.load(victim("", "(drop (call $describing))")).await.unwrap();
    let calls: Vec<_> = (0..200).map(|_| host.agent("a").call(&component, "victim", Value::Null).start()).collect();
    for outcome in within(join_all(calls.iter().map(estop::Call::outcome))).await {
        completed(&outcome);
    }
    let threads = threads.lock().unwrap();
    assert!((1..=3).contains(&threads.len()), "{threads:?}");
    assert!(threads.iter().all(|(_, name)| name.starts_with("estop-guest-")), "{threads:?}");
}

// What a call is granted

/// Promise 19, row 40: not before, and not much later.
#[tokio::test]
async fn deadline() {
    let deadline = Duration::from_millis(200);
    let (host, _) = host_with(limits(), CallLimits { deadline, ..call_limits() });
    let runaway = load(&host, "runaway").await;
    let outcome = call(&host, &runaway, "spin", json!({})).await;
    stopped_by(&outcome, Cause::Deadline);
    assert!((deadline..deadline + Duration::from_secs(20)).contains(&outcome.elapsed), "{:?}", outcome.elapsed);
    // A call may ask for less, down to nothing, and for more.
    for deadline in [Duration::ZERO, Duration::from_millis(20), Duration::from_millis(400)] {
        let call = host.agent("a").call(&runaway, "spin", json!({})).deadline(deadline).start();
        let outcome = within(call.outcome()).await;
        stopped_by(&outcome, Cause::Deadline);
        assert!(outcome.elapsed >= deadline, "{:?}", outcome.elapsed);
    }
}

/// Promise 19, row 17: the deadline begins with the guest. Who waits for room loses nothing of it.
#[tokio::test]
async fn deadline_does_not_run_while_a_call_waits_for_room() {
    let (host, _) = host_with(HostLimits { sandboxes_max: 1, ..limits() }, call_limits());
    let misc = load(&host, "misc").await;
    let sleep = |ms: u64, deadline| {
        let call = host.agent("a").call(&misc, "sleep", json!({"ms": ms}));
        call.deadline(Duration::from_millis(deadline)).start()
    };
    // Each sleeps for longer than the deadline of those that wait behind it.
    let first = sleep(1200, 100_000);
    let queued: Vec<_> = (0..4).map(|_| sleep(0, 1000)).collect();
    completed(&within(first.outcome()).await);
    for call in queued {
        let outcome = within(call.outcome()).await;
        completed(&outcome);
        assert!(outcome.elapsed < Duration::from_millis(1000), "{:?}", outcome.elapsed);
    }
}

/// Row 40: what a cooperative tool gets after its deadline, and what one that ignores it gets.
#[tokio::test]
async fn grace() {
    let (deadline, grace) = (Duration::from_millis(50), Duration::from_millis(200));
    let (host, _) = host_with(limits(), CallLimits { deadline, grace, ..call_limits() });
    let runaway = load(&host, "runaway").await;
    let outcome = call(&host, &runaway, "ignore", json!({})).await;
    stopped_by(&outcome, Cause::Deadline);
    assert!(outcome.elapsed >= deadline + grace, "{:?}", outcome.elapsed);
    let polite = host.agent("a").call(&runaway, "polite", json!({"steps": 1_000_000_000_u64}));
    let outcome = within(polite.grace(PATIENCE).start().outcome()).await;
    stopped_by(&outcome, Cause::Deadline);
    assert!(outcome.discarded.writes > 0 && outcome.commits.points == 0, "{outcome:?}");
    assert!(outcome.elapsed < PATIENCE / 2, "{:?}", outcome.elapsed);
}

/// Promise 19, row 38: the same input uses the same fuel, whatever else runs, also where a `HashMap` takes a seed.
#[tokio::test]
async fn fuel_is_the_same_for_the_same_input() {
    let (host, _) = host_with(limits(), call_limits());
    let (other, _) = host_with(HostLimits { workers: 1, ..limits() }, call_limits());
    let inputs = [
        ("bench", "hash", json!({"size": 10_000})),
        ("bench", "sieve", json!({"size": 10_000})),
        ("misc", "hash_map", json!({})),
        ("misc", "random", json!({})),
        ("misc", "big_output", json!({"bytes": 10_000})),
        ("kv", "write_many", json!({"count": 100, "bytes": 10})),
        ("kv", "remove_many", json!({"count": 100, "bytes": 10})),
    ];
    for (guest, tool, input) in inputs {
        let component = load(&host, guest).await;
        let call = |run: usize| host.agent(format!("agent-{run}")).call(&component, tool, input.clone()).start();
        let calls: Vec<_> = (0..20).map(call).collect();
        let outcomes = within(join_all(calls.iter().map(estop::Call::outcome))).await;
        let fuel: Vec<u64> =
            outcomes.iter().inspect(|outcome| assert!(outcome.output().is_some())).map(|o| o.fuel).collect();
        assert!(fuel[0] > 0 && fuel.iter().all(|other| *other == fuel[0]), "{guest} {tool}: {fuel:?}");
        let outputs: HashSet<String> = outcomes.iter().map(|outcome| completed(outcome).to_string()).collect();
        assert_eq!(outputs.len(), 1, "{outputs:?}");
        let component = load(&other, guest).await;
        let elsewhere = within(other.agent("agent-0").call(&component, tool, input).start().outcome()).await;
        assert_eq!((completed(&elsewhere).to_string(), elsewhere.fuel), (outputs.into_iter().next().unwrap(), fuel[0]));
    }
}

/// Promise 19, rows 38 and 40: who is granted what it uses completes; who is granted less is stopped with nothing left.
#[tokio::test]
async fn fuel() {
    let (host, _) = host_with(limits(), call_limits());
    let bench = load(&host, "bench").await;
    let kv = load(&host, "kv").await;
    let inputs = [
        (&bench, "hash", json!({"size": 1_000})),
        // Far more than the interval in which fuel is given out.
        (&bench, "hash", json!({"size": 2_000_000})),
        (&kv, "set", json!({"key": "a", "value": 1})),
    ];
    for (component, tool, input) in inputs {
        let run = async |fuel: u64| {
            let call = host.agent("a").call(component, tool, input.clone()).fuel(fuel).start();
            within(call.outcome()).await
        };
        let used = run(u64::MAX).await.fuel;
        for granted in [used, used + 1, used + FUEL_INTERVAL] {
            let outcome = run(granted).await;
            completed(&outcome);
            assert_eq!(outcome.fuel, used, "granted {granted}");
        }
        for granted in [0, 1, used / 2, used - 1] {
            let outcome = run(granted).await;
            stopped_by(&outcome, Cause::Fuel);
            assert_eq!((outcome.fuel, outcome.commits.points), (granted, 0), "of {used}");
        }
    }
}

/// Row 38: each call has its own; one that used it up takes nothing from the next, and loading takes nothing from any.
#[tokio::test]
async fn fuel_is_armed_for_each_call() {
    let (host, _) = host_with(limits(), CallLimits { fuel: 5_000_000, ..call_limits() });
    let (bench, runaway) = (load(&host, "bench").await, load(&host, "runaway").await);
    let used = call(&host, &bench, "hash", json!({"size": 100})).await.fuel;
    for _ in 0..20 {
        let outcome = call(&host, &runaway, "spin", json!({})).await;
        stopped_by(&outcome, Cause::Fuel);
        assert_eq!(outcome.fuel, 5_000_000);
        let outcome = call(&host, &bench, "hash", json!({"size": 100})).await;
        completed(&outcome);
        assert_eq!(outcome.fuel, used);
    }
}

/// Promise 19, row 38: after an interrupt, fuel is known to within the interval, also of a guest that calls nothing.
#[tokio::test]
async fn fuel_after_an_interrupt_is_exact_to_the_interval() {
    let (host, probe) = host_with(limits(), call_limits());
    let rounds = |count: &str| {
        let call = format!(
            "(local $round i32) (local $turn i32)
             (loop $rounds
                (local.set $turn (i32.const 1000000))
                (loop $turns (br_if $turns (local.tee $turn (i32.sub (local.get $turn) (i32.const 1)))))
                (drop (call $describing))
                (local.set $round (i32.add (local.get $round) (i32.const 1)))
                {count})"
        );
        // Locals stand at the beginning of a function of its own.
        victim(&format!("(func $rounds {call})"), "(call $rounds)")
    };
    let used = async |count: u32| {
        let source = rounds(&format!("(br_if $rounds (i32.lt_u (local.get $round) (i32.const {count})))"));
        let outcome = call_victim(&host, &host.load(source).await.unwrap()).await;
        completed(&outcome);
        outcome.fuel
    };
    let (one, five) = (used(1).await, used(5).await);
    let round = (five - one) / 4;
    assert!(round > 2 * FUEL_INTERVAL && (five - one) % 4 == 0, "{one} {five}");

    let endless = host.load(rounds("(br $rounds)")).await.unwrap();
    for run in 1..=10 {
        let before = probe.marks();
        let call = host.agent("a").call(&endless, "victim", Value::Null).start();
        probe.marked(before + run).await;
        let _ = call.interrupt(Cause::Operator, "test");
        let outcome = within(call.outcome()).await;
        stopped_by(&outcome, Cause::Operator);
        let marks = probe.marks() - before;
        let (least, most) = (marks * round, (marks + 1) * round + one);
        assert!((least - FUEL_INTERVAL..most).contains(&outcome.fuel), "{} of {least} to {most}", outcome.fuel);
    }
    // It calls nothing, so nothing but the interval ever writes down what it uses.
    let spin = host.load(victim("", "(loop $again (br $again))")).await.unwrap();
    let call = host.agent("a").call(&spin, "victim", Value::Null).deadline(Duration::from_millis(300)).start();
    let outcome = within(call.outcome()).await;
    stopped_by(&outcome, Cause::Deadline);
    assert!(outcome.fuel > 10 * FUEL_INTERVAL, "{}", outcome.fuel);
}

/// Promise 18, row 40: the input, as the text that the guest gets.
#[tokio::test]
async fn input_bytes_max() {
    let (host, _) = host_with(limits(), CallLimits { input_bytes_max: 1000, ..call_limits() });
    let echo = load(&host, "echo").await;
    let around = json!({"text": ""}).to_string().len();
    let outcome = call(&host, &echo, "echo", json!({"text": "x".repeat(1000 - around)})).await;
    completed(&outcome);
    let outcome = call(&host, &echo, "echo", json!({"text": "x".repeat(1001 - around)})).await;
    let End::InvalidInput(why) = &outcome.end else { panic!("{:?}", outcome.end) };
    contains(why, &["1001 bytes", "limit is 1000"]);
    assert_eq!(outcome.fuel, 0);
}

/// Promise 18, row 40: the output with its attachments. A tool whose output is too large has failed, and commits nothing.
#[tokio::test]
async fn output_bytes_max() {
    let (host, _) = host_with(limits(), CallLimits { output_bytes_max: 10_000, ..call_limits() });
    let misc = load(&host, "misc").await;
    let around = json!({"text": ""}).to_string().len();
    let outcome = call(&host, &misc, "big_output", json!({"bytes": 10_000 - around})).await;
    completed(&outcome);
    let outcome = call(&host, &misc, "big_output", json!({"bytes": 10_001 - around})).await;
    failed(&outcome, "output", &["10001 bytes", "limit is 10000"]);
    let outcome = call(&host, &misc, "attach", json!({"bytes": 9_000})).await;
    completed(&outcome);
    let outcome = call(&host, &misc, "attach", json!({"bytes": 10_000})).await;
    failed(&outcome, "output", &["bytes", "limit is 10000"]);

    let (host, _) = host_with(limits(), CallLimits { output_bytes_max: 5, ..call_limits() });
    let kv = load(&host, "kv").await;
    let outcome = call(&host, &kv, "set", json!({"key": "a", "value": 1})).await;
    failed(&outcome, "output", &["limit is 5"]);
    assert_eq!((outcome.commits.points, outcome.discarded.writes), (0, 1));
}

/// Promise 18, row 40: what crosses between guest and host at once, in either a result or an argument.
#[tokio::test]
async fn transfer_bytes_max() {
    let (host, _) = host_with(limits(), CallLimits { transfer_bytes_max: 64 << 10, ..call_limits() });
    let (misc, kv) = (load(&host, "misc").await, load(&host, "kv").await);
    let words = ["limit for a transfer"];
    completed(&call(&host, &misc, "big_output", json!({"bytes": 60_000})).await);
    failed(&call(&host, &misc, "big_output", json!({"bytes": 70_000})).await, "output", &words);
    completed(&call(&host, &kv, "write_many", json!({"count": 1, "bytes": 60_000})).await);
    let outcome = call(&host, &kv, "write_many", json!({"count": 2, "bytes": 40_000})).await;
    failed(&outcome, "output", &words);
    assert_eq!(outcome.commits.points, 0);
}

/// Promise 18, row 40: the newest part is kept, for the panic is at its end.
#[tokio::test]
async fn stderr_bytes_max() {
    let (host, _) = host_with(limits(), CallLimits { stderr_bytes_max: 1000, ..call_limits() });
    let (misc, kv) = (load(&host, "misc").await, load(&host, "kv").await);
    let outcome = call(&host, &misc, "stdout_flood", json!({"bytes": 5_000_000})).await;
    completed(&outcome);
    assert_eq!(outcome.stderr, "x".repeat(1000));
    let key = format!("{}-the-end", "k".repeat(1016));
    let outcome = call(&host, &kv, "write_then_panic", json!({"key": key, "value": 1})).await;
    trapped(&outcome, &["-the-end"]);
    assert_eq!(outcome.stderr.len(), 1000);
}

/// Promise 18, row 40: handles that a guest opens and never closes.
#[tokio::test]
async fn resources_max() {
    let (host, _) = host_with(limits(), CallLimits { resources_max: 100, ..call_limits() });
    let imports = Imports {
        component: r#"
            (import "wasi:io/poll@0.2.6" (instance $poll (export "pollable" (type (sub resource)))))
            (alias export $poll "pollable" (type $pollable))
            (import "wasi:clocks/monotonic-clock@0.2.6" (instance $clock
                (alias outer 1 $pollable (type $p))
                (export "pollable" (type $own (eq $p)))
                (export "subscribe-duration" (func (param "when" u64) (result (own $own))))))
            (core func $subscribe (canon lower (func $clock "subscribe-duration")))
            (core func $drop (canon resource.drop $pollable))"#,
        host: r#"(export "subscribe" (func $subscribe)) (export "drop" (func $drop))"#,
        module: r#"
            (import "host" "subscribe" (func $subscribe (param i64) (result i32)))
            (import "host" "drop" (func $drop (param i32)))"#,
    };
    let times = |count: u32, each: &str| {
        let call = format!(
            "(loop $again {each} (local.set $page (i32.add (local.get $page) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $page) (i32.const {count}))))"
        );
        let guest = Hostile { call: &call, ..Hostile::default() };
        let tools = [Spec::new("victim")];
        let described = Described { tools: &tools, guest, imports: Some(imports), ..Described::default() };
        Source::bytes(described.component())
    };
    let opened = "(call $subscribe (i64.const 1000000000000))";
    let fits = host.load(times(40, &format!("(drop {opened})"))).await.unwrap();
    completed(&call_victim(&host, &fits).await);
    let closed = host.load(times(10_000, &format!("(call $drop {opened})"))).await.unwrap();
    completed(&call_victim(&host, &closed).await);
    let leaked = host.load(times(101, &format!("(drop {opened})"))).await.unwrap();
    trapped(&call_victim(&host, &leaked).await, &["no free keys"]);
    // The next call has all of them again.
    completed(&call_victim(&host, &fits).await);
}

/// Promises 10 and 18, row 40: one effect more is not performed, and all that were are in the outcome.
#[tokio::test]
async fn effects_max() {
    let host = host_giving(builder(limits(), CallLimits { effects_max: 3, ..call_limits() }), |ctx| {
        ctx.effect("sent")?.performed();
        Ok(())
    });
    let times = |count: usize| victim("", &"(drop (call $describing))".repeat(count));
    let three = host.load(times(3)).await.unwrap();
    let outcome = call_victim(&host, &three).await;
    completed(&outcome);
    assert_eq!(outcome.effects.len(), 3);
    let four = host.load(times(4)).await.unwrap();
    let outcome = call_victim(&host, &four).await;
    trapped(&outcome, &["has had 3 effects"]);
    assert_eq!(outcome.effects.len(), 3);
}

/// A host that keeps little, and the guest `kv` on it.
async fn keeping(state: StateLimits) -> (Host, Component) {
    let (host, _) = host_with(limits(), CallLimits { state, ..call_limits() });
    let kv = load(&host, "kv").await;
    (host, kv)
}

/// Promise 18, row 40: of keys and of names of buckets.
#[tokio::test]
async fn state_key_bytes_max() {
    let (host, kv) = keeping(StateLimits { key_bytes_max: 10, ..StateLimits::default() }).await;
    for (key, is_short) in
        [("k".repeat(10), true), ("k".repeat(11), false), ("ä".repeat(5), true), ("ä".repeat(6), false)]
    {
        for (tool, input) in [
            ("set", json!({"key": key, "value": 1})),
            ("get", json!({"key": key})),
            ("delete", json!({"key": key})),
            ("increment", json!({"key": key, "delta": 1})),
            ("swap_late", json!({"key": key, "value": 1})),
            ("open", json!({"key": key})),
        ] {
            let outcome = call(&host, &kv, tool, input).await;
            if is_short {
                completed(&outcome);
            } else {
                let bytes = format!("{} bytes", key.len());
                assert!(matches!(outcome.end, End::Failed(_)), "{tool}: {:?}", outcome.end);
                contains(outcome.end.error().unwrap(), &[&bytes, "limit is 10"]);
            }
        }
    }
}

/// Promise 18, row 40.
#[tokio::test]
async fn state_value_bytes_max() {
    let (host, kv) = keeping(StateLimits { value_bytes_max: 1000, ..StateLimits::default() }).await;
    // As JSON, a text has two bytes more.
    completed(&call(&host, &kv, "write_many", json!({"count": 2, "bytes": 998})).await);
    let outcome = call(&host, &kv, "write_many", json!({"count": 2, "bytes": 999})).await;
    assert!(matches!(outcome.end, End::Failed(_)), "{:?}", outcome.end);
    contains(outcome.end.error().unwrap(), &["1001 bytes", "limit is 1000"]);
    assert_eq!(outcome.commits.points, 0);
}

/// Promise 18, row 40: keys that a transaction reads, lists or writes.
#[tokio::test]
async fn state_keys_max() {
    let (host, kv) = keeping(StateLimits { keys_max: 10, ..StateLimits::default() }).await;
    let words = ["more than 10 keys"];
    let refused = async |tool: &str, input: Value| {
        let outcome = call(&host, &kv, tool, input).await;
        assert!(matches!(outcome.end, End::Failed(_)), "{tool}: {:?}", outcome.end);
        contains(outcome.end.error().unwrap(), &words);
        assert_eq!(outcome.commits.points, 0);
    };
    completed(&call(&host, &kv, "write_many", json!({"count": 10, "bytes": 1})).await);
    refused("write_many", json!({"count": 11, "bytes": 1})).await;
    refused("remove_many", json!({"count": 11, "bytes": 1})).await;
    assert_eq!(completed(&call(&host, &kv, "list", json!({})).await)["keys"].as_array().unwrap().len(), 10);
    completed(&call(&host, &kv, "set", json!({"key": "one-more", "value": 1})).await);
    refused("list", json!({})).await;
}

/// What `many-0` and its like count, with a text of so many bytes.
fn many_bytes(text_bytes: usize) -> u64 {
    key_bytes("many-0", text_bytes + r#""""#.len())
}

fn key_bytes(key: &str, value_bytes: usize) -> u64 {
    Key { bucket: "test".into(), key: key.into() }.charge(Some(value_bytes))
}

/// Promise 18, row 40: keys and values together, as they would be written.
#[tokio::test]
async fn state_write_bytes_max() {
    let write_bytes_max = 5 * many_bytes(100);
    let (host, kv) = keeping(StateLimits { write_bytes_max, ..StateLimits::default() }).await;
    completed(&call(&host, &kv, "write_many", json!({"count": 5, "bytes": 100})).await);
    let outcome = call(&host, &kv, "write_many", json!({"count": 6, "bytes": 100})).await;
    assert!(matches!(outcome.end, End::Failed(_)), "{:?}", outcome.end);
    contains(outcome.end.error().unwrap(), &[&format!("more than {write_bytes_max} bytes")]);
    assert_eq!((outcome.commits.points, outcome.discarded.writes), (0, 5));
}

/// Promise 18, row 40: keys and values together, as they were read.
#[tokio::test]
async fn state_read_bytes_max() {
    let read_bytes_max = 5 * many_bytes(100) - 1;
    let (host, kv) = keeping(StateLimits { read_bytes_max, ..StateLimits::default() }).await;
    let read = async |count: u64| call(&host, &kv, "remove_many", json!({"count": count, "bytes": 100})).await;
    completed(&call(&host, &kv, "write_many", json!({"count": 5, "bytes": 100})).await);
    let outcome = read(5).await;
    assert!(matches!(outcome.end, End::Failed(_)), "{:?}", outcome.end);
    contains(outcome.end.error().unwrap(), &[&format!("reads more than {read_bytes_max} bytes")]);
    assert_eq!(outcome.commits.points, 0);
    assert_eq!(completed(&read(4).await)["value"], 4);
}

/// Promise 18, row 40: what an agent keeps with a component, over all its calls. Others have their own.
#[tokio::test]
async fn state_space_bytes_max() {
    let space_bytes_max = 4 * many_bytes(100) + key_bytes("a", 1);
    let (host, kv) = keeping(StateLimits { space_bytes_max, ..StateLimits::default() }).await;
    let set = async |agent: &str, key: &str| {
        let call = host.agent(agent).call(&kv, "set", json!({"key": key, "value": 1})).start();
        within(call.outcome()).await
    };
    completed(&call(&host, &kv, "write_many", json!({"count": 4, "bytes": 100})).await);
    completed(&set("default", "a").await);
    // To write it again takes no more.
    completed(&set("default", "a").await);
    let outcome = set("default", "b").await;
    failed(&outcome, "quota", &["agent `default`", &format!("limit is {space_bytes_max}")]);
    assert_eq!((outcome.commits.points, outcome.discarded.writes), (0, 1));
    completed(&set("other", "b").await);
    completed(&call(&host, &kv, "remove_many", json!({"count": 4, "bytes": 100})).await);
    completed(&set("default", "b").await);
}

// What is not granted is empty

/// Promise 18: neither variables nor arguments of the host's process.
#[tokio::test]
async fn the_environment_is_empty() {
    let (host, _) = host_with(limits(), call_limits());
    let misc = load(&host, "misc").await;
    let outcome = call(&host, &misc, "env", json!({})).await;
    assert_eq!(completed(&outcome), &json!({"arguments": [], "variables": []}));
}

/// Promise 18: no folder, not even an empty one.
#[tokio::test]
async fn there_are_no_files() {
    let (host, _) = host_with(limits(), call_limits());
    let misc = load(&host, "misc").await;
    let outcome = call(&host, &misc, "files", json!({})).await;
    let output = completed(&outcome);
    assert!(output["read"].is_string() && output["write"].is_string(), "{output}");
    assert!(!std::path::Path::new("/estop-was-here").exists());
}

/// Promise 18: no network, not even to this machine.
#[tokio::test]
async fn there_is_no_network() {
    let (host, _) = host_with(limits(), call_limits());
    let misc = load(&host, "misc").await;
    let output = completed(&call(&host, &misc, "net", json!({})).await).clone();
    contains(output.as_str().unwrap(), &["ermission denied"]);
}

/// Promise 18: right, and too coarse to measure the host with.
#[tokio::test]
async fn the_clock_is_coarse() {
    let (host, _) = host_with(limits(), call_limits());
    let misc = load(&host, "misc").await;
    let since = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    for _ in 0..50 {
        let before = since();
        let outcome = call(&host, &misc, "clock", json!({})).await;
        let output = completed(&outcome);
        let (wall_ms, step_ns) = (output["wall_ms"].as_u64().unwrap(), output["step_ns"].as_u64().unwrap());
        assert_eq!(step_ns % 1_000_000, 0);
        assert!((before..=since()).contains(&wall_ms), "{before} {wall_ms}");
    }
}

/// Promise 18: standard output is thrown away, as much of it as there is.
#[tokio::test]
async fn a_flood_of_output_is_harmless() {
    let (host, _) = host_with(limits(), call_limits());
    let misc = load(&host, "misc").await;
    let outcome = call(&host, &misc, "stdout_flood", json!({"bytes": 20_000_000})).await;
    completed(&outcome);
    assert_eq!(outcome.stderr.len(), CallLimits::default().stderr_bytes_max);
}

/// Promise 19: what is random for a guest is the same for each call, so that a call can be repeated.
#[tokio::test]
async fn random_is_the_same_for_each_call() {
    let (host, _) = host_with(limits(), call_limits());
    let misc = load(&host, "misc").await;
    for tool in ["random", "hash_map"] {
        let first = completed(&call(&host, &misc, tool, json!({})).await).clone();
        for agent in ["a", "b", "c"] {
            let call = host.agent(agent).call(&misc, tool, json!({})).start();
            assert_eq!(completed(&within(call.outcome()).await), &first);
        }
    }
}

/// Promise 1: a stack that is used up is a trap of that call and of nothing else.
#[tokio::test]
async fn a_stack_overflow_is_a_trap() {
    let (host, _) = host_with(limits(), call_limits());
    let (misc, runaway) = (load(&host, "misc").await, load(&host, "runaway").await);
    let endless =
        "(func $deeper (param i64 i64 i64 i64) (call $deeper (local.get 3) (local.get 2) (local.get 1) (local.get 0)))";
    let zeros = "(i64.const 0) ".repeat(4);
    let recursion = host.load(victim(endless, &format!("(call $deeper {zeros})"))).await.unwrap();
    for _ in 0..10 {
        trapped(&call(&host, &misc, "stack_overflow", json!({})).await, &[]);
        trapped(&call(&host, &runaway, "recurse", json!({})).await, &[]);
        trapped(&call_victim(&host, &recursion).await, &["call stack exhausted"]);
        completed(&call(&host, &misc, "hash_map", json!({})).await);
    }
}

/// Promise 9, rows 8 and 39: a call finds its memories, globals and tables as the component declares them, whatever
/// the one before in the same place of the pool left there, and however that one ended.
#[tokio::test]
async fn memory_of_an_earlier_call_is_never_seen() {
    const FIELDS: &str = r#"
        (global $left (mut i32) (i32.const 0))
        (table $table 1 10 funcref)
        (elem declare func $traverse)
        (func $traverse (param $at i32) (param $end i32)
            (loop $next
                (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then unreachable))
                (i64.store (local.get $at) (i64.const -1))
                (local.set $at (i32.add (local.get $at) (i32.const 8)))
                (br_if $next (i32.lt_u (local.get $at) (local.get $end)))))"#;
    let ends =
        [("completes", ""), ("traps", "unreachable"), ("is stopped", "(drop (call $describing)) (loop $l (br $l))")];
    let (host, probe) = host_with(HostLimits { sandboxes_max: 1, workers: 1, ..limits() }, call_limits());
    let pages = 100;
    let (kept, grown) = (32 << 10, 2 * PAGE_BYTES);
    let mut components = Vec::new();
    for (_, end) in ends {
        let call = format!(
            r#"
            (if (global.get $left) (then unreachable))
            (global.set $left (i32.const 1))
            (if (i32.eqz (ref.is_null (table.get $table (i32.const 0)))) (then unreachable))
            (table.set $table (i32.const 0) (ref.func $traverse))
            (if (i32.ne (table.grow $table (ref.func $traverse) (i32.const 9)) (i32.const 1)) (then unreachable))
            (if (i32.ne (i32.load (i32.const 128)) (i32.const 0x74636976)) (then unreachable)) ;; "vict"
            (i32.store (i32.const 128) (i32.const -1))
            (if (i32.ne (memory.grow (i32.const {pages})) (i32.const 2)) (then unreachable))
            (call $traverse (i32.const {kept}) (i32.const {}))
            (call $traverse (i32.const {grown}) (i32.const {}))
            {end}"#,
            PAGE_BYTES,
            grown + pages * PAGE_BYTES,
        );
        components.push(host.load(victim(FIELDS, &call)).await.unwrap());
    }
    // Pairs of all kinds, of the same component and of different ones.
    for index in [0, 0, 1, 1, 0, 2, 2, 0, 1, 2, 1, 0] {
        let marks = probe.marks();
        let call = host.agent("a").call(&components[index], "victim", Value::Null).start();
        if index == 2 {
            probe.marked(marks + 1).await;
            let _ = host.interrupt(Scope::Everything, Interrupt::new(Cause::Operator, "test"));
        }
        let outcome = within(call.outcome()).await;
        match ends[index].0 {
            "completes" => drop(completed(&outcome)),
            "traps" => {
                trapped(&outcome, &["unreachable"]);
                // Its own `unreachable` and none of the checks: those come before as much fuel is used.
                assert!(outcome.fuel > (pages * PAGE_BYTES / 8) as u64, "{}", outcome.fuel);
            }
            _ => stopped_by(&outcome, Cause::Operator),
        }
    }
}
