//! What a ledger keeps, as it is found from outside; and whether that can be.

use std::collections::{BTreeMap, BTreeSet};

use estop::store::StoreError;
use estop::store::sqlite::Look;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Accounts, Batch, OPENING, Order, writes};

/// A value, and the line of the log whose commit last set it.
struct Kept<T> {
    version: u64,
    value: T,
}

#[derive(Deserialize)]
struct Account {
    opening: i64,
    balance: i64,
    entries: u64,
}

#[derive(Deserialize)]
struct Journalled {
    from: String,
    to: String,
    cents: i64,
    memo: String,
}

impl Journalled {
    fn order(&self) -> Order {
        Order { from: self.from.clone(), to: self.to.clone(), cents: self.cents }
    }
}

#[derive(Deserialize)]
struct Line {
    entry: String,
    cents: i64,
    balance: i64,
}

#[derive(Deserialize)]
struct Mark {
    done: usize,
    total: usize,
}

/// What one agent keeps with the ledger, at one moment.
#[derive(Default)]
pub(crate) struct Book {
    accounts: BTreeMap<String, Kept<Account>>,
    journal: BTreeMap<String, Kept<Journalled>>,
    history: BTreeMap<String, Kept<Line>>,
    marks: BTreeMap<String, Kept<Mark>>,
}

impl Book {
    /// Through the library.
    pub(crate) fn look(look: &Look, agent: &str) -> Self {
        let mut book = Self::default();
        let read = look.keys(agent, None, None, |key| {
            book.take(&key.bucket, key.key, key.version, &key.value);
            Ok::<_, StoreError>(())
        });
        read.expect("the state can be read");
        book
    }

    /// What `estop state export` prints.
    pub(crate) fn exported(text: &str) -> Self {
        let mut book = Self::default();
        for line in text.lines() {
            let key: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            let text = |name: &str| key[name].as_str().unwrap_or_else(|| panic!("no {name}: {line}"));
            let version = key["version"].as_u64().unwrap_or_else(|| panic!("no version: {line}"));
            book.take(text("bucket"), text("key").to_owned(), version, text("value").as_bytes());
        }
        book
    }

    fn take(&mut self, bucket: &str, key: String, version: u64, value: &[u8]) {
        match bucket {
            "accounts" => keep(&mut self.accounts, key, version, value),
            "journal" => keep(&mut self.journal, key, version, value),
            "history" => keep(&mut self.history, key, version, value),
            "batches" => keep(&mut self.marks, key, version, value),
            other => panic!("a ledger has no bucket `{other}`"),
        }
    }

    /// How many transfers of the batch are made.
    pub(crate) fn done(&self, batch: &Batch) -> usize {
        self.marks.get(&batch.id).map_or(0, |mark| mark.value.done)
    }

    pub(crate) fn balances(&self) -> BTreeMap<String, i64> {
        self.accounts.iter().map(|(name, account)| (name.clone(), account.value.balance)).collect()
    }

    /// The versions of all keys.
    pub(crate) fn versions(&self) -> BTreeSet<u64> {
        let accounts = self.accounts.values().map(|kept| kept.version);
        let journal = self.journal.values().map(|kept| kept.version);
        let history = self.history.values().map(|kept| kept.version);
        accounts.chain(journal).chain(history).chain(self.marks.values().map(|kept| kept.version)).collect()
    }

    /// How many keys each commit of a `settle` has written, by the number of its entry: what its transfers write, and the
    /// mark of their batch. No transfer is ever changed, so none is hidden by a later one.
    pub(crate) fn commits(&self) -> BTreeMap<u64, usize> {
        let mut commits: BTreeMap<u64, Vec<Order>> = BTreeMap::new();
        for Kept { version, value } in self.journal.values() {
            commits.entry(*version).or_default().push(value.order());
        }
        commits.into_iter().map(|(version, orders)| (version, writes(&orders) + 1)).collect()
    }

    /// Every transfer is there entirely or not at all, none twice and none but those of these batches, each batch has been
    /// made up to where its mark says, and every sum is right.
    pub(crate) fn audit(&self, accounts: &Accounts, batches: &[&Batch]) {
        self.audit_accounts(accounts);
        self.audit_journal();
        let mut made = self.made();
        for batch in batches {
            self.audit_batch(batch, made.remove(batch.id.as_str()).unwrap_or_default());
        }
        assert!(made.is_empty(), "nobody asked for transfers of {:?}", made.keys());
        let asked: BTreeSet<&str> = batches.iter().map(|batch| batch.id.as_str()).collect();
        assert!(self.marks.keys().all(|id| asked.contains(id.as_str())), "nobody asked for all of these batches");

        let expected = accounts.expected(batches.iter().map(|batch| (*batch, self.done(batch))));
        assert_eq!(self.balances(), expected, "balances are those of the last commit point");
        let total: i64 = self.accounts.values().map(|account| account.value.balance).sum();
        assert_eq!(total, OPENING * accounts.names.len() as i64, "transfers change no total");
    }

    /// Each balance is the opening balance and the sum of the history, which has no gap.
    fn audit_accounts(&self, accounts: &Accounts) {
        assert!(self.accounts.keys().eq(&accounts.names), "{:?}", self.accounts.keys());
        let mut lines = 0;
        for (name, Kept { version, value: account }) in &self.accounts {
            assert_eq!(account.opening, OPENING, "{name}");
            let (mut balance, mut newest) = (account.opening, None);
            for number in 1..=account.entries {
                let line = self.history.get(&format!("{name}/{number:010}"));
                let Kept { version, value } = line.unwrap_or_else(|| panic!("{name} lacks line {number}"));
                balance += value.cents;
                assert_eq!(value.balance, balance, "{name} after {number} lines");
                assert!(
                    newest.replace(*version) <= Some(*version),
                    "line {number} of {name} is older than the one before"
                );
                lines += 1;
            }
            assert_eq!(account.balance, balance, "{name}");
            assert!(newest.is_none_or(|newest| newest == *version), "{name} was set without its history, or after it");
        }
        assert_eq!(lines, self.history.len(), "every line of a history belongs to an account");
    }

    /// Each transfer stands in the history of exactly its two accounts, and all of it is of one commit.
    fn audit_journal(&self) {
        let mut sides: BTreeMap<&str, Vec<(&str, i64, u64)>> = BTreeMap::new();
        for (key, Kept { version, value }) in &self.history {
            let (account, _) = key.split_once('/').unwrap_or_else(|| panic!("`{key}` is no line's key"));
            sides.entry(&value.entry).or_default().push((account, value.cents, *version));
        }
        for (key, Kept { version, value: Journalled { from, to, cents, .. } }) in &self.journal {
            let mut expected = vec![(from.as_str(), -cents, *version), (to.as_str(), *cents, *version)];
            let mut found = sides.remove(key.as_str()).unwrap_or_default();
            expected.sort_unstable();
            found.sort_unstable();
            assert_eq!(found, expected, "{key}");
        }
        assert!(sides.is_empty(), "histories tell of transfers that the journal does not have: {sides:?}");
    }

    /// What is made of each batch: the transfer of each index, and its version.
    fn made(&self) -> BTreeMap<&str, BTreeMap<usize, (Order, u64)>> {
        let mut made: BTreeMap<&str, BTreeMap<usize, (Order, u64)>> = BTreeMap::new();
        for (key, Kept { version, value }) in &self.journal {
            let memo = &value.memo;
            let place = memo.split_once('/').and_then(|(id, index)| Some((id, index.parse().ok()?)));
            let (id, index) = place.unwrap_or_else(|| panic!("{key} is not of a batch: {memo}"));
            let twice = made.entry(id).or_default().insert(index, (value.order(), *version));
            assert!(twice.is_none(), "transfer {index} of `{id}` was made twice");
        }
        made
    }

    fn audit_batch(&self, batch: &Batch, made: BTreeMap<usize, (Order, u64)>) {
        let Batch { id, orders } = batch;
        let done = self.done(batch);
        assert!(made.keys().copied().eq(0..done), "{done} of `{id}` should be made, but these are: {:?}", made.keys());
        assert!(
            made.values().map(|(order, _)| order).eq(&orders[..done]),
            "`{id}`: other transfers than those asked for"
        );
        assert!(made.values().map(|(_, version)| version).is_sorted(), "`{id}` was not made in its order");
        let Some(Kept { version, value }) = self.marks.get(id) else { return };
        assert_eq!(value.total, orders.len(), "{id}");
        let newest = made.values().next_back().map(|(_, version)| version);
        assert_eq!(newest, Some(version), "the mark of `{id}` is of another commit than its last transfer");
    }
}

fn keep<T: DeserializeOwned>(kept: &mut BTreeMap<String, Kept<T>>, key: String, version: u64, value: &[u8]) {
    match serde_json::from_slice(value) {
        Ok(value) => drop(kept.insert(key, Kept { version, value })),
        Err(error) => panic!("{key}: {error}: {}", String::from_utf8_lossy(value)),
    }
}
