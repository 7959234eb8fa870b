//! What the tests of stops, crashes and conflicts share: batches for the tool `ledger`, what became of them as others see
//! it, and the command itself.

// Each test file uses its part.
#![allow(dead_code)]

pub(crate) mod book;
pub(crate) mod command;
pub(crate) mod trail;

use std::collections::{BTreeMap, BTreeSet};
use std::hint::spin_loop;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use estop_tests::guests;
use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use serde_json::{Value, json};

/// What every account is opened with: more than is ever moved.
pub(crate) const OPENING: i64 = 1_000_000_000;

/// The component's file, built once.
pub(crate) fn component() -> String {
    guests::path("ledger").to_str().expect("a path in UTF-8").to_owned()
}

/// Random numbers from a seed that is printed, and can be given again: `ESTOP_TEST_SEED=7 cargo test …`. The same seed
/// makes the same choices; what they meet is the scheduler's affair.
pub(crate) struct Chance(TestRng);

impl Chance {
    pub(crate) fn new(test: &str) -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
        let given = std::env::var("ESTOP_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(now);
        println!("{test}: ESTOP_TEST_SEED={seed}");
        Self::from(seed)
    }

    /// Another one, for another thread.
    pub(crate) fn branch(&mut self) -> Self {
        Self::from(self.0.next_u64())
    }

    /// From zero up to, and without, `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end.max(1)
    }

    pub(crate) fn between(&mut self, first: usize, last: usize) -> usize {
        first + self.below((last - first + 1) as u64) as usize
    }

    pub(crate) fn up_to(&mut self, longest: Duration) -> Duration {
        Duration::from_nanos(self.below(longest.as_nanos() as u64))
    }
}

impl From<u64> for Chance {
    fn from(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Self(TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
    }
}

/// Not a wait for something: where in the call, or in the process, the stop lands.
pub(crate) fn spin(delay: Duration) {
    let until = Instant::now() + delay;
    while Instant::now() < until {
        spin_loop();
    }
}

/// The accounts of one agent.
#[derive(Clone)]
pub(crate) struct Accounts {
    pub(crate) agent: String,
    pub(crate) names: Vec<String>,
}

impl Accounts {
    pub(crate) fn new(agent: &str, count: usize) -> Self {
        Self { agent: agent.to_owned(), names: (0..count).map(|number| format!("account-{number}")).collect() }
    }

    /// The inputs of `open`.
    pub(crate) fn openings(&self) -> impl Iterator<Item = Value> {
        self.names.iter().map(|name| json!({ "account": name, "cents": OPENING }))
    }

    /// Transfers between two of them each, chosen by chance.
    pub(crate) fn batch(&self, id: &str, total: usize, chance: &mut Chance) -> Batch {
        let orders = (0..total).map(|_| {
            let from = chance.between(0, self.names.len() - 1);
            let to = (from + chance.between(1, self.names.len() - 1)) % self.names.len();
            let cents = 1 + chance.below(100_000) as i64;
            Order { from: self.names[from].clone(), to: self.names[to].clone(), cents }
        });
        Batch { id: id.to_owned(), orders: orders.collect() }
    }

    /// What each holds when so many transfers of these batches are made.
    pub(crate) fn expected<'a>(&self, done: impl Iterator<Item = (&'a Batch, usize)>) -> BTreeMap<String, i64> {
        let mut held: BTreeMap<String, i64> = self.names.iter().map(|name| (name.clone(), OPENING)).collect();
        for (batch, done) in done {
            for Order { from, to, cents } in &batch.orders[..done] {
                *held.get_mut(from).expect("an account") -= cents;
                *held.get_mut(to).expect("an account") += cents;
            }
        }
        held
    }
}

/// A transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) cents: i64,
}

/// Keys that these transfers write: the journal, both histories, and the accounts.
pub(crate) fn writes(orders: &[Order]) -> usize {
    let accounts: BTreeSet<&str> = orders.iter().flat_map(|order| [order.from.as_str(), &order.to]).collect();
    3 * orders.len() + accounts.len()
}

/// Transfers that are settled under one id. The memo of each says which of which batch it is.
#[derive(Clone)]
pub(crate) struct Batch {
    pub(crate) id: String,
    pub(crate) orders: Vec<Order>,
}

impl Batch {
    pub(crate) fn total(&self) -> usize {
        self.orders.len()
    }

    /// The input of `settle`.
    pub(crate) fn input(&self, commit_every: usize) -> Value {
        let order = |(index, order): (usize, &Order)| {
            let Order { from, to, cents } = order;
            json!({ "from": from, "to": to, "cents": cents, "memo": format!("{}/{index}", self.id) })
        };
        let transfers: Vec<Value> = self.orders.iter().enumerate().map(order).collect();
        json!({ "id": self.id, "commit_every": commit_every, "transfers": transfers })
    }

    /// The answer of a `settle` that went on after `resumed_from` transfers.
    pub(crate) fn settled(&self, resumed_from: usize) -> Value {
        json!({ "done": self.total(), "total": self.total(), "resumed_from": resumed_from })
    }
}
