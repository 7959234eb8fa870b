//! Accounts in integer cents, and transfers between them.
//!
//! Invariants, at every commit point and so whenever anybody looks:
//! - a transfer changes no sum: what one account loses, another gains, so the total over all accounts
//!   is that of their opening balances;
//! - the balance of an account is its opening balance plus the changes in its history, and never
//!   negative;
//! - each entry of the journal stands in the history of exactly its two accounts.
//!
//! Nothing here locks or undoes anything. A transfer is five writes of one transaction, and a stop
//! between any two instructions leaves all of it or nothing.
//!
//! ```text
//! estop run example-tools/ledger open -i '{"account":"ada","cents":10000}'
//! ```

mod book;
mod order;
mod settle;
#[cfg(test)]
mod tests;

use estop_tool::{ToolError, checkpoint};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use book::{Applied, Book};
use order::{Name, Order};

/// Number of accounts that one answer lists at most; ten thousand of the longest names fill half of
/// the 2 MiB that a call may answer by default.
const MAX_ACCOUNTS_LISTED: usize = 10_000;
/// Number of accounts read at once, between two looks whether the call is to stop.
const ACCOUNTS_PER_READ: usize = 500;
/// Number of transfers in a history if the caller does not say.
const DEFAULT_HISTORY: usize = 20;
/// Number of transfers in a history at most.
const MAX_HISTORY: usize = 200;

/// An account to be opened.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Opening {
    account: Name,
    /// What it holds at first, in cents: 0 or more, and 0 if it is left out.
    #[serde(default)]
    cents: i64,
}

/// Which account.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Which {
    account: Name,
}

/// Which account, and how much of its history.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Span {
    account: Name,
    /// Number of transfers to answer, from 1 to 200; 20 if it is left out.
    limit: Option<usize>,
}

/// What an account holds.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Balance {
    account: String,
    cents: i64,
}

/// All accounts at one moment.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Accounts {
    /// In the order of their names.
    accounts: Vec<Balance>,
    /// What they hold together, in cents. Transfers do not change it.
    total: i64,
}

/// A transfer that was made.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Receipt {
    /// Where it stands in the journal.
    entry: String,
    from: Balance,
    to: Balance,
}

/// The latest transfers of an account.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct History {
    account: String,
    /// What it held when it was opened, before the first transfer.
    opening: i64,
    /// What it holds now.
    cents: i64,
    /// The newest first.
    transfers: Vec<Past>,
}

/// One transfer, as one of its accounts sees it.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Past {
    /// Counted from 1, for this account.
    number: u64,
    /// Where it stands in the journal.
    entry: String,
    from: String,
    to: String,
    /// How it changed this account: negative if the account paid.
    cents: i64,
    /// What the account held afterwards.
    balance: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    memo: Option<String>,
}

/// Open an account, with an opening balance in cents.
///
/// Fails with `exists` if there is an account of that name: its balance is then left alone.
#[estop_tool::tool]
pub fn open(input: Opening) -> Result<Balance, ToolError> {
    let Opening { account, cents } = input;
    if cents < 0 {
        return Err(ToolError::invalid_input(format!("`cents` is {cents}; an account opens with 0 or more")));
    }
    Book::open()?.create(&account, cents)?;
    Ok(Balance { account: account.into(), cents })
}

/// Tell what one account holds, in cents.
#[estop_tool::tool(read_only, idempotent)]
pub fn balance(input: Which) -> Result<Balance, ToolError> {
    let cents = Book::open()?.account(&input.account)?.balance;
    Ok(Balance { account: input.account.into(), cents })
}

/// List all accounts with what they hold, and the total.
///
/// The answer is of one moment. While transfers are being made it can fail with `conflict`; ask again.
// Of one moment, because the host validates all that was read when the call commits.
#[estop_tool::tool(read_only, idempotent)]
pub fn accounts() -> Result<Accounts, ToolError> {
    let book = Book::open()?;
    let mut names = Vec::new();
    for name in book.names() {
        if names.len() == MAX_ACCOUNTS_LISTED {
            let message = format!("there are more than {MAX_ACCOUNTS_LISTED} accounts; ask for the `balance` of one");
            return Err(ToolError::failed("too-many-accounts", message));
        }
        names.push(name?);
    }
    let (mut accounts, mut total) = (Vec::with_capacity(names.len()), 0_i64);
    for names in names.chunks(ACCOUNTS_PER_READ) {
        checkpoint()?;
        for (name, account) in names.iter().zip(book.accounts(names)?) {
            // Gone between the listing and this: the commit at the end will say so.
            let Some(account) = account else { continue };
            total = total.checked_add(account.balance).ok_or_else(|| {
                let message = "all accounts together hold more cents than 64 bits can count; ask for one `balance`";
                ToolError::failed("overflow", message)
            })?;
            accounts.push(Balance { account: name.clone(), cents: account.balance });
        }
    }
    Ok(Accounts { accounts, total })
}

/// Move cents from one account to another, at once: either both balances, the journal and both
/// histories change, or nothing does.
///
/// Fails with `insufficient` if `from` holds less than that, `unknown-account`, or `same-account`. For
/// many transfers that belong together use `settle`, which can be repeated safely.
#[estop_tool::tool]
pub fn transfer(input: Order) -> Result<Receipt, ToolError> {
    let Applied { entry, from, to } = Book::open()?.apply(&input)?;
    Ok(Receipt {
        entry,
        from: Balance { account: input.from.into(), cents: from },
        to: Balance { account: input.to.into(), cents: to },
    })
}

/// Tell the latest transfers of an account, the newest first, each with what the account held then.
#[estop_tool::tool(read_only, idempotent)]
pub fn history(input: Span) -> Result<History, ToolError> {
    let limit = input.limit.unwrap_or(DEFAULT_HISTORY);
    if !(1..=MAX_HISTORY).contains(&limit) {
        return Err(ToolError::invalid_input(format!("`limit` is {limit}; it can be from 1 to {MAX_HISTORY}")));
    }
    let book = Book::open()?;
    let account = book.account(&input.account)?;
    let transfers = book.latest(&input.account, &account, limit)?;
    let account_name = input.account.into();
    Ok(History { account: account_name, opening: account.opening, cents: account.balance, transfers })
}

estop_tool::export!(open, balance, accounts, transfer, history, settle::settle);
