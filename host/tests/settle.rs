//! Promises 8, 13 and 14 for a tool of real use, as others see it: wherever `settle` of the tool `ledger` is stopped, the
//! balances are those of its last commit point, and its answer, the store and the log say the same.

mod ledger;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use estop::{Call, CallBuilder, Cause, Component, End, Host, Outcome};
use estop_tests::home::{Temporary, temporary};
use estop_tests::{CAUSES, PATIENCE, completed, load, within};
use serde_json::{Value, json};

use ledger::book::Book;
use ledger::command::printed;
use ledger::trail::Trail;
use ledger::{Accounts, Batch, Chance, spin, writes};

/// "Stopped at 200 random moments".
const STOPS: usize = 200;
/// In one home; then there is a new one, so that what the command prints stays short.
const STOPS_IN_A_HOME: usize = 25;
const TRANSFERS: (usize, usize) = (50, 120);
const COMMIT_EVERY_MAX: usize = 5;
/// With a commit for each: two accounts, two histories, the journal, and the mark of the batch.
const WRITES_OF_A_TRANSFER: u64 = 6;
/// Batches in which two calls may miss each other.
const ROUNDS_MAX: usize = 20;

/// What a transfer takes, measured.
struct Pace {
    elapsed: Duration,
    fuel: u64,
}

/// How a call is to be stopped.
enum Stop {
    /// Once it says that so many transfers are made, and then after a while.
    Asked(usize, Duration),
    Deadline(Duration),
    Fuel(u64),
}

impl Stop {
    /// At a random moment of a call that goes on after `done` transfers, with so many left.
    fn choose(cause: Cause, done: usize, left: usize, pace: &Pace, chance: &mut Chance) -> Self {
        let is_real = chance.below(3) > 0;
        match cause {
            Cause::Deadline if is_real => Stop::Deadline(chance.up_to(pace.elapsed * left as u32)),
            // Reading the input takes fuel too, also for what is made already.
            Cause::Fuel if is_real => Stop::Fuel(chance.below(pace.fuel * (done + left) as u64)),
            // Most of the time goes to commits, and most of the guest's instructions come soon after it has said something.
            _ => {
                let longest = if chance.below(2) > 0 { pace.elapsed * 4 } else { pace.elapsed / 10 };
                Stop::Asked(done + chance.between(0, left * 2 / 3), chance.up_to(longest))
            }
        }
    }

    fn actor(&self) -> &'static str {
        if matches!(self, Stop::Asked(..)) { "someone" } else { "host" }
    }
}

/// What other processes see.
struct Seen {
    book: Book,
    trail: Trail,
}

/// A home with accounts, and a host on it.
struct Desk {
    home: Temporary,
    host: Host,
    ledger: Component,
    accounts: Accounts,
}

impl Desk {
    /// Compiled components come from `cache`, so that a test with many homes compiles once.
    async fn open(cache: &Temporary) -> Self {
        let home = temporary();
        let (host, ledger) = host(&home, cache).await;
        let desk = Self { home, host, ledger, accounts: Accounts::new("bookkeeper", 5) };
        for account in desk.accounts.openings() {
            completed(&within(desk.call("open", account).start().outcome()).await);
        }
        desk
    }

    fn call(&self, tool: &str, input: Value) -> CallBuilder {
        self.host.agent(&self.accounts.agent).call(&self.ledger, tool, input)
    }

    /// Settles, and stops that if it gets as far as that. Also says which transfer was the last that it said was made.
    async fn settle(&self, input: Value, cause: Cause, stop: &Stop) -> (Arc<Outcome>, usize) {
        let call = self.call("settle", input);
        let call = match stop {
            Stop::Asked(..) => call,
            Stop::Deadline(deadline) => call.deadline(*deadline),
            Stop::Fuel(fuel) => call.fuel(*fuel),
        };
        let call = call.start();
        if let Stop::Asked(done, delay) = stop {
            reached(&call, *done as u64).await;
            spin(*delay);
            let _ = call.interrupt(cause, stop.actor());
        }
        let outcome = within(call.outcome()).await;
        let said = call.progress().borrow().as_ref().map_or(0, |said| said.done as usize);
        (outcome, said)
    }

    /// Settles a batch without a stop. What it takes tells where stops can land.
    async fn pace(&self, batch: &Batch) -> Pace {
        let outcome = within(self.call("settle", batch.input(2)).start().outcome()).await;
        assert_eq!(completed(&outcome), &batch.settled(0));
        Pace { elapsed: outcome.elapsed / batch.total() as u32, fuel: outcome.fuel / batch.total() as u64 }
    }

    /// What other processes see, now or as soon as this call's interrupt is in the log: whoever stops a call enters that
    /// afterwards, and the ticker is nobody one could wait for.
    async fn see(&self, outcome: &Outcome) -> Seen {
        let home = self.home.home();
        let begun = Instant::now();
        loop {
            self.host.entries(0, 0).await.expect("all that is recorded can be written");
            let trail = Trail::shown(&printed(home, &["log", "show", "--json"]));
            let interrupt = trail.end(&outcome.call.to_string())["interrupt"].as_str();
            if interrupt.is_none_or(|interrupt| !trail.interrupts(interrupt).is_empty()) {
                let book = Book::exported(&printed(home, &["state", "export", "--agent", &self.accounts.agent]));
                return Seen { book, trail };
            }
            assert!(begun.elapsed() < PATIENCE, "the interrupt is never entered");
        }
    }

    /// Checks what others see, while nothing runs.
    async fn check(&self, batches: &[Batch], outcome: &Outcome) -> Seen {
        let seen = self.see(outcome).await;
        seen.book.audit(&self.accounts, &batches.iter().collect::<Vec<_>>());
        seen.trail.explains(&self.accounts.agent, &seen.book, u64::MAX);
        agree(outcome, &seen.trail);
        seen
    }

    /// Nothing is left open, and the log is as it was written.
    async fn close(self) {
        self.host.shutdown().await;
        Trail::shown(&printed(self.home.home(), &["log", "show", "--json"])).is_complete();
        printed(self.home.home(), &["log", "verify"]);
    }
}

async fn host(home: &Temporary, cache: &Temporary) -> (Host, Component) {
    let host = home.host().cache(cache.home()).build().expect("a host");
    let ledger = load(&host, "ledger").await;
    (host, ledger)
}

/// Waits until the call says that it is as far as that, or has ended.
async fn reached(call: &Call, done: u64) {
    let mut progress = call.progress();
    let says = progress.wait_for(|said| done == 0 || said.as_ref().is_some_and(|said| said.done >= done));
    tokio::select! {
        biased;
        _ = call.outcome() => {}
        said = within(says) => drop(said.expect("the call is there")),
    }
}

/// The answer, the entries of the commits, the entry of the end and that of the interrupt say the same.
fn agree(outcome: &Outcome, trail: &Trail) {
    let id = outcome.call.to_string();
    let (end, committed) = (trail.end(&id), trail.committed(&id));
    assert_eq!((&json!(outcome.commits), &end["commits"]), (&committed, &committed), "{id}");
    assert_eq!(end["discarded"], json!(outcome.discarded), "{id}");
    assert_eq!(outcome.discarded.writes == 0, outcome.discarded.bytes == 0, "{id}: {:?}", outcome.discarded);
    assert_eq!(end["status"], outcome.end.status(), "{id}");
    let stopped = outcome.end.stopped();
    assert_eq!(end["cause"], json!(stopped.map(|stopped| stopped.cause)), "{id}");
    assert_eq!(end["actor"], json!(stopped.map(|stopped| &stopped.actor)), "{id}");
    let Some(interrupt) = end["interrupt"].as_str() else {
        assert!(stopped.is_none(), "{end} names no interrupt");
        return;
    };
    let [interrupt] = trail.interrupts(interrupt) else { panic!("{interrupt} should have one entry") };
    assert_eq!((&interrupt["cause"], &interrupt["actor"]), (&end["cause"], &end["actor"]));
    assert_eq!((&interrupt["scope"], &interrupt["calls"][0][0]), (&json!({ "call": id }), &json!(id)));
}

/// Promises 8, 13 and 14: wherever and by whatever it is stopped, what another process finds is the last commit point, to
/// the cent, and answer, store and log agree. The same batch then goes on there, and ends as if it had never been stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settle_stopped_at_200_random_moments_leaves_its_last_commit_point() {
    let mut chance = Chance::new("settle");
    let cache = temporary();
    let mut stops: Vec<(Cause, Arc<Outcome>)> = Vec::new();
    while stops.len() < STOPS {
        let desk = Desk::open(&cache).await;
        stop_many(&desk, &mut stops, &mut chance).await;
        desk.close().await;
    }
    let by_cause = CAUSES.map(|cause| (cause.as_str(), stops.iter().filter(|(by, _)| *by == cause).count()));
    let after_commits = stops.iter().filter(|(_, outcome)| outcome.commits.points > 0).count();
    let with_discarded = stops.iter().filter(|(_, outcome)| outcome.discarded.writes > 0).count();
    println!(
        "{} stops, {after_commits} after a commit point, {with_discarded} with writes to discard: {by_cause:?}",
        stops.len()
    );
    assert!(by_cause.iter().all(|(_, count)| *count >= STOPS / CAUSES.len()), "{by_cause:?}");
    assert!(after_commits >= STOPS / 2 && with_discarded >= STOPS / 4, "these moments are not in the midst of things");
}

/// Stops calls until there are so many stops more, and then lets the last batch come to its end.
async fn stop_many(desk: &Desk, stops: &mut Vec<(Cause, Arc<Outcome>)>, chance: &mut Chance) {
    let mut batch = desk.accounts.batch("unstopped", TRANSFERS.0, chance);
    let pace = desk.pace(&batch).await;
    let (mut batches, mut done) = (vec![batch.clone()], batch.total());
    let enough = stops.len() + STOPS_IN_A_HOME;
    while stops.len() < enough || done < batch.total() {
        if done == batch.total() {
            batch = desk.accounts.batch(
                &format!("batch-{}", batches.len()),
                chance.between(TRANSFERS.0, TRANSFERS.1),
                chance,
            );
            batches.push(batch.clone());
            done = 0;
        }
        let (cause, commit_every) = (CAUSES[stops.len() % CAUSES.len()], chance.between(1, COMMIT_EVERY_MAX));
        let stop = match stops.len() < enough {
            true => Stop::choose(cause, done, batch.total() - done, &pace, chance),
            false => Stop::Deadline(PATIENCE),
        };
        let (outcome, said) = desk.settle(batch.input(commit_every), cause, &stop).await;
        let Seen { book, .. } = desk.check(&batches, &outcome).await;
        let (before, now) = (done, book.done(&batch));
        done = now;
        let points = (now - before).div_ceil(commit_every) as u64;
        assert_eq!(outcome.commits.points, points, "from {before} to {now}, {commit_every} at a time");
        match &outcome.end {
            End::Completed(output) => assert_eq!((now, &output.json), (batch.total(), &batch.settled(before))),
            End::Stopped(stopped) => {
                assert_eq!((stopped.cause, stopped.actor.as_str()), (cause, stop.actor()));
                assert!(now == batch.total() || (now - before).is_multiple_of(commit_every), "from {before} to {now}");
                let discarded = discarded(&batch, now, said, commit_every);
                assert!(discarded.contains(&outcome.discarded.writes), "{:?}, not {discarded:?}", outcome.discarded);
                stops.push((cause, outcome));
            }
            end => panic!("{end:?}"),
        }
    }
}

/// How many writes a stop may have discarded: those of the transfers after the last commit point that it said were made,
/// and at most those of the next one and the mark of the batch.
fn discarded(batch: &Batch, now: usize, said: usize, commit_every: usize) -> RangeInclusive<u64> {
    let (first, last) = (said.max(now), (said.max(now) + 1).min(now + commit_every).min(batch.total()));
    let most = if now == last { 0 } else { writes(&batch.orders[now..last]) + 1 };
    writes(&batch.orders[now..first]) as u64..=most as u64
}

/// Settles a batch until it is done, however often it conflicts.
async fn settle_to_the_end(desk: &Desk, host: &Host, ledger: &Component, batch: &Batch) -> Vec<Arc<Outcome>> {
    let mut outcomes = Vec::new();
    loop {
        let call = host.agent(&desk.accounts.agent).call(ledger, "settle", batch.input(1)).start();
        let outcome = within(call.outcome()).await;
        outcomes.push(Arc::clone(&outcome));
        match &outcome.end {
            End::Completed(output) => {
                assert_eq!(output.json["done"], batch.total());
                return outcomes;
            }
            End::Conflict(what) => assert!(what.ends_with("by someone else"), "{what}"),
            end => panic!("{end:?}"),
        }
    }
}

/// Promise 8: two calls that settle one batch at the same time make each transfer once, whether they are of one host or of
/// two that know nothing of each other. Whoever comes second is told of a conflict, and goes on where the other is.
async fn settled_by_two(one: &Desk, other: &(Host, Component)) {
    let mut chance = Chance::new("settled by two");
    let (mut batches, mut conflicts): (Vec<Batch>, usize) = (Vec::new(), 0);
    while conflicts == 0 {
        assert!(batches.len() < ROUNDS_MAX, "no two calls ever met");
        let batch = one.accounts.batch(&format!("batch-{}", batches.len()), TRANSFERS.0, &mut chance);
        batches.push(batch.clone());
        let (first, second) = tokio::join!(
            settle_to_the_end(one, &one.host, &one.ledger, &batch),
            settle_to_the_end(one, &other.0, &other.1, &batch)
        );
        let made: u64 = first.iter().chain(&second).map(|outcome| outcome.commits.writes / WRITES_OF_A_TRANSFER).sum();
        assert_eq!(made, batch.total() as u64, "each transfer was committed once");
        other.0.entries(0, 0).await.expect("all that is recorded can be written");
        let Seen { trail, .. } = one.check(&batches, &first[0]).await;
        for outcome in first.iter().chain(&second) {
            agree(outcome, &trail);
            conflicts += usize::from(matches!(outcome.end, End::Conflict(_)));
        }
    }
    println!("{conflicts} conflicts, in batch {}", batches.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_calls_of_one_host_that_settle_one_batch_make_each_transfer_once() {
    let cache = temporary();
    let desk = Desk::open(&cache).await;
    let same = (desk.host.clone(), desk.ledger.clone());
    settled_by_two(&desk, &same).await;
    drop(same);
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_on_one_home_that_settle_one_batch_make_each_transfer_once() {
    let cache = temporary();
    let desk = Desk::open(&cache).await;
    let other = host(&desk.home, &cache).await;
    settled_by_two(&desk, &other).await;
    other.0.shutdown().await;
    desk.close().await;
}
