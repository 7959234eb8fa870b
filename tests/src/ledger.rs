//! What a home must look like in which agent `default` has used the ledger, whatever became of processes and disks.
//!
//! The log says which commits were made, and the calls' inputs say what each of them writes. Replayed from the beginning,
//! they must give exactly the state that is there, every key with the number of the entry that set it as its version: so
//! no commit is there without its entry, no entry without its commit, and no transfer by half (promises 8 and 14).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use estop::store::StoreError;
use estop::store::sqlite::Look;
use estop::{Commits, End, Home, Outcome};
use serde_json::{Value, json};

/// A call that was answered.
pub struct Told {
    /// Which tool of the ledger.
    pub tool: &'static str,
    /// What it was asked.
    pub input: Value,
    /// What it answered.
    pub outcome: Arc<Outcome>,
}

/// Whether all that happened could be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Every host was closed in order, and could write in the end.
    InOrder,
    /// Something was cut off; a host has opened the home since.
    Cut,
}

type Check<T = ()> = Result<T, String>;

macro_rules! ensure {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Err(format!($($what)+));
        }
    };
}

/// Checks promises 8, 13 and 14: state and log agree with each other and with what was told.
///
/// # Errors
/// The first thing that is not as it has to be.
pub fn check(home: &Home, told: &[Told], left: Left) -> Check {
    let look = Look::open(home).map_err(text)?;
    let log = look.lines(0, usize::MAX).map_err(text)?;
    let log: Vec<Value> = log.iter().map(|(_, line)| serde_json::from_str(line).map_err(text)).collect::<Check<_>>()?;
    for told in told {
        as_told(&log, &told.outcome, left)?;
    }
    ends(&log)?;
    hosts(&log)?;
    state(&look, &log, told)
}

/// Checks that whoever was told that a call was stopped finds the interrupt: in the log, or in what a dead host has
/// written beside it.
///
/// # Errors
/// The first that is missing.
pub fn check_stops(log: &[Value], told: &[Told]) -> Check {
    for Told { outcome, .. } in told.iter().filter(|told| told.outcome.end.stopped().is_some()) {
        ensure!(has_interrupt(log, &outcome.call.to_string()), "no entry says who stopped {}", outcome.call);
    }
    Ok(())
}

/// Whether an interrupt of this call stands in the log.
pub fn has_interrupt(log: &[Value], call: &str) -> bool {
    log.iter().any(|line| {
        let entry = if line["kind"] == "alternate" { &line["entry"] } else { line };
        entry["kind"] == "interrupt" && entry["scope"]["call"] == call
    })
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn of<'a>(log: &'a [Value], kind: &str, call: &str) -> Vec<&'a Value> {
    log.iter().filter(|entry| entry["kind"] == kind && entry["call"] == call).collect()
}

fn sum(entries: &[&Value], what: &str) -> u64 {
    entries.iter().filter_map(|entry| entry[what].as_u64()).sum()
}

/// Promise 8: what was told as committed is there, and nothing else. Promise 13: the entry of the end says the same.
fn as_told(log: &[Value], outcome: &Outcome, left: Left) -> Check {
    let (call, status) = (outcome.call.to_string(), outcome.end.status());
    let Commits { points, writes, bytes, unknown, files: _, file_bytes: _ } = outcome.commits;
    let commits = of(log, "commit", &call);
    let there = commits.len() as u64;
    let may_be = there == points || (unknown && there == points + 1);
    ensure!(may_be, "{call} ({status}) was told {:?} and has {there} commits in the log", outcome.commits);
    ensure!(commits.iter().map(|entry| entry["point"].as_u64()).eq((1..=there).map(Some)), "{commits:?}");
    let known = commits.get(..points as usize).unwrap_or_default();
    ensure!((sum(known, "writes"), sum(known, "bytes")) == (writes, bytes), "{:?}: {known:?}", outcome.commits);
    ensure!(!matches!(outcome.end, End::Completed(_)) || !unknown, "{call} was told as completed, and as unknown");

    let resolved = of(log, "resolved", &call);
    for entry in &resolved {
        let is_there = commits.iter().any(|commit| commit["point"] == entry["point"]);
        ensure!(entry["durable"] == is_there, "{entry}, and there is {commits:?}");
    }
    ensure!(resolved.len() <= 1, "{resolved:?}");
    ensure!(left == Left::Cut || !unknown || resolved.len() == 1, "nobody says what became of {call}: {resolved:?}");

    let (ends, died) = (of(log, "end", &call), of(log, "call-died", &call));
    for end in &ends {
        ensure!(end["status"] == status, "{call} was told {status}: {end}");
        ensure!(end["commits"] == json!(outcome.commits), "{call} was told {:?}: {end}", outcome.commits);
        let actor = outcome.end.stopped().map(|stopped| stopped.actor.as_str());
        ensure!(end["actor"].as_str() == actor, "{call} was stopped by {actor:?}: {end}");
    }
    for died in &died {
        let counted = json!({ "points": there, "writes": sum(&commits, "writes"), "bytes": sum(&commits, "bytes") });
        ensure!(died["commits"] == counted, "{counted} is there: {died}");
    }
    let refused = matches!(outcome.end, End::Refused(_));
    ensure!(!refused || (ends.is_empty() && died.is_empty() && there == 0), "{call} was refused");
    ensure!(left == Left::Cut || refused || ends.len() == 1, "{call} ({status}) has {} ends", ends.len());
    Ok(())
}

/// Promise 13: every call that the log has begun has exactly one end.
fn ends(log: &[Value]) -> Check {
    let begun = |entry: &&Value| ["start", "commit", "end", "call-died"].iter().any(|kind| entry["kind"] == *kind);
    let calls: BTreeSet<&str> = log.iter().filter(begun).filter_map(|entry| entry["call"].as_str()).collect();
    for call in calls {
        let ends = of(log, "end", call).len() + of(log, "call-died", call).len();
        ensure!(ends == 1, "{call} has {ends} ends");
        ensure!(of(log, "start", call).len() <= 1, "{call} has begun more than once");
    }
    Ok(())
}

/// Every host that has opened the home has closed it, or is entered as dead.
fn hosts(log: &[Value]) -> Check {
    for opened in log.iter().filter(|entry| entry["kind"] == "opened") {
        let host = &opened["host"];
        let closed = log.iter().filter(|entry| entry["kind"] == "closed" && entry["host"] == *host).count();
        let died = log.iter().filter(|entry| entry["kind"] == "died" && entry["died"] == *host).count();
        ensure!(closed + died == 1, "{host} was closed {closed} times and died {died} times");
    }
    Ok(())
}

/// By bucket and key: the version and the value.
type Keys = BTreeMap<(String, String), (u64, Value)>;

/// Promise 14: the state is what the entries of the commits say, and the sums are right.
fn state(look: &Look, log: &[Value], told: &[Told]) -> Check {
    let mut expected = Books::default();
    for entry in log.iter().filter(|entry| entry["kind"] == "commit") {
        let by = told.iter().find(|told| entry["call"] == told.outcome.call.to_string());
        let by = by.ok_or_else(|| format!("nobody was told of {entry}"))?;
        expected.replay(entry["seq"].as_u64().unwrap_or_default(), by);
    }
    let (mut found, mut charged) = (Keys::new(), 0);
    let each = |info: estop::store::sqlite::KeyInfo| {
        charged += (64 + info.bucket.len() + info.key.len() + info.value.len()).next_multiple_of(64) as u64;
        let mut value: Value =
            serde_json::from_slice(&info.value).map_err(|error| StoreError::Io(error.to_string()))?;
        if let (true, Value::Object(mark)) = (info.bucket == "batches", &mut value) {
            mark.remove("digest");
        }
        found.insert((info.bucket, info.key), (info.version, value));
        Ok::<_, StoreError>(())
    };
    look.keys("default", None, None, each).map_err(text)?;
    for (key, value) in &expected.keys {
        ensure!(found.get(key) == Some(value), "{key:?} should be {value:?} and is {:?}", found.get(key));
    }
    let more: Vec<_> = found.keys().filter(|key| !expected.keys.contains_key(*key)).collect();
    ensure!(more.is_empty(), "nothing says why there is {more:?}");
    let spaces: u64 = look.spaces().map_err(text)?.iter().map(|space| space.bytes).sum();
    ensure!(spaces == charged, "{spaces} bytes are counted, and there are {charged}");
    balances(&found)
}

/// What transfers may not change.
fn balances(found: &Keys) -> Check {
    let cents = |value: &Value, what: &str| value[what].as_i64().unwrap_or(i64::MIN / 1000);
    let (mut openings, mut balances) = (0, 0);
    for ((_, name), (_, account)) in found.iter().filter(|((bucket, _), _)| bucket == "accounts") {
        let own = |key: &str| key.split_once('/').is_some_and(|(of, _)| of == name);
        let history = found.iter().filter(|((bucket, key), _)| bucket == "history" && own(key));
        let moved: i64 = history.map(|(_, (_, line))| cents(line, "cents")).sum();
        let (opening, balance) = (cents(account, "opening"), cents(account, "balance"));
        ensure!(balance == opening + moved && balance >= 0, "{name}: {account}, and its history is {moved}");
        (openings, balances) = (openings + opening, balances + balance);
    }
    ensure!(openings == balances, "the accounts were opened with {openings} and hold {balances}");
    Ok(())
}

/// The ledger's keys, as its documentation has them.
#[derive(Default)]
struct Books {
    keys: Keys,
}

impl Books {
    /// One commit.
    fn replay(&mut self, seq: u64, told: &Told) {
        let input = &told.input;
        match told.tool {
            "open" => {
                let cents = input["cents"].clone();
                let account = json!({ "opening": cents, "balance": cents, "entries": 0 });
                self.set("accounts", &input["account"], seq, account);
            }
            "transfer" => self.transfer(seq, input),
            "settle" => {
                let orders = input["transfers"].as_array().map(Vec::as_slice).unwrap_or_default();
                let done = self.get("batches", &input["id"])["done"].as_u64().unwrap_or(0);
                let every = input["commit_every"].as_u64().unwrap_or(1);
                let total = orders.len() as u64;
                orders.iter().skip(done as usize).take(every as usize).for_each(|order| self.transfer(seq, order));
                // A batch that is done already only validates that it is.
                if done < total {
                    let mark = json!({ "done": (done + every).min(total), "total": total });
                    self.set("batches", &input["id"], seq, mark);
                }
            }
            // The guest `kv` has one that does not read.
            "set" => self.set("test", &input["key"], seq, input["value"].clone()),
            // The others only read.
            _ => {}
        }
    }

    fn transfer(&mut self, seq: u64, order: &Value) {
        let number = |account: &Value| account["entries"].as_u64().unwrap_or_default() + 1;
        let key = |name: &Value, number| json!(format!("{}/{number:010}", name.as_str().unwrap_or_default()));
        let entry = key(&order["from"], number(&self.get("accounts", &order["from"])));
        self.set("journal", &entry, seq, order.clone());
        for (name, sign) in [(&order["from"], -1), (&order["to"], 1)] {
            let mut account = self.get("accounts", name);
            let cents = sign * order["cents"].as_i64().unwrap_or_default();
            let balance = account["balance"].as_i64().unwrap_or_default() + cents;
            (account["balance"], account["entries"]) = (json!(balance), json!(number(&account)));
            let line = json!({ "entry": entry, "cents": cents, "balance": balance });
            self.set("history", &key(name, account["entries"].as_u64().unwrap_or_default()), seq, line);
            self.set("accounts", name, seq, account);
        }
    }

    fn get(&self, bucket: &str, key: &Value) -> Value {
        let key = (bucket.to_owned(), key.as_str().unwrap_or_default().to_owned());
        self.keys.get(&key).map(|(_, value)| value.clone()).unwrap_or_default()
    }

    fn set(&mut self, bucket: &str, key: &Value, seq: u64, value: Value) {
        self.keys.insert((bucket.to_owned(), key.as_str().unwrap_or_default().to_owned()), (seq, value));
    }
}
