//! The tools as a host calls them.

use estop_tool::testing::{Ended, Run};
use estop_tool::{Answer, ToolError};

use super::settle::settle;
use super::*;

const BATCH: &str = r#""transfers":[
    {"from":"ada","to":"bob","cents":100},
    {"from":"bob","to":"cy","cents":30,"memo":"lunch"},
    {"from":"ada","to":"cy","cents":5},
    {"from":"cy","to":"ada","cents":35},
    {"from":"ada","to":"bob","cents":1}
]"#;
const BATCH_TOTAL: usize = 5;
/// What ada, bob and cy hold when the first so many transfers of `BATCH` are done.
const HELD: [[i64; 3]; BATCH_TOTAL + 1] =
    [[1000, 0, 0], [900, 100, 0], [900, 70, 30], [895, 70, 35], [930, 70, 0], [929, 71, 0]];

/// A ledger in which ada has 1000 cents, and bob and cy none.
fn three() -> Run {
    let ended = Run::new().call_json::<open>(r#"{"account":"ada","cents":1000}"#);
    let ended = ended.and_then().call_json::<open>(r#"{"account":"bob"}"#);
    ended.and_then().call_json::<open>(r#"{"account":"cy","cents":0}"#).and_then()
}

fn json(ended: &Ended<Answer>) -> &str {
    &ended.result.as_ref().unwrap().json
}

fn error(ended: &Ended<Answer>) -> &ToolError {
    ended.result.as_ref().unwrap_err()
}

fn held(run: &Run) -> [i64; 3] {
    let ended = run.clone().call(accounts);
    let all = ended.result.unwrap();
    assert_eq!(all.total, 1000, "no transfer changes the total");
    let held: Vec<i64> = all.accounts.iter().map(|account| account.cents).collect();
    held.try_into().unwrap()
}

/// Each balance is the opening balance plus the history, line by line, and the journal has each
/// transfer once.
fn audit(run: &Run) {
    let mut lines = 0;
    for account in run.clone().call(accounts).result.unwrap().accounts {
        let span = format!(r#"{{"account":"{}","limit":200}}"#, account.account);
        let ended = run.clone().call_json::<history>(&span);
        let history: serde_json::Value = serde_json::from_str(json(&ended)).unwrap();
        let mut cents = history["opening"].as_i64().unwrap();
        for line in history["transfers"].as_array().unwrap().iter().rev() {
            cents += line["cents"].as_i64().unwrap();
            assert_eq!(line["balance"], cents);
            lines += 1;
        }
        assert_eq!(history["cents"], cents);
        assert_eq!(account.cents, cents);
    }
    let ended = run.clone().call(|| Ok(()));
    assert_eq!(ended.keys("journal").len() * 2, lines);
    assert_eq!(ended.keys("history").len(), lines);
}

fn batch(id: &str, commit_every: usize) -> String {
    format!(r#"{{"id":"{id}","commit_every":{commit_every},{BATCH}}}"#)
}

#[test]
fn an_account_is_opened_once() {
    let ended = three().call_json::<open>(r#"{"account":"ada","cents":5}"#);
    assert_eq!(
        error(&ended).to_string(),
        "exists: there is an account `ada` already, with 1000 cents; choose another name"
    );
    let ended = ended.and_then().call_json::<balance>(r#"{"account":"ada"}"#);
    assert_eq!(json(&ended), r#"{"account":"ada","cents":1000}"#);
    let ended = ended.and_then().call_json::<open>(r#"{"account":"dan","cents":-1}"#);
    assert_eq!(error(&ended).message(), "`cents` is -1; an account opens with 0 or more");
    let ended = ended.and_then().call_json::<balance>(r#"{"account":"dan"}"#);
    assert_eq!(error(&ended).code(), "unknown-account");
}

#[test]
fn a_transfer_changes_both_accounts_and_their_histories() {
    let ended = three().call_json::<transfer>(r#"{"from":"ada","to":"bob","cents":250,"memo":"rent"}"#);
    assert_eq!(
        json(&ended),
        r#"{"entry":"ada/0000000001","from":{"account":"ada","cents":750},"to":{"account":"bob","cents":250}}"#
    );
    let ended = ended.and_then().call_json::<transfer>(r#"{"from":"bob","to":"ada","cents":50}"#);
    assert!(json(&ended).starts_with(r#"{"entry":"bob/0000000002","#));
    let run = ended.and_then();
    audit(&run);
    assert_eq!(held(&run), [800, 200, 0]);
    let ended = run.call_json::<history>(r#"{"account":"bob","limit":1}"#);
    assert_eq!(
        json(&ended),
        concat!(
            r#"{"account":"bob","opening":0,"cents":200,"transfers":[{"number":2,"entry":"bob/0000000002","#,
            r#""from":"bob","to":"ada","cents":-50,"balance":200}]}"#
        )
    );
    let ended = ended.and_then().call_json::<history>(r#"{"account":"bob"}"#);
    assert!(json(&ended).ends_with(
        r#"{"number":1,"entry":"ada/0000000001","from":"ada","to":"bob","cents":250,"balance":250,"memo":"rent"}]}"#
    ));
}

#[test]
fn what_is_stored_is_as_documented() {
    let ended = three().call_json::<transfer>(r#"{"from":"ada","to":"bob","cents":500,"memo":"rent"}"#);
    let text = |bucket: &str, key: &str| String::from_utf8(ended.state_bytes(bucket, key).unwrap()).unwrap();
    assert_eq!(text("accounts", "ada"), r#"{"opening":1000,"balance":500,"entries":1}"#);
    assert_eq!(text("journal", "ada/0000000001"), r#"{"from":"ada","to":"bob","cents":500,"memo":"rent"}"#);
    assert_eq!(text("history", "ada/0000000001"), r#"{"entry":"ada/0000000001","cents":-500,"balance":500}"#);
    assert_eq!(text("history", "bob/0000000001"), r#"{"entry":"ada/0000000001","cents":500,"balance":500}"#);
    let ended = ended.and_then().call_json::<settle>(r#"{"id":"b","transfers":[{"from":"ada","to":"cy","cents":1}]}"#);
    let mark = String::from_utf8(ended.state_bytes("batches", "b").unwrap()).unwrap();
    assert!(mark.starts_with(r#"{"digest":""#) && mark.ends_with(r#"","done":1,"total":1}"#), "{mark}");
}

#[test]
fn a_transfer_that_cannot_be_made_changes_nothing() {
    for (order, why) in [
        (
            r#"{"from":"ada","to":"bob","cents":1001}"#,
            "insufficient: `ada` holds 1000 cents, and 1001 are to be transferred",
        ),
        (
            r#"{"from":"ada","to":"dan","cents":1}"#,
            "unknown-account: there is no account `dan`; `open` it, or list `accounts`",
        ),
        (
            r#"{"from":"dan","to":"ada","cents":1}"#,
            "unknown-account: there is no account `dan`; `open` it, or list `accounts`",
        ),
        (
            r#"{"from":"ada","to":"ada","cents":1}"#,
            "same-account: `ada` cannot transfer to itself; `from` and `to` must be two accounts",
        ),
        (
            r#"{"from":"ada","to":"rich","cents":1}"#,
            "overflow: `rich` holds 9223372036854775807 cents; with 1 more, 64 bits cannot count them",
        ),
    ] {
        let rich = format!(r#"{{"account":"rich","cents":{}}}"#, i64::MAX);
        let run = three().call_json::<open>(&rich).and_then();
        let ended = run.call_json::<transfer>(order);
        assert_eq!(error(&ended).to_string(), why);
        assert!(ended.keys("journal").is_empty() && ended.keys("history").is_empty());
        assert_eq!(ended.and_then().call(accounts).result.unwrap_err().code(), "overflow");
    }
    let ended = three().call_json::<transfer>(r#"{"from":"ada","to":"bob","cents":1001}"#);
    assert_eq!(error(&ended).json_data(), Some(r#"{"account":"ada","cents":1000,"wanted":1001}"#));
}

#[test]
fn a_transfer_that_conflicts_changes_nothing() {
    let ended = three().conflict_at_commit(1).call_json::<transfer>(r#"{"from":"ada","to":"bob","cents":1}"#);
    assert!(error(&ended).code() == "conflict" && error(&ended).is_retryable());
    let run = ended.and_then();
    audit(&run);
    assert_eq!(held(&run), HELD[0]);
}

#[test]
fn many_accounts_are_listed_in_parts_and_the_listing_can_be_stopped() {
    let mut run = Run::new();
    for number in 0..ACCOUNTS_PER_READ + 1 {
        let account = serde_json::json!({ "opening": 2, "balance": 2, "entries": 0 });
        run = run.state("accounts", &format!("account-{number:04}"), &account);
    }
    let all = run.clone().call(accounts).result.unwrap();
    assert_eq!((all.accounts.len(), all.total), (ACCOUNTS_PER_READ + 1, 2 * (ACCOUNTS_PER_READ as i64 + 1)));
    assert!(run.interrupt_at_checkpoint(2).call(accounts).result.unwrap_err().is_interrupted());
}

#[test]
fn a_batch_is_settled_and_repeating_it_changes_nothing() {
    let ended = three().call_json::<settle>(&format!(r#"{{"id":"june",{BATCH}}}"#));
    assert_eq!(json(&ended), r#"{"done":5,"total":5,"resumed_from":0}"#);
    assert_eq!(ended.checkpoints(), 5);
    assert_eq!(ended.commits(), 6, "one for each transfer, and the end");
    let last = ended.progress().last().unwrap();
    assert_eq!((last.done, last.total, last.message.as_str()), (5, Some(5), "ada to bob: 1 ct"));
    let ended = ended.and_then().call_json::<settle>(&batch("june", 2));
    assert_eq!(json(&ended), r#"{"done":5,"total":5,"resumed_from":5}"#);
    let run = ended.and_then();
    audit(&run);
    assert_eq!(held(&run), HELD[BATCH_TOTAL]);
}

/// Wherever it is stopped, and however often it commits before and after.
#[test]
fn a_batch_that_was_stopped_goes_on_where_it_was() {
    for stopped_at in 1..=BATCH_TOTAL {
        for (every, then_every) in [(1, 1), (1, 3), (2, 1), (2, 2), (3, 2), (5, 1), (100, 100)] {
            let run = three().interrupt_at_checkpoint(stopped_at as u64);
            let ended = run.call_json::<settle>(&batch("june", every));
            assert!(error(&ended).is_interrupted());
            let done = (stopped_at - 1) / every * every;
            assert_eq!(ended.commits(), (done / every) as u64);
            let run = ended.and_then();
            audit(&run);
            assert_eq!(held(&run), HELD[done], "stopped at {stopped_at}, commits every {every}");

            let ended = run.call_json::<settle>(&batch("june", then_every));
            assert_eq!(json(&ended), format!(r#"{{"done":5,"total":5,"resumed_from":{done}}}"#));
            let run = ended.and_then();
            audit(&run);
            assert_eq!(held(&run), HELD[BATCH_TOTAL]);
        }
    }
}

#[test]
fn a_batch_that_is_always_stopped_gets_done_all_the_same() {
    let mut run = three();
    for (done, expected) in HELD.iter().enumerate().take(BATCH_TOTAL) {
        assert_eq!(held(&run), *expected);
        let ended = run.interrupt_at_checkpoint(2).call_json::<settle>(&batch("june", 1));
        assert_eq!(ended.result.is_ok(), done + 1 == BATCH_TOTAL);
        run = ended.and_then();
    }
    audit(&run);
    assert_eq!(held(&run), HELD[BATCH_TOTAL]);
}

#[test]
fn a_batch_that_conflicts_goes_on_where_it_was() {
    for conflict_at in 1..=3 {
        let ended = three().conflict_at_commit(conflict_at).call_json::<settle>(&batch("june", 2));
        assert!(error(&ended).code() == "conflict" && error(&ended).is_retryable());
        let done = 2 * (conflict_at as usize - 1);
        let ended = ended.and_then().call_json::<settle>(&batch("june", 2));
        assert_eq!(json(&ended), format!(r#"{{"done":5,"total":5,"resumed_from":{done}}}"#));
        assert_eq!(held(&ended.and_then()), HELD[BATCH_TOTAL]);
    }
}

#[test]
fn a_transfer_that_fails_ends_the_batch_until_it_is_put_right() {
    let input = |commit_every: usize| {
        let transfers = BATCH.replace(r#""cents":35"#, r#""cents":40"#);
        format!(r#"{{"id":"june","commit_every":{commit_every},{transfers}}}"#)
    };
    for (commit_every, done) in [(1, 3), (2, 2), (9, 0)] {
        let ended = three().call_json::<settle>(&input(commit_every));
        let (code, message) = (error(&ended).code(), error(&ended).message());
        let why = "transfer 3 of `june`: `cy` holds 35 cents, and 40 are to be transferred";
        assert_eq!((code, message), ("insufficient", format!("{why}; {done} of 5 are done").as_str()));
        assert_eq!(error(&ended).json_data(), Some(format!(r#"{{"index":3,"done":{done},"total":5}}"#).as_str()));
        let run = ended.and_then();
        audit(&run);
        assert_eq!(held(&run), HELD[done]);

        let ended = run.call_json::<transfer>(r#"{"from":"ada","to":"cy","cents":5}"#);
        let ended = ended.and_then().call_json::<settle>(&input(commit_every));
        assert_eq!(json(&ended), format!(r#"{{"done":5,"total":5,"resumed_from":{done}}}"#));
        audit(&ended.and_then());
    }
}

#[test]
fn an_id_stands_for_the_same_transfers_for_ever() {
    let ended = three().interrupt_at_checkpoint(3).call_json::<settle>(&batch("june", 1));
    let run = ended.and_then();
    for other in [BATCH.replace("35", "34"), BATCH.replace("lunch", "dinner"), BATCH.replace(r#""cy""#, r#""dan""#)] {
        let ended = run.clone().call_json::<settle>(&format!(r#"{{"id":"june",{other}}}"#));
        assert_eq!(
            error(&ended).to_string(),
            "batch-mismatch: the batch `june` was begun with other transfers, and 2 of its 5 are done; \
             repeat exactly those to go on with it, or choose another id"
        );
        assert_eq!(held(&ended.and_then()), HELD[2]);
    }
    let ended = run.call_json::<settle>(r#"{"id":"july","transfers":[{"from":"ada","to":"bob","cents":1}]}"#);
    assert_eq!(json(&ended), r#"{"done":1,"total":1,"resumed_from":0}"#);
}

#[test]
fn a_batch_that_cannot_be_is_refused_as_a_whole() {
    let transfers = BATCH.replace(r#"{"from":"ada","to":"cy","cents":5}"#, r#"{"from":"cy","to":"cy","cents":5}"#);
    let ended = three().call_json::<settle>(&format!(r#"{{"id":"june",{transfers}}}"#));
    assert_eq!(error(&ended).code(), "same-account");
    assert_eq!(error(&ended).json_data(), Some(r#"{"index":2,"done":0,"total":5}"#));
    assert_eq!(held(&ended.and_then()), HELD[0]);

    let ended = three().call_json::<settle>(r#"{"id":"june","transfers":[]}"#);
    assert_eq!(error(&ended).message(), "0 `transfers`; a batch has from 1 to 10000");
    let ended = three().call_json::<settle>(&batch("june", 0));
    assert_eq!(error(&ended).code(), "invalid-input");
    let ended = three().call_json::<settle>(&batch("june", 1).replace("30", "0"));
    assert!(error(&ended).message().starts_with("`transfers[1].cents`: 0 cents; a transfer moves 1 or more"));
}
