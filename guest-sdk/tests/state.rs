//! What a call has written is kept or discarded as a whole, natively as in a host.

use estop_tool::kv::{self, Swapped};
use estop_tool::testing::Run;
use estop_tool::{Cause, ToolError, checkpoint, commit, interrupted};

const BUCKET: &str = "b";

/// Writes 1, 2, … to `last`, and commits each.
fn count(to: u64) -> Result<u64, ToolError> {
    let bucket = kv::open(BUCKET)?;
    for number in 1..=to {
        checkpoint()?;
        bucket.set("last", &number)?;
        commit()?;
    }
    Ok(to)
}

#[test]
fn success_commits_and_an_error_discards() {
    let ended = Run::new().call(|| kv::open(BUCKET)?.set("a", "text"));
    assert_eq!(ended.state(BUCKET, "a"), Some("text".to_owned()));
    assert_eq!(ended.commits(), 1);

    let ended = ended.and_then().call(|| {
        let bucket = kv::open(BUCKET)?;
        bucket.set("a", "other")?;
        bucket.delete("a")?;
        assert!(!bucket.exists("a")?);
        Err::<(), _>(ToolError::failed("no", "not today"))
    });
    assert_eq!(ended.state(BUCKET, "a"), Some("text".to_owned()));
    assert_eq!(ended.commits(), 0);
}

#[test]
fn an_interrupt_lasts_and_nothing_more_is_committed() {
    let ended = Run::new().interrupt_at_checkpoint(3).call(|| count(10));
    assert!(ended.result.as_ref().unwrap_err().is_interrupted());
    assert_eq!(ended.state(BUCKET, "last"), Some(2));
    assert_eq!(ended.checkpoints(), 3);

    let stubborn = Run::new().interrupt_at_checkpoint(1).cause(Cause::Deadline).call(|| {
        assert_eq!(interrupted(), Some(Cause::Deadline));
        assert_eq!(checkpoint().unwrap_err().cause(), Cause::Deadline);
        kv::open(BUCKET)?.set("a", &1)?;
        assert_eq!(commit().unwrap_err().code(), "interrupted");
        Ok(1)
    });
    assert_eq!(stubborn.result.as_ref().unwrap_err().code(), "interrupted");
    assert!(stubborn.keys(BUCKET).is_empty());
}

#[test]
fn a_conflict_is_for_good() {
    let ended = Run::new().conflict_at_commit(3).call(|| {
        let error = count(10).unwrap_err();
        assert_eq!(error.code(), "conflict");
        assert!(error.is_retryable());
        kv::open(BUCKET)?.set("after", &1)?;
        Ok(())
    });
    assert_eq!(ended.result.as_ref().unwrap_err().code(), "conflict");
    assert_eq!(ended.keys(BUCKET), ["last"]);
    assert_eq!(ended.state(BUCKET, "last"), Some(2));
}

#[test]
fn the_commit_at_the_end_can_conflict() {
    let ended = Run::new().conflict_at_commit(1).call(|| kv::open(BUCKET)?.set("a", &1));
    assert_eq!(ended.result.as_ref().unwrap_err().code(), "conflict");
    assert!(ended.keys(BUCKET).is_empty());
}

#[test]
fn a_panic_leaves_nothing_behind() {
    let panicked = std::panic::catch_unwind(|| {
        Run::new().interrupt_at_checkpoint(1).call(|| -> Result<(), ToolError> {
            kv::open(BUCKET)?.set("a", &1)?;
            panic!("as asked")
        })
    });
    assert!(panicked.is_err());
    assert_eq!(interrupted(), None);
    assert_eq!(kv::open(BUCKET).unwrap().get::<u8>("a"), Ok(None));
}

#[test]
fn without_a_run_the_thread_has_a_state_of_its_own() {
    let bucket = kv::open(BUCKET).unwrap();
    bucket.set("a", &1).unwrap();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| kv::open(BUCKET).unwrap().exists("a").unwrap());
        assert!(!other.join().unwrap());
    });
    assert!(bucket.exists("a").unwrap());
}

#[test]
fn keys_come_page_by_page_and_only_of_their_bucket() {
    let ended = Run::new().state("other", "x", &1).state(BUCKET, "gone", &1).call(|| {
        let bucket = kv::open(BUCKET)?;
        bucket.delete("gone")?;
        for number in 10..45 {
            bucket.set(&number.to_string(), &number)?;
        }
        let keys: Vec<String> = bucket.keys().collect::<Result<_, _>>()?;
        let expected: Vec<String> = (10..45).map(|number| number.to_string()).collect();
        assert_eq!(keys, expected);
        assert_eq!(kv::open("none")?.keys().count(), 0);
        Ok(())
    });
    assert_eq!(ended.keys(BUCKET).len(), 35);
    assert_eq!(ended.keys("other"), ["x"]);
}

#[test]
fn increments_are_json_numbers() -> Result<(), ToolError> {
    let bucket = kv::open(BUCKET)?;
    assert_eq!(bucket.increment("n", 5)?, 5);
    assert_eq!(bucket.increment("n", -7)?, -2);
    assert_eq!(bucket.get::<i64>("n")?, Some(-2));
    bucket.set("n", &i64::MAX)?;
    assert_eq!(bucket.increment("n", 1).unwrap_err().code(), "store");
    bucket.set("n", "five")?;
    assert_eq!(bucket.increment("n", 1).unwrap_err().code(), "store");
    Ok(())
}

#[test]
fn a_swap_is_done_only_if_nothing_changed() -> Result<(), ToolError> {
    let bucket = kv::open(BUCKET)?;
    let seen = bucket.compare_and_swap("a")?;
    assert_eq!(seen.current::<u8>()?, None);
    bucket.set("a", &1)?;
    let Swapped::Changed(seen) = seen.swap(&2)? else { panic!("it was changed") };
    assert_eq!(seen.current::<u8>()?, Some(1));
    assert!(matches!(seen.swap(&2)?, Swapped::Done));
    assert_eq!(bucket.get::<u8>("a")?, Some(2));
    Ok(())
}

#[test]
fn an_update_tries_again_but_not_for_ever() -> Result<(), ToolError> {
    let bucket = kv::open(BUCKET)?;
    let mut attempts = 0;
    let value = bucket.update("a", |before: Option<u64>| {
        attempts += 1;
        if attempts < 3 {
            bucket.increment("a", 10)?;
        }
        Ok(before.unwrap_or(0) + 1)
    })?;
    assert_eq!((attempts, value), (3, 21));

    let error = bucket.update("a", |before: Option<u64>| {
        bucket.increment("a", 1)?;
        Ok(before.unwrap_or(0))
    });
    assert_eq!(error.unwrap_err().code(), "conflict");

    let failed = bucket.update("new", |_: Option<u64>| Err(ToolError::failed("no", "")));
    assert_eq!(failed.unwrap_err().code(), "no");
    assert!(!bucket.exists("new")?);
    Ok(())
}

#[test]
fn many_at_once() -> Result<(), ToolError> {
    let bucket = kv::open(BUCKET)?;
    bucket.set_many([("a", &1), ("b", &2)])?;
    assert_eq!(bucket.get_many::<u8>(&["b", "none", "a", "b"])?, [Some(2), None, Some(1), Some(2)]);
    bucket.delete_many(&["a", "none"])?;
    assert_eq!(bucket.keys().collect::<Result<Vec<_>, _>>()?, ["b"]);
    Ok(())
}

#[test]
fn a_value_of_another_type_is_told() -> Result<(), ToolError> {
    let bucket = kv::open(BUCKET)?;
    bucket.set_bytes("raw", &[0xff])?;
    assert_eq!(bucket.get_bytes("raw")?, Some(vec![0xff]));
    let error = bucket.get::<String>("raw").unwrap_err();
    assert_eq!(error.code(), "bad-value");
    assert!(error.message().starts_with("`raw` in the bucket `b`: "), "{error}");
    Ok(())
}
