//! Works through a batch of transfers, which may be stopped at any instruction and begun again.
//!
//! | bucket | key | value |
//! | --- | --- | --- |
//! | `batches` | `payroll-06` | `{"digest":"af63bd4c8601b7be","done":3,"total":10}` |
//!
//! Invariant: `done` is written in the transaction that holds the transfers it counts, and read in the
//! transaction that makes the next ones. So no transfer is applied twice or left out, whenever the call
//! is stopped, and also if two calls work through one batch at the same time: one of them conflicts.
//!
//! That a batch is the same as before is told by a digest of it, 64 bits of FNV-1a over its JSON. The
//! JSON is that of the parsed transfers, so spaces and the order of fields do not matter. It has to
//! catch mistakes: an id that is used again, a list that was edited. Mistakes hit the same 64 bits once
//! in 2⁶⁴, and an agent that would look for a collision on purpose could as well choose another id.

use std::num::NonZeroUsize;

use estop_tool::kv::{self, Bucket};
use estop_tool::{ToolError, checkpoint, commit, progress};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::book::Book;
use crate::order::{Name, Order};

/// Number of transfers in one batch. Each reads two keys and writes five, so that a batch in a
/// single transaction stays below the 100 000 keys that a host allows by default.
const MAX_TRANSFERS: usize = 10_000;

/// Transfers that belong together.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Your name for this batch. To go on with a batch that was stopped, repeat its id and its transfers.
    id: Name,
    /// Made in this order. From 1 to 10000.
    transfers: Vec<Order>,
    /// Make them durable after every so many, and at the end. With 1, a stop undoes one transfer at
    /// most; with the length of the batch it is all or nothing.
    #[serde(default = "each")]
    commit_every: NonZeroUsize,
}

fn each() -> NonZeroUsize {
    NonZeroUsize::MIN
}

/// How far a batch is, after the call.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Settled {
    /// Number of transfers made, by this call and earlier ones.
    done: usize,
    /// Number of transfers in the batch.
    total: usize,
    /// Number of transfers that earlier calls had made.
    resumed_from: usize,
}

/// How far a batch is, as it is stored.
#[derive(Deserialize, Serialize)]
struct Mark {
    digest: String,
    done: usize,
    total: usize,
}

/// Which transfer of a batch could not be made.
#[derive(Serialize)]
struct Place {
    /// Counted from 0.
    index: usize,
    /// Number of transfers that remain made.
    done: usize,
    total: usize,
}

/// Make many transfers, in order, under an id of yours. Safe to repeat: if the call was stopped, failed
/// or conflicted, call again with the same id and the same transfers, and it goes on after those that
/// are done. No transfer is ever made twice.
///
/// A transfer that cannot be made (`insufficient`, `unknown-account`, `overflow`) ends the call. The
/// error names its index, counted from 0, and how many remain done; put it right, for example by a
/// `transfer` to the account, and call again. `same-account` is found before anything is done. An id
/// that was used with other transfers is `batch-mismatch`.
#[estop_tool::tool(idempotent)]
pub fn settle(batch: Batch) -> Result<Settled, ToolError> {
    let total = batch.transfers.len();
    if !(1..=MAX_TRANSFERS).contains(&total) {
        return Err(ToolError::invalid_input(format!("{total} `transfers`; a batch has from 1 to {MAX_TRANSFERS}")));
    }
    let work = Work::begin(batch)?;
    let resumed_from = work.done()?;
    for (index, order) in work.batch.transfers.iter().enumerate() {
        order.check().map_err(|why| work.failed(index, resumed_from, &why))?;
    }
    let mut done = resumed_from;
    while done < total {
        done = work.settle_some()?;
    }
    Ok(Settled { done, total, resumed_from })
}

struct Work {
    book: Book,
    marks: Bucket,
    digest: String,
    batch: Batch,
}

impl Work {
    fn begin(batch: Batch) -> Result<Self, ToolError> {
        Ok(Self { book: Book::open()?, marks: kv::open("batches")?, digest: digest(&batch.transfers)?, batch })
    }

    /// Makes the transfers up to the next commit point, and gives how many are done then.
    fn settle_some(&self) -> Result<usize, ToolError> {
        // Anew for each transaction. What was true before the last commit point is not validated by the
        // next one, and somebody else may have gone on with the batch.
        let before = self.done()?;
        let total = self.batch.transfers.len();
        let mut done = before;
        for order in self.batch.transfers.iter().skip(before).take(self.batch.commit_every.get()) {
            checkpoint()?;
            self.book.apply(order).map_err(|why| self.failed(done, before, &why))?;
            done += 1;
            let Order { from, to, cents, .. } = order;
            progress(done as u64, total as u64, format_args!("{from} to {to}: {} ct", cents.cents()));
        }
        self.marks.set(self.batch.id.as_str(), &Mark { digest: self.digest.clone(), done, total })?;
        commit()?;
        Ok(done)
    }

    /// How many transfers of the batch are done, in this transaction's view.
    fn done(&self) -> Result<usize, ToolError> {
        let id = &self.batch.id;
        match self.marks.get::<Mark>(id.as_str())? {
            None => Ok(0),
            Some(mark) if mark.digest == self.digest => Ok(mark.done),
            Some(Mark { done, total, .. }) => {
                let message = format!(
                    "the batch `{id}` was begun with other transfers, and {done} of its {total} are done; \
                     repeat exactly those to go on with it, or choose another id"
                );
                Err(ToolError::failed("batch-mismatch", message))
            }
        }
    }

    /// The error of the transfer at `index`, when `done` are durable. The code stays.
    fn failed(&self, index: usize, done: usize, why: &ToolError) -> ToolError {
        let total = self.batch.transfers.len();
        let message = format!("transfer {index} of `{}`: {}; {done} of {total} are done", self.batch.id, why.message());
        let error = ToolError::failed(why.code(), message).data(Place { index, done, total });
        if why.is_retryable() { error.retryable() } else { error }
    }
}

fn digest(transfers: &[Order]) -> Result<String, ToolError> {
    let json = serde_json::to_vec(transfers)?;
    Ok(format!("{:016x}", fnv1a(&json)))
}

/// FNV-1a of 64 bits, as <http://www.isthe.com/chongo/tech/comp/fnv/> has it.
fn fnv1a(bytes: &[u8]) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    bytes.iter().fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use estop_tool::testing::Run;

    use super::*;

    /// As two calls would, if neither conflicted.
    #[test]
    fn two_that_work_through_one_batch_make_each_transfer_once() {
        let work = || {
            let order = r#"{"from":"ada","to":"bob","cents":1}"#;
            let json = format!(r#"{{"id":"june","transfers":[{order},{order},{order},{order},{order}]}}"#);
            Work::begin(serde_json::from_str(&json).unwrap())
        };
        let account = |cents: i64| serde_json::json!({ "opening": cents, "balance": cents, "entries": 0 });
        let run = Run::new().state("accounts", "ada", &account(9)).state("accounts", "bob", &account(0));
        let ended = run.call(|| {
            let (one, other) = (work()?, work()?);
            assert_eq!((one.done()?, other.done()?), (0, 0));
            assert_eq!((one.settle_some()?, other.settle_some()?), (1, 2));
            assert_eq!((one.settle_some()?, one.settle_some()?), (3, 4));
            assert_eq!((other.settle_some()?, one.settle_some()?), (5, 5));
            Ok(())
        });
        assert_eq!(ended.result, Ok(()));
        assert_eq!(ended.state::<serde_json::Value>("accounts", "bob").unwrap()["balance"], 5);
        assert_eq!(ended.keys("journal").len(), 5);
    }

    #[test]
    fn the_digest_is_fnv1a() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn the_digest_is_of_the_transfers_and_not_of_their_spelling() {
        let digest = |json: &str| digest(&serde_json::from_str::<Vec<Order>>(json).unwrap()).unwrap();
        let one = digest(r#"[{"from":"a","to":"b","cents":1}]"#);
        assert_eq!(one, digest("[ {\"cents\": 1, \"to\": \"\\u0062\", \"from\": \"a\", \"memo\": null} ]"));
        assert_ne!(one, digest(r#"[{"from":"b","to":"a","cents":1}]"#));
        assert_ne!(one, digest(r#"[{"from":"a","to":"b","cents":1,"memo":""}]"#));
        assert_ne!(one, digest(r#"[{"from":"a","to":"b","cents":1},{"from":"a","to":"b","cents":1}]"#));
    }
}
