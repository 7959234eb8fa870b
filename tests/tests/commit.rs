//! Promises 8, 13 and 14: what a call wrote is there completely or not at all, the answer says which, and so does the log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use estop::log::Entry;
use estop::store::memory::Memory;
use estop::store::{Commit, Key, Listing, Space, Store, StoreError, Verdict, Versioned};
use estop::{CallLimits, Cause, Component, End, Host, HostId, Outcome, Size, StateLimits};
use estop_tests::{call, completed, end_entry, load, log, small, within};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

async fn kv_host() -> (Host, Component) {
    let host = small().build().expect("a host");
    let kv = load(&host, "kv").await;
    (host, kv)
}

async fn get(host: &Host, kv: &Component, key: &str) -> Value {
    completed(&call(host, kv, "get", json!({ "key": key })).await)["value"].clone()
}

fn commits(log: &[Value], outcome: &Outcome) -> Vec<Value> {
    let id = outcome.call.to_string();
    log.iter().filter(|entry| entry["kind"] == "commit" && entry["call"] == id).cloned().collect()
}

/// Promises 8 and 14.
#[tokio::test]
async fn a_success_commits_everything_and_its_entry() {
    let (host, kv) = kv_host().await;
    let outcome = call(&host, &kv, "write_many", json!({ "count": 25, "bytes": 3 })).await;
    completed(&outcome);
    assert_eq!((outcome.commits.points, outcome.commits.writes), (1, 25));
    assert_eq!(outcome.discarded, Size::default());
    let listing = call(&host, &kv, "list", json!({})).await;
    assert_eq!(completed(&listing)["keys"].as_array().map(Vec::len), Some(25));
    assert_eq!(listing.commits.points, 1, "a commit that only validates is a commit");

    let log = log(&host).await;
    let entries = commits(&log, &outcome);
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0]["writes"], outcome.commits.writes);
    assert_eq!(entries[0]["bytes"], outcome.commits.bytes);
    let end = end_entry(&log, &outcome);
    assert_eq!(end["status"], "completed");
    assert_eq!(end["commits"], json!({ "points": 1, "writes": 25, "bytes": outcome.commits.bytes }));
}

/// Promise 8: failure, invalid input and panic discard what was not committed, and only that.
#[tokio::test]
async fn a_failure_keeps_its_commit_points_and_discards_the_rest() {
    let (host, kv) = kv_host().await;
    let failed = call(&host, &kv, "commit_then_fail", json!({ "key": "a", "value": 1 })).await;
    assert!(matches!(&failed.end, End::Failed(failure) if failure.code == "as-asked"), "{:?}", failed.end);
    assert_eq!((failed.commits.points, failed.commits.writes, failed.discarded.writes), (1, 1, 1));
    assert_eq!(get(&host, &kv, "a").await, 1);

    let panicked = call(&host, &kv, "write_then_panic", json!({ "key": "b", "value": 1 })).await;
    assert!(matches!(&panicked.end, End::Trapped(why) if why.contains("as asked")), "{:?}", panicked.end);
    assert_eq!((panicked.commits.points, panicked.discarded.writes), (0, 1));
    assert_eq!(get(&host, &kv, "b").await, Value::Null);

    let twice = call(&host, &kv, "commit_twice", json!({ "key": "c", "value": 1 })).await;
    completed(&twice);
    assert_eq!((twice.commits.points, twice.commits.writes), (2, 2));
    assert_eq!(get(&host, &kv, "c").await, 2);
}

/// Promise 8 and "Shows" 3: after a stop no uncommitted key is there, and the entry says how much was discarded.
#[tokio::test]
async fn a_stop_discards_what_was_written_and_says_how_much() {
    let host = small().build().expect("a host");
    let runaway = load(&host, "runaway").await;
    let input = json!({ "keys": 7, "value_bytes": 100 });
    let call_ = host.agent("default").call(&runaway, "write_then_spin", input).start();
    within(call_.progress().wait_for(Option::is_some)).await.expect("it says that it has written");
    let _ = call_.interrupt(Cause::Operator, "alice");
    let outcome = within(call_.outcome()).await;
    let stopped = outcome.end.stopped().expect("it was stopped");
    assert_eq!((stopped.cause, stopped.actor.as_str()), (Cause::Operator, "alice"));
    assert_eq!(outcome.discarded.writes, 7);
    assert!(outcome.discarded.bytes >= 700, "{:?}", outcome.discarded);
    assert_eq!(outcome.commits.points, 0);

    let log = log(&host).await;
    let end = end_entry(&log, &outcome);
    assert_eq!(end["discarded"], json!({ "writes": 7, "bytes": outcome.discarded.bytes }));
    assert_eq!((&end["cause"], &end["actor"]), (&json!("operator"), &json!("alice")));
    assert_eq!(commits(&log, &outcome).len(), 0);
}

/// Promise 8: a stop after a commit point leaves exactly that.
#[tokio::test]
async fn a_stop_keeps_the_commit_points_before_it() {
    let (host, kv) = kv_host().await;
    let call = host.agent("default").call(&kv, "commit_then_spin", json!({ "key": "a", "value": 5 })).start();
    within(call.progress().wait_for(Option::is_some)).await.expect("it says that it has committed");
    let _ = call.interrupt(Cause::Cancelled, "client");
    let outcome = within(call.outcome()).await;
    assert!(outcome.end.stopped().is_some(), "{:?}", outcome.end);
    assert_eq!((outcome.commits.points, outcome.commits.writes, outcome.discarded.writes), (1, 1, 1));
    assert_eq!(get(&host, &kv, "a").await, 5);
    assert_eq!(commits(&log(&host).await, &outcome).len(), 1);
}

/// Promise 8: what was read has changed meanwhile; nothing is applied.
#[tokio::test]
async fn a_changed_read_is_a_conflict() {
    let (host, kv) = kv_host().await;
    let input = json!({ "key": "n", "wait_ms": 50 });
    let slow = host.agent("default").call(&kv, "read_then_wait", input).start();
    within(slow.progress().wait_for(Option::is_some)).await.expect("it says that it has read");
    completed(&call(&host, &kv, "set", json!({ "key": "n", "value": 10 })).await);
    let outcome = within(slow.outcome()).await;
    assert!(matches!(&outcome.end, End::Conflict(what) if what.contains("`n`")), "{:?}", outcome.end);
    assert_eq!((outcome.commits.points, outcome.discarded.writes), (0, 1));
    assert_eq!(get(&host, &kv, "n").await, 10);
    assert_eq!(end_entry(&log(&host).await, &outcome)["status"], "conflict");
}

/// Promise 8: concurrent increments whose conflicts are tried again by the caller add up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflicting_increments_add_up() {
    let (host, kv) = kv_host().await;
    let adders = ["add", "increment", "add", "increment"].map(|tool| {
        let (host, kv) = (host.clone(), kv.clone());
        tokio::spawn(async move {
            for _ in 0..50 {
                loop {
                    let outcome = call(&host, &kv, tool, json!({ "key": "n", "delta": 1 })).await;
                    match &outcome.end {
                        End::Completed(_) => break,
                        End::Conflict(_) => {}
                        end => panic!("{end:?}"),
                    }
                }
            }
        })
    });
    for adder in adders {
        within(adder).await.expect("an adder ends");
    }
    assert_eq!(get(&host, &kv, "n").await, 200);
}

/// A compare-and-swap inside a transaction notices what the transaction itself did.
#[tokio::test]
async fn a_swap_needs_what_it_has_seen() {
    let (host, kv) = kv_host().await;
    let swap = json!({ "key": "n", "expected": 1, "value": 2 });
    assert_eq!(completed(&call(&host, &kv, "swap", swap.clone()).await)["done"], false);
    completed(&call(&host, &kv, "set", json!({ "key": "n", "value": 1 })).await);
    assert_eq!(completed(&call(&host, &kv, "swap", swap).await)["done"], true);
    assert_eq!(get(&host, &kv, "n").await, 2);
    let late = call(&host, &kv, "swap_late", json!({ "key": "n", "value": 3 })).await;
    assert_eq!(completed(&late)["done"], false);
}

/// State belongs to an agent with a component.
#[tokio::test]
async fn agents_do_not_see_each_other() {
    let (host, kv) = kv_host().await;
    completed(&call(&host, &kv, "set", json!({ "key": "n", "value": 1 })).await);
    let other = host.agent("other").call(&kv, "get", json!({ "key": "n" })).start();
    assert_eq!(completed(&within(other.outcome()).await)["value"], Value::Null);
    let source = estop::Source::file(estop_tests::guests::path("kv")).named("another name");
    let renamed = host.load(source).await.expect("it loads under another name");
    assert_eq!(get(&host, &renamed, "n").await, Value::Null);
}

/// A quota refuses the whole commit.
#[tokio::test]
async fn a_commit_over_the_quota_is_refused_whole() {
    let state = StateLimits { space_bytes_max: 100, ..StateLimits::default() };
    let host = small().call_limits(CallLimits { state, ..CallLimits::default() }).build().expect("a host");
    let kv = load(&host, "kv").await;
    let outcome = call(&host, &kv, "write_many", json!({ "count": 10, "bytes": 30 })).await;
    assert!(matches!(&outcome.end, End::Failed(failure) if failure.code == "quota"), "{:?}", outcome.end);
    assert_eq!((outcome.commits.points, outcome.discarded.writes), (0, 10));
    assert_eq!(completed(&call(&host, &kv, "list", json!({})).await)["keys"], json!([]));
}

/// A store that fails a number of times, before or after it has decided.
struct Faulty {
    inner: Memory,
    failures: AtomicU64,
    after_deciding: bool,
    /// Cannot say what became of it.
    unknown: bool,
    /// Fails what has no commits too.
    entries_too: bool,
    /// How the host took its leave.
    complete: OnceLock<bool>,
}

impl Faulty {
    fn new(after_deciding: bool, unknown: bool) -> Arc<Self> {
        Arc::new(Self { after_deciding, unknown, ..Self::unshared() })
    }

    fn unshared() -> Self {
        Self {
            inner: Memory::new(),
            failures: AtomicU64::new(0),
            after_deciding: false,
            unknown: false,
            entries_too: false,
            complete: OnceLock::new(),
        }
    }
}

impl Store for Faulty {
    fn get<'a>(&'a self, space: &'a Space, key: &'a Key) -> BoxFuture<'a, Result<Versioned, StoreError>> {
        self.inner.get(space, key)
    }

    fn list<'a>(
        &'a self,
        space: &'a Space,
        bucket: &'a Arc<str>,
        keys_max: usize,
    ) -> BoxFuture<'a, Result<Listing, StoreError>> {
        self.inner.list(space, bucket, keys_max)
    }

    fn write(&self, commits: &mut [Commit<'_>], entries: &[Entry]) -> Result<Vec<Verdict>, StoreError> {
        let fail = (self.entries_too || !commits.is_empty())
            && self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if !fail {
            return self.inner.write(commits, entries);
        }
        if self.after_deciding {
            commits.iter().for_each(|commit| assert!((commit.decide)()));
        }
        let why = "the disk is gone".to_owned();
        Err(if self.unknown { StoreError::Unknown(why) } else { StoreError::Io(why) })
    }

    fn entries(&self, from: u64, count_max: usize) -> Result<Vec<Entry>, StoreError> {
        self.inner.entries(from, count_max)
    }

    fn detach(&self, _: HostId, complete: bool) {
        self.complete.set(complete).expect("it is told once");
    }
}

/// Promise 8: a commit whose end nobody knows is told as unknown, neither as committed nor as discarded. One that is
/// known to have failed is discarded, whether or not it had been decided.
#[tokio::test]
async fn a_failed_commit_is_unknown_if_nobody_knows_and_refused_otherwise() {
    for (after_deciding, unknown) in [(true, true), (true, false), (false, false)] {
        let store = Faulty::new(after_deciding, unknown);
        let host = small().store_arc(store.clone()).build().expect("a host");
        let kv = load(&host, "kv").await;
        store.failures.store(1, Ordering::SeqCst);
        let outcome = call(&host, &kv, "set", json!({ "key": "a", "value": 1 })).await;
        let End::Failed(failure) = &outcome.end else { panic!("{:?}", outcome.end) };
        assert!(failure.message.contains("the disk is gone"), "{failure}");
        assert_eq!(failure.code, if unknown { "commit-unknown" } else { "store" });
        assert_eq!(outcome.commits.unknown, unknown);
        assert_eq!(outcome.discarded.writes, u64::from(!unknown));
        // The log has caught up, so calls are let in again.
        let _ = log(&host).await;
        assert_eq!(get(&host, &kv, "a").await, Value::Null);
    }
}

/// Promise 8: the same at a commit point inside the tool; it cannot go on as if nothing had happened.
#[tokio::test]
async fn a_commit_point_whose_end_is_unknown_ends_the_call() {
    let store = Faulty::new(true, true);
    let host = small().store_arc(store.clone()).build().expect("a host");
    let kv = load(&host, "kv").await;
    store.failures.store(1, Ordering::SeqCst);
    let outcome = call(&host, &kv, "commit_twice", json!({ "key": "a", "value": 1 })).await;
    assert!(matches!(&outcome.end, End::Failed(failure) if failure.code == "commit-unknown"), "{:?}", outcome.end);
    assert!(outcome.commits.unknown);
    assert_eq!(outcome.commits.points, 0);
}

/// Promise 13: while the log cannot be written, new calls are refused, and stops work as before.
#[tokio::test]
async fn a_failing_log_refuses_calls_and_delays_no_stop() {
    let store = Arc::new(Faulty { entries_too: true, ..Faulty::unshared() });
    let host = small().store_arc(store.clone()).build().expect("a host");
    let (kv, runaway) = (load(&host, "kv").await, load(&host, "runaway").await);
    let input = json!({ "keys": 1, "value_bytes": 1 });
    let spinning = host.agent("default").call(&runaway, "write_then_spin", input).start();
    within(spinning.progress().wait_for(Option::is_some)).await.expect("it spins");
    // Its start is entered, so that the next thing there is to write is the commit below.
    let _ = log(&host).await;

    store.failures.store(u64::MAX, Ordering::SeqCst);
    let failed = call(&host, &kv, "set", json!({ "key": "a", "value": 1 })).await;
    assert!(matches!(&failed.end, End::Failed(failure) if failure.code == "store"), "{:?}", failed.end);
    let refused = call(&host, &kv, "get", json!({ "key": "a" })).await;
    assert!(matches!(&refused.end, End::Refused(why) if why.contains("log cannot be written")), "{:?}", refused.end);
    let _ = spinning.interrupt(Cause::Operator, "alice");
    assert!(within(spinning.outcome()).await.end.stopped().is_some());

    // Nothing was lost: the entries are written once it works again, and calls are let in.
    store.failures.store(0, Ordering::SeqCst);
    let log = log(&host).await;
    assert_eq!(end_entry(&log, &*within(spinning.outcome()).await)["cause"], "operator");
    assert_eq!(end_entry(&log, &refused)["kind"], "refusal");
    assert_eq!(get(&host, &kv, "a").await, Value::Null);
}

/// Promise 13: a host that could not enter everything says so, and is not taken for one that closed.
#[tokio::test]
async fn a_host_that_cannot_complete_its_log_says_so() {
    for failures in [0, u64::MAX] {
        let store = Arc::new(Faulty { entries_too: true, ..Faulty::unshared() });
        let host = small().store_arc(store.clone()).build().expect("a host");
        let kv = load(&host, "kv").await;
        completed(&call(&host, &kv, "set", json!({ "key": "a", "value": 1 })).await);
        let _ = log(&host).await;
        store.failures.store(failures, Ordering::SeqCst);
        let _ = call(&host, &kv, "get", json!({ "key": "a" })).await;
        within(host.shutdown()).await;
        assert_eq!(store.complete.get(), Some(&(failures == 0)));
    }
}

/// Promise 8: a commit point that was refused loses the transaction, whatever the guest makes of it.
#[tokio::test]
async fn after_a_refused_commit_point_nothing_more_is_committed() {
    let state = StateLimits { space_bytes_max: 128, ..StateLimits::default() };
    let host = small().call_limits(CallLimits { state, ..CallLimits::default() }).build().expect("a host");
    let kv = load(&host, "kv").await;
    completed(&call(&host, &kv, "set", json!({ "key": "a", "value": 1 })).await);
    // Its first commit point is over the quota.
    let outcome = call(&host, &kv, "commit_twice", json!({ "key": "another", "value": 5 })).await;
    assert!(matches!(&outcome.end, End::Failed(failure) if failure.code == "quota"), "{:?}", outcome.end);
    assert_eq!(outcome.commits.points, 0);
    assert_eq!(get(&host, &kv, "another").await, Value::Null);
}
