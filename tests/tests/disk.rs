//! Promises 2, 3 and 13 while the disk does not do what it should: it is full, fails, is slow, cannot be written at all, or
//! another process sits on the database. Whatever spins is halted as fast as ever, new calls are told why they may not
//! start, and a stop that the log cannot take stands beside it until the log can.

mod faulty;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use estop::store::sqlite::Sqlite;
use estop::{Call, Cause, Component, End, Failure, Home, Host, Source};
use estop_faults::{Fault, On, Plan};
use estop_tests::home::{log, temporary};
use estop_tests::ledger::{Left, Told, check, check_stops};
use estop_tests::stage::{stopped, until};
use estop_tests::{completed, end_entry, guests, within};
use rusqlite::Connection;
use rustix::process::{Signal, geteuid};
use serde_json::{Value, json};

use self::faulty::{ACTOR, Bench, Running, beside, child, child_home, load, sound, text, tiny, works_again};

/// What an interrupt may take at most, even on a loaded machine. It takes microseconds.
const PROMPT: Duration = Duration::from_millis(100);
/// How much longer a spinning call may take to halt than it does on a disk that works.
const LONGER_MAX: Duration = Duration::from_millis(500);
/// Until the log works again after the disk does, and until a commit gives up waiting for another process.
const SOON: Duration = Duration::from_secs(10);
/// A user that owns nothing.
const NOBODY: u32 = 65534;

/// A call that has written and never ends.
async fn spin(host: &Host, runaway: &Component) -> Call {
    let input = json!({ "keys": 3, "value_bytes": 10 });
    let call = host.agent("default").call(runaway, "write_then_spin", input).start();
    within(call.progress().wait_for(Option::is_some)).await.expect("it says that it spins");
    call
}

/// Stops a spinning call and answers how long it took to halt. Neither that nor the interrupt itself waits for a disk.
async fn halt(call: &Call) -> Duration {
    let began = Instant::now();
    let interruption = call.interrupt(Cause::Operator, ACTOR);
    let took = began.elapsed();
    assert_eq!(interruption.len(), 1);
    assert!(took < PROMPT, "the interrupt took {took:?}");
    let outcome = within(call.outcome()).await;
    let (stopped, released) = (stopped(&outcome), began.elapsed());
    assert_eq!((stopped.cause, stopped.actor.as_str()), (Cause::Operator, ACTOR));
    assert_eq!((outcome.commits.points, outcome.discarded.writes), (0, 3));
    assert!(released < Duration::from_secs(1), "it was released after {released:?}");
    stopped.halted
}

/// Begins to write.
fn write(host: &Host, kv: &Component) -> Call {
    host.agent("default").call(kv, "set", json!({ "key": "k", "value": 1 })).start()
}

/// What was told of the write: it was done, or the reason.
async fn written(bench: &mut Bench, call: &Call, reason: &str) {
    let outcome = within(call.outcome()).await;
    match &outcome.end {
        End::Completed(_) => {}
        End::Failed(Failure { code, message, .. }) if code == "store" || code == "commit-unknown" => {
            assert!(message.contains(reason), "{message}");
        }
        end => panic!("{end:?}"),
    }
    bench.told.push(Told { tool: "set", input: json!({ "key": "k", "value": 1 }), outcome });
}

/// Until a call is refused for this reason, by what it is told. It would do nothing if it were let in.
async fn refused(host: &Host, kv: &Component, reason: &str) -> String {
    within(async {
        loop {
            let outcome = estop_tests::call(host, kv, "no-such-tool", Value::Null).await;
            match &outcome.end {
                End::Refused(why) if why.contains(reason) => return why.clone(),
                End::Refused(_) => {}
                end => panic!("{end:?}"),
            }
        }
    })
    .await
}

/// Writes until a call is let in.
async fn let_in(bench: &mut Bench, host: &Host, kv: &Component) {
    within(async {
        loop {
            bench.call(host, kv, "set", json!({ "key": "k", "value": 2 })).await;
            match &bench.told.last().expect("it was told").outcome.end {
                End::Completed(_) => return,
                End::Refused(_) => {}
                end => panic!("{end:?}"),
            }
        }
    })
    .await;
}

fn of<'a>(log: &'a [Value], kind: &str) -> Vec<&'a Value> {
    log.iter().filter(|entry| entry["kind"] == kind).collect()
}

/// The whole of it, for one way in which the disk does not do what it should. `fails`: the log fails, and is not just slow.
async fn a_bad_disk(name: &str, on: On, fault: Fault, reason: &str, fails: bool) {
    let mut bench = Bench::new(name);
    let host = bench.host().expect("a host");
    let (runaway, kv) = (load(&host, "runaway").await, load(&host, "kv").await);
    let calm = halt(&spin(&host, &runaway).await).await;

    let spinning = spin(&host, &runaway).await;
    let id = spinning.id().to_string();
    works_again(&host).await;
    bench.faults.arm(Plan { at: 1, on, fault, lasting: true });
    let writing = write(&host, &kv);
    let why = refused(&host, &kv, reason).await;
    let halted = halt(&spinning).await;
    println!("{name}: halted after {halted:.1?}, and after {calm:.1?} on a disk that works; refused: {why}");
    assert!(halted < calm + LONGER_MAX, "{halted:?}, and {calm:?} on a disk that works");

    let file = bench.home.home().path().join("alternate").join(format!("{}.jsonl", host.id()));
    until(|| fs::read_to_string(&file).unwrap_or_default().contains(&id)).await;
    if fails {
        let lines = fs::read_to_string(&file).expect("it can be read");
        let stop: Value = serde_json::from_str(lines.lines().next().unwrap_or_default()).expect("an entry");
        assert_eq!((&stop["kind"], &stop["actor"]), (&json!("interrupt"), &json!(ACTOR)), "{stop}");
        // Asking again is entered too; once that stands there, the first has been counted.
        let _ = spinning.interrupt(Cause::Operator, "bob");
        until(|| beside(bench.home.home()).contains("bob")).await;
        assert!(host.entries(0, 1).await.is_err(), "the log works");
        refused(&host, &kv, reason).await;
    }
    written(&mut bench, &writing, reason).await;

    bench.faults.disarm();
    let began = Instant::now();
    works_again(&host).await;
    assert!(began.elapsed() < SOON, "the log has worked again after {:?}", began.elapsed());
    let_in(&mut bench, &host, &kv).await;
    until(|| beside(bench.home.home()).is_empty()).await;
    let log = estop_tests::log(&host).await;
    let end = end_entry(&log, &*within(spinning.outcome()).await);
    assert_eq!((&end["status"], &end["actor"]), (&json!("stopped"), &json!(ACTOR)));
    let interrupts = of(&log, "interrupt");
    assert_eq!(interrupts.iter().filter(|entry| entry["interrupt"] == end["interrupt"]).count(), 1);
    let gaps = of(&log, "gap");
    assert_eq!(!gaps.is_empty(), fails, "{gaps:?}");
    let told = gaps.iter().any(|gap| gap["why"].as_str().is_some_and(|why| why.contains(reason)));
    assert!(told || !fails, "{gaps:?}");
    assert!(gaps.iter().any(|gap| gap["alternate"].as_u64() >= Some(1)) || !fails, "{gaps:?}");
    within(host.shutdown()).await;
    drop((host, spinning, writing, runaway, kv));
    bench.hold_in_order();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_keeps_calls_out_and_delays_no_stop() {
    a_bad_disk("full", On::Write, Fault::Full, "estop.db` is full", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_disk_keeps_calls_out_and_delays_no_stop() {
    a_bad_disk("failing", On::Any, Fault::Io, "estop.db`: disk I/O error", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_syncs_keep_calls_out_and_delay_no_stop() {
    a_bad_disk("syncs", On::Sync, Fault::SyncDropped, "estop.db`: disk I/O error", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_disk_keeps_calls_out_and_delays_no_stop() {
    let slow = Fault::Delay(Duration::from_secs(1));
    a_bad_disk("slow", On::Sync, slow, "the log has been waiting for the disk", false).await;
}

/// Promise 13: a host that never could write again has left its stop beside the log; the next one enters it.
#[tokio::test]
async fn what_stands_beside_the_log_of_a_dead_host_is_entered_by_the_next() {
    let mut bench = Bench::new("dead");
    let host = bench.host().expect("a host");
    let (runaway, kv) = (load(&host, "runaway").await, load(&host, "kv").await);
    let spinning = spin(&host, &runaway).await;
    works_again(&host).await;
    bench.faults.arm(Plan { at: 1, on: On::Any, fault: Fault::Io, lasting: true });
    written(&mut bench, &write(&host, &kv), "disk I/O error").await;
    halt(&spinning).await;
    let (dead, id) = (host.id().to_string(), spinning.id().to_string());
    until(|| beside(bench.home.home()).contains(&id)).await;
    within(host.shutdown()).await;
    drop((host, spinning, runaway, kv));
    let home = bench.home.home();
    assert!(beside(home).contains(&id), "the stop is nowhere");

    let next = tiny(bench.home.store()).build().expect("the home can be used again");
    let entries = estop_tests::log(&next).await;
    let taken = of(&entries, "alternate");
    assert_eq!(taken.len(), 1, "{taken:?}");
    assert_eq!((&taken[0]["died"], &taken[0]["entry"]["host"]), (&json!(dead), &json!(dead)));
    assert_eq!(taken[0]["entry"]["scope"]["call"], id);
    assert_eq!(of(&entries, "died").len(), 1);
    assert_eq!(of(&entries, "call-died").iter().filter(|entry| entry["call"] == id).count(), 1);
    assert_eq!(beside(home), "");
    within(next.shutdown()).await;
    drop(next);
    let told = sound(home).and_then(|()| check(home, &bench.told, Left::Cut));
    told.and_then(|()| check_stops(&log(home), &bench.told)).unwrap_or_else(|why| panic!("{why}"));
}

/// Promise 13: with too little room nothing is begun, and saying so takes no room.
#[tokio::test]
async fn a_disk_that_is_nearly_full_keeps_calls_out_and_counts_them() {
    let begin = async || {
        let home = temporary();
        let store = Sqlite::options(home.home()).free_bytes_min(u64::MAX / 2).open().expect("a store");
        let host = tiny(Arc::new(store)).build().expect("a host");
        let kv = host.load(Source::file(guests::path("kv"))).await.ok()?;
        Some((home, host, kv))
    };
    let mut begun = None;
    // The first write is followed by the first look at the disk. On a busy machine that is before it is loaded.
    for _ in 0..50 {
        begun = begin().await;
        if begun.is_some() {
            break;
        }
    }
    let (home, host, kv) = begun.expect("it is loaded before the first look at the disk");
    works_again(&host).await;
    for _ in 0..50 {
        let outcome = estop_tests::call(&host, &kv, "set", json!({ "key": "k", "value": 1 })).await;
        let End::Refused(why) = &outcome.end else { panic!("{:?}", outcome.end) };
        let path = home.home().path().display().to_string();
        assert!(why.contains("MiB are left on the disk") && why.contains(&path), "{why}");
    }
    let log = estop_tests::log(&host).await;
    assert_eq!(of(&log, "refusal"), Vec::<&Value>::new());
    let counted = of(&log, "refusals");
    assert_eq!(counted.iter().filter_map(|entry| entry["count"].as_u64()).sum::<u64>(), 50, "{counted:?}");
    assert!(counted.iter().all(|entry| entry["why"].as_str().is_some_and(|why| why.contains("MiB"))), "{counted:?}");
}

#[test]
#[ignore = "a child of another test"]
fn child_that_uses_a_home() {
    let Some(path) = child_home() else { return };
    let used = Home::open(path).map_err(text).and_then(|home| Sqlite::open(&home).map_err(text));
    let used = used.and_then(|store| Host::builder().store(store).build().map_err(text));
    println!("\nsaid: {}", used.err().unwrap_or_default());
}

/// Gives away a file, or a folder with all that is in it.
fn give(path: &Path, owner: u32, folders: u32, files: u32) {
    if path.is_dir() {
        let entries = fs::read_dir(path).expect("a folder");
        entries.for_each(|entry| give(&entry.expect("an entry").path(), owner, folders, files));
    }
    let mode = Permissions::from_mode(if path.is_dir() { folders } else { files });
    fs::set_permissions(path, mode).expect("permissions are changed");
    chown(path, Some(owner), None).expect("it is given away");
}

/// A home that cannot be written is refused before anything is begun, in words that say which one it is.
#[tokio::test]
async fn a_home_that_cannot_be_written_is_refused_by_its_path() {
    let mine = geteuid().as_raw();
    let owner = if mine == 0 { NOBODY } else { mine };
    for (case, is_used, folders, files) in
        [("unused", false, 0o700, 0o600), ("used", true, 0o700, 0o600), ("read-only", true, 0o500, 0o400)]
    {
        let home = temporary();
        fs::set_permissions(home.folder(), Permissions::from_mode(0o711)).expect("others may enter");
        let path = home.home().path().to_owned();
        if is_used {
            within(tiny(home.store()).build().expect("a host").shutdown()).await;
        } else {
            fs::read_dir(&path).expect("a folder").for_each(|folder| {
                fs::remove_dir_all(folder.expect("an entry").path()).expect("it can be removed");
            });
        }
        give(&path, owner, folders, files);
        fs::set_permissions(&path, Permissions::from_mode(0o500)).expect("permissions are changed");
        let output = child("child_that_uses_a_home", &path).uid(owner).output().expect("it runs");
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = output.lines().find_map(|line| line.strip_prefix("said: ")).unwrap_or_else(|| panic!("{output}"));
        println!("{case}: {said}");
        assert!(said.contains(&path.display().to_string()), "{case}: {said}");
        assert!(["Permission denied", "unable to open", "readonly"].iter().any(|why| said.contains(why)), "{said}");
        fs::set_permissions(&path, Permissions::from_mode(0o700)).expect("it can be removed");
    }
}

#[test]
#[ignore = "a child of another test"]
fn child_in_the_middle_of_a_transaction() {
    let Some(path) = child_home() else { return };
    let database = Connection::open(path.join("estop.db")).expect("a database");
    database.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes");
    println!("\nheld");
    // Until the parent goes away, or longer.
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// A process that was frozen in the middle of a database transaction is named within a bound, and holds up no stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_process_is_named_and_delays_no_stop() {
    let mut bench = Bench::new("frozen");
    let host = bench.host().expect("a host");
    let (runaway, kv) = (load(&host, "runaway").await, load(&host, "kv").await);
    let spinning = spin(&host, &runaway).await;
    works_again(&host).await;
    let frozen = Running::start(child("child_in_the_middle_of_a_transaction", bench.home.home().path()), "held");
    frozen.signal(Signal::STOP);
    let pid = frozen.pid();
    let stat = move || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    until(|| stat().contains(") T ")).await;

    let (began, writing) = (Instant::now(), write(&host, &kv));
    let halted = halt(&spinning).await;
    refused(&host, &kv, "waiting for the disk, or for another process").await;
    let outcome = within(writing.outcome()).await;
    let (took, name) = (began.elapsed(), format!("process {pid} "));
    let End::Failed(failure) = &outcome.end else { panic!("{:?}", outcome.end) };
    println!("frozen: halted after {halted:.1?}; told after {took:.1?}: {failure}");
    assert!(took < SOON, "it was told after {took:?}");
    assert_eq!((failure.code.as_str(), failure.retryable), ("store", true));
    assert!(failure.message.contains(&name) && failure.message.contains("which is stopped"), "{failure}");
    refused(&host, &kv, &name).await;
    let another = Sqlite::open(bench.home.home()).map(drop).expect_err("nobody else can write either");
    assert!(another.to_string().contains(&name), "{another}");
    until(|| beside(bench.home.home()).contains(&spinning.id().to_string())).await;

    frozen.signal(Signal::CONT);
    drop(frozen);
    works_again(&host).await;
    let_in(&mut bench, &host, &kv).await;
    let log = estop_tests::log(&host).await;
    let gaps = of(&log, "gap");
    assert!(gaps.iter().any(|gap| gap["why"].as_str().is_some_and(|why| why.contains(&name))), "{gaps:?}");
    assert_eq!(end_entry(&log, &*within(spinning.outcome()).await)["actor"], ACTOR);
    let value = estop_tests::call(&host, &kv, "get", json!({ "key": "k" })).await;
    assert_eq!(completed(&value)["value"], 2);
    until(|| beside(bench.home.home()).is_empty()).await;
}
