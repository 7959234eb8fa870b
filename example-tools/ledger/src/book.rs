//! What is kept of the accounts, and how a transfer changes it.
//!
//! | bucket | key | value |
//! | --- | --- | --- |
//! | `accounts` | `ada` | `{"opening":10000,"balance":9500,"entries":1}` |
//! | `journal` | `ada/0000000001` | `{"from":"ada","to":"bob","cents":500,"memo":"rent"}` |
//! | `history` | `ada/0000000001` | `{"entry":"ada/0000000001","cents":-500,"balance":9500}` |
//! | | `bob/0000000007` | `{"entry":"ada/0000000001","cents":500,"balance":500}` |
//!
//! Invariant: a transfer reads and writes only keys of its two accounts. The number of an entry is
//! therefore the payer's own, not one of the whole journal: a number that all transfers draw from
//! would make each conflict with every other, and so do only those that share an account. Histories
//! are read by number and never listed, for a listing conflicts with whatever adds a key.

use estop_tool::ToolError;
use estop_tool::kv::{self, Bucket};
use serde::{Deserialize, Serialize};

use crate::Past;
use crate::order::{Name, Order};

/// An account as it is stored.
#[derive(Deserialize, Serialize)]
pub(crate) struct Account {
    pub(crate) opening: i64,
    pub(crate) balance: i64,
    /// Number of transfers in its history.
    entries: u64,
}

impl Account {
    fn count(&mut self, name: &Name) -> Result<(), ToolError> {
        self.entries = self.entries.checked_add(1).ok_or_else(|| {
            ToolError::failed("overflow", format!("`{name}` has as many transfers as can be counted; use another"))
        })?;
        Ok(())
    }
}

/// A transfer in the history of one of its accounts.
#[derive(Deserialize, Serialize)]
struct Line {
    /// Its key in the journal.
    entry: String,
    /// How it changed the account.
    cents: i64,
    /// What the account held afterwards.
    balance: i64,
}

/// Where a transfer stands, and what its accounts hold now.
pub(crate) struct Applied {
    pub(crate) entry: String,
    pub(crate) from: i64,
    pub(crate) to: i64,
}

/// What an account has when it is too small for a transfer.
#[derive(Serialize)]
struct Shortage<'a> {
    account: &'a Name,
    cents: i64,
    wanted: i64,
}

/// The buckets of the ledger.
pub(crate) struct Book {
    accounts: Bucket,
    journal: Bucket,
    history: Bucket,
}

impl Book {
    pub(crate) fn open() -> Result<Self, ToolError> {
        Ok(Self { accounts: kv::open("accounts")?, journal: kv::open("journal")?, history: kv::open("history")? })
    }

    pub(crate) fn create(&self, name: &Name, cents: i64) -> Result<(), ToolError> {
        if let Some(Account { balance, .. }) = self.accounts.get(name.as_str())? {
            let message = format!("there is an account `{name}` already, with {balance} cents; choose another name");
            return Err(ToolError::failed("exists", message));
        }
        self.accounts.set(name.as_str(), &Account { opening: cents, balance: cents, entries: 0 })
    }

    pub(crate) fn account(&self, name: &Name) -> Result<Account, ToolError> {
        self.accounts.get(name.as_str())?.ok_or_else(|| {
            ToolError::failed("unknown-account", format!("there is no account `{name}`; `open` it, or list `accounts`"))
        })
    }

    pub(crate) fn names(&self) -> kv::Keys<'_> {
        self.accounts.keys()
    }

    pub(crate) fn accounts(&self, names: &[String]) -> Result<Vec<Option<Account>>, ToolError> {
        self.accounts.get_many(names)
    }

    /// Makes one transfer. After an error the transaction may hold nothing of it or a part: the caller
    /// gives the error back, and all of it is discarded.
    pub(crate) fn apply(&self, order: &Order) -> Result<Applied, ToolError> {
        order.check()?;
        let (mut from, mut to) = (self.account(&order.from)?, self.account(&order.to)?);
        let cents = order.cents.cents();
        if from.balance < cents {
            let message = format!("`{}` holds {} cents, and {cents} are to be transferred", order.from, from.balance);
            let shortage = Shortage { account: &order.from, cents: from.balance, wanted: cents };
            return Err(ToolError::failed("insufficient", message).data(shortage));
        }
        from.balance -= cents;
        to.balance = to.balance.checked_add(cents).ok_or_else(|| {
            let balance = to.balance;
            let message = format!("`{}` holds {balance} cents; with {cents} more, 64 bits cannot count them", order.to);
            ToolError::failed("overflow", message)
        })?;
        from.count(&order.from)?;
        to.count(&order.to)?;
        let entry = key(&order.from, from.entries);
        self.journal.set(&entry, order)?;
        self.enter(&order.from, &from, -cents, &entry)?;
        self.enter(&order.to, &to, cents, &entry)?;
        Ok(Applied { entry, from: from.balance, to: to.balance })
    }

    /// Writes a changed account and the newest line of its history.
    fn enter(&self, name: &Name, account: &Account, cents: i64, entry: &str) -> Result<(), ToolError> {
        let line = Line { entry: entry.to_owned(), cents, balance: account.balance };
        self.history.set(&key(name, account.entries), &line)?;
        self.accounts.set(name.as_str(), account)
    }

    /// The latest transfers of an account, the newest first.
    pub(crate) fn latest(&self, name: &Name, account: &Account, limit: usize) -> Result<Vec<Past>, ToolError> {
        let numbers: Vec<u64> = (1..=account.entries).rev().take(limit).collect();
        let keys: Vec<String> = numbers.iter().map(|number| key(name, *number)).collect();
        let lines = self.history.get_many::<Line>(&keys)?;
        let lines: Vec<Line> = present("history", &keys, lines)?;
        let entries: Vec<&str> = lines.iter().map(|line| line.entry.as_str()).collect();
        let orders: Vec<Order> = present("journal", &entries, self.journal.get_many(&entries)?)?;
        let past = numbers.into_iter().zip(orders).zip(&lines).map(|((number, order), line)| Past {
            number,
            entry: line.entry.clone(),
            from: order.from.into(),
            to: order.to.into(),
            cents: line.cents,
            balance: line.balance,
            memo: order.memo.map(Into::into),
        });
        Ok(past.collect())
    }
}

/// Ten digits, so that a listing from outside is in the order of the transfers.
fn key(name: &Name, number: u64) -> String {
    format!("{name}/{number:010}")
}

/// All values; one that is missing means that someone else wrote into the ledger.
fn present<T>(bucket: &str, keys: &[impl AsRef<str>], values: Vec<Option<T>>) -> Result<Vec<T>, ToolError> {
    let found = keys.iter().zip(values).map(|(key, value)| {
        value.ok_or_else(|| {
            let message = format!("the ledger lacks `{}` in the bucket `{bucket}`; restore it", key.as_ref());
            ToolError::failed("damaged", message)
        })
    });
    found.collect()
}
