//! Reads and writes state in every way that a transaction must withstand. The bucket is `test`.

use std::thread;
use std::time::Duration;

use estop_tool::kv::{self, Bucket, Swapped};
use estop_tool::{ToolError, commit, progress};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const BUCKET: &str = "test";

fn bucket() -> Result<Bucket, ToolError> {
    kv::open(BUCKET)
}

/// One key.
#[derive(Deserialize, JsonSchema)]
pub struct Key {
    key: String,
}

/// One key and what to do with its number.
#[derive(Deserialize, JsonSchema)]
pub struct KeyValue {
    key: String,
    value: i64,
}

/// One key and what to add to its number.
#[derive(Deserialize, JsonSchema)]
pub struct KeyDelta {
    key: String,
    delta: i64,
}

/// How long to wait between reading and writing.
#[derive(Deserialize, JsonSchema)]
pub struct Wait {
    key: String,
    wait_ms: u64,
}

/// What a key is expected to hold, and what it shall hold then.
#[derive(Deserialize, JsonSchema)]
pub struct Swap {
    key: String,
    expected: Option<i64>,
    value: i64,
}

/// How much to write.
#[derive(Deserialize, JsonSchema)]
pub struct Amount {
    /// Keys.
    count: u64,
    /// Of each value.
    bytes: usize,
}

/// The number of a key.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Value {
    value: Option<i64>,
}

/// Keys in the store's order.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Listing {
    keys: Vec<String>,
}

/// Whether something was done.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Done {
    done: bool,
}

const DONE: Done = Done { done: true };

/// Read a key.
#[estop_tool::tool(read_only, idempotent)]
pub fn get(input: Key) -> Result<Value, ToolError> {
    Ok(Value { value: bucket()?.get(&input.key)? })
}

/// Write a key.
#[estop_tool::tool(destructive, idempotent)]
pub fn set(input: KeyValue) -> Result<Done, ToolError> {
    bucket()?.set(&input.key, &input.value)?;
    Ok(DONE)
}

/// Remove a key.
#[estop_tool::tool(destructive, idempotent)]
pub fn delete(input: Key) -> Result<Done, ToolError> {
    bucket()?.delete(&input.key)?;
    Ok(DONE)
}

/// Read a key, add, and write it.
#[estop_tool::tool]
pub fn add(input: KeyDelta) -> Result<Value, ToolError> {
    let bucket = bucket()?;
    let value = bucket.get(&input.key)?.unwrap_or(0) + input.delta;
    bucket.set(&input.key, &value)?;
    Ok(Value { value: Some(value) })
}

/// Add by the store's own increment.
#[estop_tool::tool]
pub fn increment(input: KeyDelta) -> Result<Value, ToolError> {
    Ok(Value { value: Some(bucket()?.increment(&input.key, input.delta)?) })
}

/// Write a key only if it holds what is expected.
#[estop_tool::tool(destructive)]
pub fn swap(input: Swap) -> Result<Done, ToolError> {
    let bucket = bucket()?;
    let seen = bucket.compare_and_swap(&input.key)?;
    let done = seen.current()? == input.expected && matches!(seen.swap(&input.value)?, Swapped::Done);
    Ok(Done { done })
}

/// Change a key between the look and the swap: the swap must not be done.
#[estop_tool::tool(destructive)]
pub fn swap_late(input: KeyValue) -> Result<Done, ToolError> {
    let bucket = bucket()?;
    let seen = bucket.compare_and_swap(&input.key)?;
    bucket.set(&input.key, &input.value)?;
    Ok(Done { done: matches!(seen.swap(&0)?, Swapped::Done) })
}

/// List all keys.
#[estop_tool::tool(read_only, idempotent)]
pub fn list() -> Result<Listing, ToolError> {
    Ok(Listing { keys: bucket()?.keys().collect::<Result<_, _>>()? })
}

/// Write `count` keys `many-0`, `many-1`, … of `bytes` bytes each, in one batch.
#[estop_tool::tool(destructive)]
pub fn write_many(input: Amount) -> Result<Done, ToolError> {
    let value = "x".repeat(input.bytes);
    let keys: Vec<String> = (0..input.count).map(|index| format!("many-{index}")).collect();
    bucket()?.set_many(keys.iter().map(|key| (key.as_str(), &value)))?;
    Ok(DONE)
}

/// Read all `many-…` keys and remove them, in batches. Answers how many there were.
#[estop_tool::tool(destructive)]
pub fn remove_many(input: Amount) -> Result<Value, ToolError> {
    let bucket = bucket()?;
    let keys: Vec<String> = (0..input.count).map(|index| format!("many-{index}")).collect();
    let values: Vec<Option<String>> = bucket.get_many(&keys)?;
    bucket.delete_many(&keys)?;
    let found = values.iter().flatten().filter(|value| value.len() == input.bytes).count();
    Ok(Value { value: i64::try_from(found).ok() })
}

/// Read a key, report progress 1, wait, and write the number plus one.
#[estop_tool::tool]
pub fn read_then_wait(input: Wait) -> Result<Value, ToolError> {
    let bucket = bucket()?;
    let value = bucket.get(&input.key)?.unwrap_or(0) + 1;
    progress(1, 2, "read");
    thread::sleep(Duration::from_millis(input.wait_ms));
    bucket.set(&input.key, &value)?;
    Ok(Value { value: Some(value) })
}

/// Write a key, commit, write it again plus one, and fail.
#[estop_tool::tool(destructive)]
pub fn commit_then_fail(input: KeyValue) -> Result<Done, ToolError> {
    let bucket = bucket()?;
    bucket.set(&input.key, &input.value)?;
    commit()?;
    bucket.set(&input.key, &(input.value + 1))?;
    Err(ToolError::failed("as-asked", "the second write must not be seen"))
}

/// Write a key, commit, report progress 1, write it again plus one, and never end.
#[estop_tool::tool(destructive)]
pub fn commit_then_spin(input: KeyValue) -> Result<Done, ToolError> {
    let bucket = bucket()?;
    bucket.set(&input.key, &input.value)?;
    commit()?;
    bucket.set(&input.key, &(input.value + 1))?;
    progress(1, None, "committed");
    loop {
        std::hint::spin_loop();
    }
}

/// Write a key, commit, write it again plus one, and commit again.
#[estop_tool::tool(destructive)]
pub fn commit_twice(input: KeyValue) -> Result<Done, ToolError> {
    let bucket = bucket()?;
    bucket.set(&input.key, &input.value)?;
    commit()?;
    bucket.set(&input.key, &(input.value + 1))?;
    commit()?;
    Ok(DONE)
}

/// Write a key and panic.
#[estop_tool::tool(destructive)]
pub fn write_then_panic(input: KeyValue) -> Result<Done, ToolError> {
    bucket()?.set(&input.key, &input.value)?;
    panic!("as asked, after writing `{}`", input.key);
}

/// Open a bucket by another name.
#[estop_tool::tool(read_only)]
pub fn open(input: Key) -> Result<Done, ToolError> {
    kv::open(&input.key)?;
    Ok(DONE)
}

estop_tool::export!(
    get,
    set,
    delete,
    add,
    increment,
    swap,
    swap_late,
    list,
    write_many,
    remove_many,
    read_then_wait,
    commit_then_fail,
    commit_then_spin,
    commit_twice,
    write_then_panic,
    open,
);

#[cfg(test)]
mod tests {
    use estop_tool::testing::Run;

    use super::*;

    #[test]
    fn increments_are_numbers_too() {
        let key = || "n".to_owned();
        let first = Run::new().call(|| increment(KeyDelta { key: key(), delta: 4 }));
        let second = first.and_then().call(|| add(KeyDelta { key: key(), delta: -1 }));
        assert_eq!(second.result, Ok(Value { value: Some(3) }));
        assert_eq!(second.and_then().call(|| get(Key { key: key() })).result, Ok(Value { value: Some(3) }));
    }

    #[test]
    fn a_failure_keeps_what_was_committed() {
        let ended = Run::new().call_json::<commit_then_fail>(r#"{"key":"a","value":1}"#);
        assert_eq!(ended.result.as_ref().unwrap_err().code(), "as-asked");
        assert_eq!(ended.state("test", "a"), Some(1));
    }

    #[test]
    fn a_swap_needs_what_it_expects() {
        let input = r#"{"key":"a","expected":1,"value":2}"#;
        let ended = Run::new().call_json::<swap>(input);
        assert_eq!(ended.result.unwrap().json, r#"{"done":false}"#);
        let ended = Run::new().state("test", "a", &1).call_json::<swap>(input);
        assert_eq!(ended.state("test", "a"), Some(2));
        let ended = Run::new().call_json::<swap_late>(r#"{"key":"a","value":2}"#);
        assert_eq!(ended.result.unwrap().json, r#"{"done":false}"#);
    }

    #[test]
    fn many_are_listed_page_by_page() {
        let ended = Run::new().call(|| write_many(Amount { count: 25, bytes: 3 }));
        let again = ended.and_then();
        assert_eq!(again.clone().call(list).result.unwrap().keys.len(), 25);
        let ended = again.call(|| remove_many(Amount { count: 30, bytes: 3 }));
        assert_eq!(ended.result, Ok(Value { value: Some(25) }));
    }
}
