//! Rows 27 to 29, "Shows" 7: a host always ends, in order, and says what did not.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use estop::{
    BuildError, Call, Cause, Component, End, Host, HostBuilder, SHUTDOWN_HOOKS_MAX, SHUTDOWN_RELEASED_WITHIN, Shutdown,
};
use estop_tests::clock::ManualClock;
use estop_tests::counter::Counter;
use estop_tests::guests::Hostile;
use estop_tests::home;
use estop_tests::probe::Probe;
use estop_tests::stage::{MARK, SPIN, WAIT, grant, hostile, sized, start, stopped};
use estop_tests::{PATIENCE, load, small, within};
use serde_json::json;

const BUDGET: Duration = Duration::from_millis(100);
const GRACE: Duration = Duration::from_millis(100);
/// What tells a child of the test that it is one.
const CHILD: &str = "ESTOP_TEST_SHUTDOWN";

fn spinner() -> Hostile<'static> {
    Hostile { call: SPIN, ..Hostile::default() }
}

fn waiter() -> Hostile<'static> {
    Hostile { call: WAIT, ..Hostile::default() }
}

/// A process that a host function has started. It goes when the function does.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Row 29 and 28: what a call has started is gone before a hook begins, and a hook that needs its time gets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_die_before_slow_clean_up_starts_and_it_finishes() {
    let (pids, began) = (Arc::<Mutex<Vec<u32>>>::default(), Counter::new());
    let (starts, counts) = (Arc::clone(&pids), began.clone());
    let builder = grant(small(), move |_| {
        let child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("a process");
        starts.lock().unwrap().push(child.id());
        counts.add();
        let started = Started(child);
        Box::pin(async move {
            let _started = started;
            std::future::pending().await
        })
    });
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let (slow, last) = (Arc::clone(&seen), Arc::clone(&seen));
    let builder = builder.on_shutdown("slow", Duration::from_secs(60), move || async move {
        let alive = |pid: &u32| Path::new("/proc").join(pid.to_string()).exists();
        let alive = pids.lock().unwrap().iter().filter(|pid| alive(pid)).count();
        slow.lock().unwrap().push(format!("slow begins, {alive} alive"));
        tokio::time::sleep(Duration::from_millis(200)).await;
        thread::sleep(Duration::from_millis(200));
        slow.lock().unwrap().push("slow ends".into());
    });
    let builder = builder.on_shutdown("last", BUDGET, move || async move { last.lock().unwrap().push("last".into()) });
    let host = builder.build().unwrap();
    let waiter = hostile(&host, waiter()).await;
    let calls: Vec<Call> = (0..3).map(|_| start(&host, "a", &waiter)).collect();
    began.reached(3).await;
    let ended = within(host.shutdown()).await;
    assert_eq!(ended, Shutdown { log_closed: true, ..Shutdown::default() });
    assert!(ended.is_complete());
    assert_eq!(*seen.lock().unwrap(), ["slow begins, 0 alive", "slow ends", "last"]);
    for call in &calls {
        assert_eq!(stopped(&*within(call.outcome()).await).cause, Cause::Shutdown);
    }
    // Once.
    assert!(within(host.shutdown()).await.is_complete());
    assert_eq!(seen.lock().unwrap().len(), 3);
}

fn forever() -> ! {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// Hooks that never return, by themselves and in the way of their thread, and one that panics.
fn bad_hooks(builder: HostBuilder) -> HostBuilder {
    builder
        .on_shutdown("never comes back", BUDGET, std::future::pending::<()>)
        .on_shutdown("sleeps for ever", BUDGET, || async { forever() })
        .on_shutdown("does not get as far as its future", BUDGET, || -> std::future::Ready<()> { forever() })
        .on_shutdown("panics", PATIENCE, || async { panic!("as it was told to") })
}

/// Row 27: a hook that hangs keeps nobody, neither those after it nor the end; and it is named, also in the log.
#[tokio::test]
async fn a_hook_that_hangs_keeps_nobody_and_is_named() {
    let (home, ran) = (home::temporary(), Arc::new(AtomicBool::new(false)));
    let runs = Arc::clone(&ran);
    let builder = bad_hooks(home.host()).on_shutdown("good", PATIENCE, move || async move {
        runs.store(true, Ordering::Release);
    });
    let host = builder.build().unwrap();
    let began = Instant::now();
    let ended = within(host.shutdown()).await;
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(ran.load(Ordering::Acquire), "a hook behind them did not run");
    let cut: Vec<_> = ended.hooks_cut.iter().map(|cut| (&*cut.hook, cut.why.contains("budget"))).collect();
    let names = ["never comes back", "sleeps for ever", "does not get as far as its future"].map(|name| (name, true));
    assert_eq!(cut, [&names[..], &[("panics", false)]].concat());
    assert!(ended.log_closed && ended.unconfirmed.is_empty() && !ended.is_complete());
    let log = home.log();
    let entry = log.iter().find(|entry| entry["kind"] == "cut").expect("it is entered");
    assert_eq!((&entry["unconfirmed"], &entry["hooks"][1]["hook"]), (&json!(0), &json!("sleeps for ever")));
    assert!(log.iter().any(|entry| entry["kind"] == "closed"));
}

/// Lets a host function go that blocks its thread.
type Lock = Arc<(Mutex<bool>, Condvar)>;

/// A host with a guest that is stuck in a host function, one that waits in a stuck thread elsewhere, and a hundred that spin.
async fn crowded(builder: HostBuilder) -> (Host, Call, Vec<Call>, Lock) {
    let (let_go, stuck) = (Lock::default(), Counter::new());
    let (counts, lock) = (stuck.clone(), Arc::clone(&let_go));
    let builder = grant(builder, move |ctx| {
        let lock = Arc::clone(&lock);
        let block = move || drop(lock.1.wait_while(lock.0.lock().unwrap(), |open| !*open).unwrap());
        counts.add();
        if ctx.agent() == "stuck" {
            block();
        }
        Box::pin(async move {
            // A stuck blocking thread that its call does not wait for any more.
            tokio::task::spawn_blocking(block).await?;
            Ok(())
        })
    });
    let host = builder.build().unwrap();
    let (spinner, waiter) = (hostile(&host, spinner()).await, hostile(&host, waiter()).await);
    let mut calls: Vec<Call> = (0..100).map(|_| start(&host, "spins", &spinner)).collect();
    calls.push(start(&host, "waits", &waiter));
    let blocked = start(&host, "stuck", &waiter);
    stuck.reached(2).await;
    (host, blocked, calls, let_go)
}

/// "Shows" 7: with a hook that sleeps for ever, a stuck thread and a hundred spinning calls it ends within the bound, and says
/// what it could not confirm. The next host of the home finds that in the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stuck_keeps_nobody_and_is_named() {
    let home = home::temporary();
    let (host, blocked, calls, let_go) = crowded(bad_hooks(sized(2, 200).store_arc(home.store()))).await;
    let began = Instant::now();
    let ended = within(host.shutdown()).await;
    let took = began.elapsed();
    println!("it ended after {took:?}");
    assert!(took < SHUTDOWN_RELEASED_WITHIN + 4 * BUDGET + Duration::from_secs(20), "{took:?}");
    assert_eq!(ended.unconfirmed, [blocked.id()]);
    assert_eq!((ended.hooks_cut.len(), ended.log_closed), (4, false));
    for call in &calls {
        assert_eq!(stopped(&*within(call.outcome()).await).cause, Cause::Shutdown);
    }
    assert!(blocked.try_outcome().is_none());

    let next = home.host().build().unwrap();
    let log = home.log();
    let entry = log.iter().find(|entry| entry["kind"] == "cut").expect("it is entered");
    assert_eq!((&entry["unconfirmed"], &entry["calls"]), (&json!(1), &json!([blocked.id()])));
    let of_blocked = |entry: &&serde_json::Value| entry["call"] == json!(blocked.id());
    let end: Vec<_> = log.iter().filter(of_blocked).map(|entry| entry["kind"].as_str().unwrap()).collect();
    assert_eq!(end.last(), Some(&"call-died"), "{end:?}");
    assert!(within(next.shutdown()).await.is_complete());

    *let_go.0.lock().unwrap() = true;
    let_go.1.notify_all();
    assert_eq!(stopped(&*within(blocked.outcome()).await).cause, Cause::Shutdown);
}

/// The same in a process of its own, which ends.
#[test]
fn the_process_ends_whatever_hangs() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_that_shuts_down", "--ignored", "--nocapture"]).env(CHILD, "1");
    let mut child = Started(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.0.try_wait().unwrap() {
            break status;
        }
        assert!(began.elapsed() < PATIENCE, "the process does not end");
        thread::yield_now();
    };
    let mut said = String::new();
    std::io::Read::read_to_string(child.0.stdout.as_mut().unwrap(), &mut said).unwrap();
    assert!(status.success() && said.contains("one is stuck"), "{said}");
}

#[tokio::test]
#[ignore = "a child of another test"]
async fn child_that_shuts_down() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let (host, blocked, _calls, _let_go) = crowded(bad_hooks(sized(2, 200))).await;
    let ended = host.shutdown().await;
    assert_eq!(ended.unconfirmed, [blocked.id()]);
    println!("one is stuck");
}

async fn polite(host: &Host) -> (Component, Call) {
    let runaway = load(host, "runaway").await;
    let polite = host.agent("a").call(&runaway, "polite", json!({ "steps": 1_000_000, "step_ms": 1 })).start();
    let mut progress = polite.progress();
    within(progress.wait_for(|progress| progress.as_ref().is_some_and(|progress| progress.done >= 3))).await.unwrap();
    (runaway, polite)
}

/// In the grace a cooperative tool ends by itself, and nobody else is let in; a rude one is cut off at its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cooperative_tools_have_their_grace() {
    let host = small().shutdown_grace(PATIENCE).build().unwrap();
    let (runaway, polite) = polite(&host).await;
    assert!(within(host.shutdown()).await.is_complete());
    let outcome = within(polite.outcome()).await;
    assert_eq!((stopped(&outcome).cause, outcome.commits.points), (Cause::Shutdown, 0));
    let late = host.agent("a").call(&runaway, "polite", json!({ "steps": 1 })).start();
    let outcome = within(late.outcome()).await;
    assert!(matches!(&outcome.end, End::Refused(why) if why.contains("shutting down")), "{:?}", outcome.end);

    let probe = Probe::new();
    let host = probe.grant(small()).build().unwrap();
    let code = format!("{MARK} {SPIN}");
    let spinner = hostile(&host, Hostile { call: &code, ..Hostile::default() }).await;
    let rude = start(&host, "a", &spinner);
    probe.marked(1).await;
    assert!(within(host.shutdown_with(GRACE)).await.is_complete());
    assert!(stopped(&*within(rude.outcome()).await).halted >= GRACE);
}

/// Also if whatever tells the time stands still, the end of the grace comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grace_ends_also_if_the_clock_stands_still() {
    let probe = Probe::new();
    let host = probe.grant(small()).clock(ManualClock::new()).build().unwrap();
    let spinner = hostile(&host, spinner()).await;
    let spinning = start(&host, "a", &spinner);
    let ended = within(host.shutdown_with(GRACE)).await;
    assert_eq!(ended, Shutdown { log_closed: true, ..Shutdown::default() });
    assert_eq!(stopped(&*within(spinning.outcome()).await).cause, Cause::Shutdown);
}

/// Promise 18: hooks have a bound.
#[test]
fn shutdown_hooks_max() {
    let hooked = |count: usize| {
        (0..count).fold(small(), |builder, n| builder.on_shutdown(format!("hook {n}"), BUDGET, || async {}))
    };
    assert!(hooked(SHUTDOWN_HOOKS_MAX).build().is_ok());
    let Err(error) = hooked(SHUTDOWN_HOOKS_MAX + 1).build() else { panic!("it was built") };
    assert!(matches!(error, BuildError::Hooks(_)) && error.to_string().contains("at most"), "{error}");
}
