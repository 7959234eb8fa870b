//! Halts: what they stop, what they refuse, and that they hold (promises 6 and 12).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use estop::{Call, Component, End, Halt, HaltError, HaltScope, Home, Host, HostLimits, Outcome, Source};
use estop_tests::counter::Counter;
use estop_tests::guests::{self, Hostile};
use estop_tests::home::{self, Temporary};
use estop_tests::stage::{WAIT, grant, hostile, start};
use estop_tests::{call, completed, load, log, small, within};
use serde_json::{Value, json};

/// Races of a halt with calls that start.
const ROUNDS: usize = 2_000;

fn host(home: &Temporary) -> Host {
    home.host().build().expect("a host")
}

fn halts(home: &Home) -> PathBuf {
    home.path().join("halts")
}

fn spin(host: &Host, runaway: &Component, agent: &str) -> Call {
    host.agent(agent).call(runaway, "spin", json!({})).start()
}

/// One that has begun: what has not may be refused instead of stopped.
async fn spinning(host: &Host, runaway: &Component, agent: &str) -> Call {
    let input = json!({ "keys": 1, "value_bytes": 1 });
    let call = host.agent(agent).call(runaway, "write_then_spin", input).start();
    within(call.progress().wait_for(Option::is_some)).await.expect("it spins");
    call
}

#[track_caller]
fn refused(outcome: &Outcome, words: &[&str]) {
    let End::Refused(why) = &outcome.end else { panic!("{:?}", outcome.end) };
    for word in words {
        assert!(why.contains(word), "`{word}` is not in: {why}");
    }
}

#[track_caller]
fn halted(outcome: &Outcome) {
    let stopped = outcome.end.stopped().unwrap_or_else(|| panic!("{:?}", outcome.end));
    assert_eq!(stopped.cause, estop::Cause::Halted);
}

async fn get(host: &Host, kv: &Component, agent: &str, key: &str) -> Arc<Outcome> {
    let call = host.agent(agent).call(kv, "get", json!({ "key": key })).start();
    within(call.outcome()).await
}

/// Until this home has so many halts in force for a host, by whatever way it learns of them.
async fn in_force(host: &Host, count: usize) -> Vec<Halt> {
    let look = async {
        loop {
            let halts = host.halts();
            if halts.len() == count {
                return halts;
            }
            tokio::task::yield_now().await;
        }
    };
    within(look).await
}

/// Promise 12, row 30: what runs is stopped, what comes is refused and told by whom and why, also after a restart; when it
/// is lifted, calls may start, and nothing resumes.
#[tokio::test]
async fn a_halt_holds_across_restarts_until_it_is_lifted() {
    let home = home::temporary();
    let first = host(&home);
    let (kv, runaway) = (load(&first, "kv").await, load(&first, "runaway").await);
    let spinning = spinning(&first, &runaway, "support-7").await;
    let halt = first.halt(HaltScope::All, "alice", "it writes nonsense").expect("it is on the disk");
    halted(&*within(spinning.outcome()).await);
    let told = ["halted", "alice", "it writes nonsense", &halt.halt.to_string()];
    refused(&*get(&first, &kv, "default", "a").await, &told);
    within(first.shutdown()).await;

    let second = host(&home);
    let error =
        second.load(Source::file(guests::path("kv"))).await.expect_err("it would ask the component what it has");
    told.iter().for_each(|word| assert!(error.to_string().contains(word), "`{word}` is not in: {error}"));
    let lifted = second.lift(halt.halt, "bob", "it was a drill").expect("nothing runs");
    assert_eq!((lifted.halt, &*lifted.actor), (halt.halt, "alice"));
    assert!(matches!(second.lift(halt.halt, "bob", "again"), Err(HaltError::Unknown(_))));
    assert_eq!(second.live_calls(), 0);
    let kv = load(&second, "kv").await;
    completed(&get(&second, &kv, "default", "a").await);
    within(second.shutdown()).await;

    let third = host(&home);
    let log = log(&third).await;
    let entry = |kind: &str| log.iter().find(|entry| entry["kind"] == kind).cloned().unwrap_or_default();
    let (entered, lift) = (entry("halt"), entry("lift"));
    assert_eq!(
        (&entered["actor"], &entered["scope"], &entered["latched"]),
        (&json!("alice"), &json!("all"), &json!(true))
    );
    assert_eq!(
        (&lift["halt"], &lift["actor"], &lift["reason"]),
        (&entered["halt"], &json!("bob"), &json!("it was a drill"))
    );
    let stop = log.iter().find(|entry| entry["kind"] == "interrupt").cloned().unwrap_or_default();
    assert_eq!((&stop["halt"], &stop["cause"]), (&entered["halt"], &json!("halted")));
}

/// "Retiring an agent or a tool for good keeps its evidence": it is stopped and refused, also after a restart; nothing lifts
/// it; and what it has kept, and the log, are there.
#[tokio::test]
async fn what_is_retired_stays_so_and_keeps_what_it_has_left() {
    let home = home::temporary();
    let first = host(&home);
    let (kv, runaway) = (load(&first, "kv").await, load(&first, "runaway").await);
    let set = first.agent("a").call(&kv, "set", json!({ "key": "k", "value": 7 })).start();
    completed(&within(set.outcome()).await);
    let spinning = spinning(&first, &runaway, "a").await;
    let retired = first.retire(HaltScope::Agent("a".into()), "alice", "superseded").expect("it is on the disk");
    halted(&*within(spinning.outcome()).await);
    let told = ["retired: agent a was retired for good by alice", "superseded", "nothing lifts it"];
    refused(&*get(&first, &kv, "a", "k").await, &told);
    let refuse = |host: &Host| {
        let error = host.lift(retired.halt, "bob", "please").expect_err("it is for good");
        assert!(matches!(error, HaltError::Retired { .. }), "{error}");
        let error = error.to_string();
        for word in ["never lifted", "superseded", "halts/latched"] {
            assert!(error.contains(word), "`{word}` is not in: {error}");
        }
    };
    refuse(&first);
    completed(&get(&first, &kv, "b", "k").await);
    within(first.shutdown()).await;

    let second = host(&home);
    let kv = load(&second, "kv").await;
    refuse(&second);
    refused(&*get(&second, &kv, "a", "k").await, &told);
    assert!(second.halts()[0].permanent);
    let log = log(&second).await;
    let entries: Vec<_> = log.iter().filter(|entry| entry["kind"] == "halt" || entry["kind"] == "lift").collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!((&entries[0]["permanent"], &entries[0]["latched"]), (&json!(true), &json!(true)));
    assert!(log.iter().any(|entry| entry["kind"] == "commit" && entry["agent"] == "a"));
    // By hand, as the documentation says: what it had kept is there.
    fs::remove_file(halts(home.home()).join(format!("latched/{}.json", retired.halt))).expect("it is there");
    in_force(&second, 0).await;
    assert_eq!(completed(&get(&second, &kv, "a", "k").await)["value"], 7);
    // A halt that can be lifted says nothing of it, so that files and entries are what they were.
    let halt = second.halt(HaltScope::Agent("b".into()), "alice", "").expect("a halt");
    let file = fs::read_to_string(halts(home.home()).join(format!("latched/{}.json", halt.halt))).expect("it is there");
    assert!(!file.contains("permanent"), "{file}");
}

/// Promise 5: a halt covers what it names and nothing else.
#[tokio::test]
async fn a_halt_covers_what_it_names() {
    let home = home::temporary();
    let host = host(&home);
    let (kv, runaway) = (load(&host, "kv").await, load(&host, "runaway").await);
    let (covered, other) = (spin(&host, &runaway, "a"), spin(&host, &runaway, "b"));
    let by_agent = host.halt(HaltScope::Agent("a".into()), "alice", "").expect("a halt");
    halted(&*within(covered.outcome()).await);
    refused(&*get(&host, &kv, "a", "k").await, &["agent a was halted by alice"]);
    completed(&get(&host, &kv, "b", "k").await);
    let by_tool = host.halt(HaltScope::Tool("get".into()), "alice", "").expect("a halt");
    refused(&*get(&host, &kv, "b", "k").await, &["tool get was halted"]);
    let set = host.agent("b").call(&kv, "set", json!({ "key": "k", "value": 1 })).start();
    completed(&within(set.outcome()).await);
    let elsewhere = HaltScope::Host("host-01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().expect("an id"));
    host.halt(elsewhere, "alice", "").expect("a halt");
    let by_host = host.halt(HaltScope::Host(host.id()), "alice", "").expect("a halt");
    halted(&*within(other.outcome()).await);
    for halt in [by_agent, by_tool, by_host] {
        host.lift(halt.halt, "alice", "done").expect("it is lifted");
    }
    completed(&get(&host, &kv, "a", "k").await);
}

/// Promise 6: calls that start while a halt is made are stopped by it or refused; none runs on. By the host itself, and by
/// another host of the same home, whose halt is met as soon as it is on the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_starting_call_escapes_a_halt() {
    let home = home::temporary();
    let (here, elsewhere) = (host(&home), host(&home));
    let runaway = load(&here, "runaway").await;
    for round in 0..ROUNDS {
        let by = if round % 2 == 0 { here.clone() } else { elsewhere.clone() };
        let halting = tokio::task::spawn_blocking(move || by.halt(HaltScope::All, "alice", "").expect("a halt"));
        let before: Vec<Call> = (0..3).map(|_| spin(&here, &runaway, "a")).collect();
        let halt = halting.await.expect("it halts");
        // On the disk: from here on nothing may start, whoever has halted.
        let after = spin(&here, &runaway, "a");
        for call in &before {
            let outcome = within(call.outcome()).await;
            match &outcome.end {
                // Also by a disk that is slow for a moment.
                End::Refused(why) => assert!(why.contains("halted") || why.contains("the log has been"), "{why}"),
                _ => halted(&outcome),
            }
        }
        let outcome = within(after.outcome()).await;
        assert_eq!(outcome.fuel, 0, "{:?}", outcome.end);
        match &outcome.end {
            End::Refused(why) => {
                assert!(why.contains(&halt.halt.to_string()) || why.contains("the log has been"), "{why}");
            }
            // Met by the host that was still walking its calls.
            _ => halted(&outcome),
        }
        let lifting = async {
            // The other host may still be reading the news.
            while let Err(error) = here.lift(halt.halt, "alice", "the next round") {
                assert!(matches!(error, HaltError::Unknown(_)), "{error}");
                tokio::task::yield_now().await;
            }
        };
        within(lifting).await;
        in_force(&elsewhere, 0).await;
    }
}

/// Row 31: what waits in the queue does not run after the stop.
#[tokio::test]
async fn what_is_queued_does_not_run_after_a_halt() {
    let limits = HostLimits { sandboxes_max: 1, ..HostLimits::default() };
    let host = small().limits(limits).build().expect("a host");
    let (kv, runaway) = (load(&host, "kv").await, load(&host, "runaway").await);
    let spinning =
        host.agent("default").call(&runaway, "write_then_spin", json!({ "keys": 1, "value_bytes": 1 })).start();
    within(spinning.progress().wait_for(Option::is_some)).await.expect("it spins");
    let set = |n: usize| host.agent("default").call(&kv, "set", json!({ "key": format!("k{n}"), "value": n })).start();
    let queued: Vec<Call> = (0..100).map(set).collect();
    let halt = host.halt(HaltScope::All, "alice", "").expect("a halt");
    for call in &queued {
        let outcome = within(call.outcome()).await;
        assert!(!matches!(outcome.end, End::Completed(_)), "{:?}", outcome.end);
        assert_eq!((outcome.fuel, outcome.commits.points), (0, 0));
    }
    halted(&*within(spinning.outcome()).await);
    host.lift(halt.halt, "alice", "look").expect("it is lifted");
    assert_eq!(completed(&call(&host, &kv, "list", json!({})).await)["keys"], json!([]));
}

/// The last resort: a dropped file is a halt, and removing it changes nothing.
#[tokio::test]
async fn a_dropped_file_is_a_halt_and_removing_it_does_not_lift() {
    let home = home::temporary();
    let host = host(&home);
    let (kv, runaway) = (load(&host, "kv").await, load(&host, "runaway").await);
    for (text, reason) in
        [("", ""), ("it is on fire", "it is on fire"), (r#"{"scope":{"agent":"a"},"reason":"x"}"#, "x")]
    {
        let spinning = spinning(&host, &runaway, "a").await;
        let dropped = halts(home.home()).join("inbox/halt");
        fs::write(&dropped, text).expect("a file is dropped");
        halted(&*within(spinning.outcome()).await);
        // Taken, by whoever is faster.
        let _ = fs::remove_file(&dropped);
        let found = in_force(&host, 1).await;
        assert_eq!(&*found[0].reason, reason);
        assert_ne!(&*found[0].actor, "");
        refused(&*get(&host, &kv, "a", "k").await, &["halted"]);
        let again = self::host(&home);
        assert_eq!(again.halts()[0].halt, found[0].halt);
        within(again.shutdown()).await;
        within(async { while host.lift(found[0].halt, "alice", "out").is_err() {} }).await;
        completed(&get(&host, &kv, "a", "k").await);
    }
    within(host.shutdown()).await;

    // Nobody was there to take it; and there is no moment in which a host that begins does not know of it.
    fs::write(halts(home.home()).join("inbox/late"), "nobody is there").expect("a file is dropped");
    let late = self::host(&home);
    let error = late.load(Source::file(guests::path("kv"))).await.expect_err("it is halted");
    assert!(error.to_string().contains("nobody is there"), "{error}");
}

/// Promise 12: what cannot be read counts as a halt of everything.
#[tokio::test]
async fn a_host_that_cannot_read_its_halts_starts_halted() {
    let home = home::temporary();
    let latched = halts(home.home()).join("latched");

    // A file that says nothing.
    let id = "halt-01ARZ3NDEKTSV4RRFFQ69G5FAV";
    fs::write(latched.join(format!("{id}.json")), "{").expect("a file");
    let garbled = host(&home);
    let load_kv = |host: &Host| {
        let host = host.clone();
        async move { host.load(Source::file(guests::path("kv"))).await.map_err(|error| error.to_string()) }
    };
    let why = load_kv(&garbled).await.expect_err("it is halted");
    assert!(["halted", "covers everything", id].iter().all(|word| why.contains(word)), "{why}");
    garbled.lift(id.parse().expect("an id"), "alice", "it was me").expect("it can be lifted all the same");
    load_kv(&garbled).await.expect("it is lifted");
    within(garbled.shutdown()).await;

    // A folder that is none.
    fs::remove_dir(&latched).expect("it is empty");
    fs::write(&latched, "").expect("a file");
    let store = home.store();
    let blind = small().store_arc(store).build().expect("a host");
    let why = load_kv(&blind).await.expect_err("it is halted");
    assert!(why.contains("halted") && why.contains("cannot be read"), "{why}");
}

/// Promise 12: a halt that cannot be put on the disk stops and refuses all the same, and says that it will not last.
#[tokio::test]
async fn a_halt_that_cannot_be_put_on_the_disk_says_so() {
    let home = home::temporary();
    let host = host(&home);
    let (kv, runaway) = (load(&host, "kv").await, load(&host, "runaway").await);
    let spinning = spinning(&host, &runaway, "a").await;
    // Root may write anywhere: what is not there cannot be written to by anybody.
    let latched = halts(home.home()).join("latched");
    fs::set_permissions(&latched, fs::Permissions::from_mode(0o500)).expect("permissions are changed");
    fs::rename(&latched, halts(home.home()).join("moved")).expect("it is moved away");
    let error = host.halt(HaltScope::All, "alice", "").expect_err("there is no place for it");
    assert!(error.to_string().contains("would not outlive this process"), "{error}");
    halted(&*within(spinning.outcome()).await);
    refused(&*get(&host, &kv, "a", "k").await, &["halted"]);
    let entry = log(&host).await.into_iter().find(|entry| entry["kind"] == "halt").unwrap_or(Value::Null);
    assert_eq!(entry["latched"], false);
}

/// Whoever may halt cannot fill the list until nobody can lift anything: one too many stops what runs, says that it does
/// not hold, and leaves a place for a halt of everything.
#[tokio::test]
async fn there_is_always_room_for_a_halt_of_everything() {
    const IN_FORCE_MAX: usize = 900;
    let home = home::temporary();
    let host = host(&home);
    let (kv, runaway) = (load(&host, "kv").await, load(&host, "runaway").await);
    let spinning = spinning(&host, &runaway, "late").await;
    let halt = |agent: String| host.halt(HaltScope::Agent(agent), "mallory", "");
    let made: Vec<Halt> = (0..IN_FORCE_MAX).map(|n| halt(format!("a{n}")).expect("a halt")).collect();
    let error = halt("late".into()).expect_err("there is no room");
    assert!(matches!(error, HaltError::TooMany { in_force: IN_FORCE_MAX }), "{error}");
    halted(&*within(spinning.outcome()).await);
    completed(&get(&host, &kv, "late", "k").await);
    let all = host.halt(HaltScope::All, "alice", "enough of that").expect("there is room for it");
    refused(&*get(&host, &kv, "late", "k").await, &["halted"]);
    host.halt(HaltScope::All, "mallory", "").expect_err("everything is halted already");
    for halt in [&all, &made[0]] {
        host.lift(halt.halt, "alice", "there were too many").expect("it is lifted");
    }
    assert_eq!(host.halts().len(), IN_FORCE_MAX - 1);
    halt("late".into()).expect("there is room again");
    within(host.shutdown()).await;

    // More files than are read, whoever has put them there: everything is halted.
    let latched = halts(home.home()).join("latched");
    let text = fs::read_to_string(latched.join(format!("{}.json", made[1].halt))).expect("a halt's file");
    for n in 0..200 {
        let id = format!("halt-01ARZ3NDEKTSV4RRFFQ6{n:06}");
        fs::write(latched.join(format!("{id}.json")), text.replace(&made[1].halt.to_string(), &id)).expect("a file");
    }
    let crowded = self::host(&home);
    let error = crowded.load(Source::file(guests::path("kv"))).await.expect_err("it is halted");
    assert!(error.to_string().contains("more than 1000"), "{error}");
    within(crowded.shutdown()).await;
}

/// The agent's own loop stops too, and not only its tools.
#[tokio::test]
async fn an_agent_learns_that_it_is_halted() {
    let home = home::temporary();
    let (here, elsewhere) = (host(&home), host(&home));
    let (agent, other) = (here.agent("a"), here.agent("b"));
    let waiting = tokio::spawn(async move { agent.halted().await });
    let halt = elsewhere.halt(HaltScope::Agent("a".into()), "alice", "enough").expect("a halt");
    let why = within(waiting).await.expect("it is told");
    assert!(why.contains("enough") && why.contains("alice"), "{why}");
    assert!(within(here.agent("a").halted()).await.contains("enough"));
    let not_halted = tokio::time::timeout(Duration::ZERO, other.halted()).await;
    assert!(not_halted.is_err(), "{not_halted:?}");
    elsewhere.lift(halt.halt, "alice", "go on").expect("it is lifted");
}

/// Promise 12: nothing is lifted while something that it covers has not come to rest: here a host function that blocks its
/// thread. What it does not cover can be lifted.
#[tokio::test]
async fn a_halt_is_not_lifted_while_something_is_stopping() {
    let (let_go, blocked) = mpsc::channel::<()>();
    let (blocked, entered) = (Mutex::new(blocked), Counter::new());
    let count = entered.clone();
    let host = grant(small(), move |_| {
        count.add();
        let _ = blocked.lock().expect("one waits").recv();
        Box::pin(async { Ok(()) })
    });
    let host = host.build().expect("a host");
    let blocker = hostile(&host, Hostile { call: WAIT, ..Hostile::default() }).await;
    let call = start(&host, "a", &blocker);
    entered.reached(1).await;
    let other = host.halt(HaltScope::Agent("b".into()), "alice", "").expect("a halt of another agent");
    let halt = host.halt(HaltScope::Agent("a".into()), "alice", "").expect("a halt");
    match host.lift(halt.halt, "alice", "too early") {
        Err(HaltError::StillInForce { halt: told, why }) => {
            assert!(told == halt.halt && why.contains("still stopping"), "{why}");
        }
        lifted => panic!("{lifted:?}"),
    }
    assert_eq!(host.halts().len(), 2, "it is in force all the same");
    host.lift(other.halt, "alice", "it does not cover what is stopping").expect("it is lifted");
    let_go.send(()).expect("it waits");
    halted(&*within(call.outcome()).await);
    host.lift(halt.halt, "alice", "all is quiet").expect("it is lifted");
}
