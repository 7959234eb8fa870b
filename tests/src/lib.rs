//! What the tests share: guests built by the real toolchain, hostile guests written as text, and hosts to run them on.
//!
//! Nothing here sleeps to wait for something. A guest that has to be caught at a certain point says so, through progress
//! or through a host function, and the test waits for that.

pub mod clock;
pub mod counter;
pub mod guests;
pub mod held;
pub mod home;
pub mod ledger;
pub mod output;
pub mod probe;
pub mod processes;
pub mod stage;

use std::sync::Arc;
use std::time::Duration;

use estop::log::Entry;
use estop::{CallLimits, Cause, Component, End, Host, HostBuilder, HostLimits, Outcome, Source};
use serde_json::Value;

/// Every cause there is.
pub const CAUSES: [Cause; 11] = [
    Cause::Operator,
    Cause::Halted,
    Cause::Shutdown,
    Cause::Parent,
    Cause::Deadline,
    Cause::Fuel,
    Cause::Memory,
    Cause::Priority,
    Cause::Cancelled,
    Cause::Disconnected,
    Cause::Drill,
];

/// Generous: a test that needs this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A small host: tests run beside each other, and each reserves address space.
pub fn small() -> HostBuilder {
    let limits = HostLimits { calls_max: 1024, sandboxes_max: 64, workers: 2, ..HostLimits::default() };
    let call_limits = CallLimits { deadline: PATIENCE, ..CallLimits::default() };
    Host::builder().limits(limits).call_limits(call_limits)
}

/// A component of `tests/guests` or `example-tools`, built and loaded.
///
/// # Panics
/// If it does not build or load: then the test cannot say anything.
pub async fn load(host: &Host, guest: &str) -> Component {
    match host.load(Source::file(guests::path(guest))).await {
        Ok(component) => component,
        Err(error) => panic!("{guest}: {error}"),
    }
}

/// Calls a tool of agent `default` and waits for the outcome.
///
/// # Panics
/// If there is none within [`PATIENCE`].
pub async fn call(host: &Host, component: &Component, tool: &str, input: Value) -> Arc<Outcome> {
    let call = host.agent("default").call(component, tool, input).start();
    within(call.outcome()).await
}

/// Waits, but not for ever.
///
/// # Panics
/// If it takes longer than [`PATIENCE`].
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("nothing happened within {PATIENCE:?}"),
    }
}

/// The output of a call that must have completed.
///
/// # Panics
/// If it has not.
pub fn completed(outcome: &Arc<Outcome>) -> &Value {
    match &outcome.end {
        End::Completed(output) => &output.json,
        end => panic!("{} did not complete: {end:?}; standard error: {}", outcome.call, outcome.stderr),
    }
}

/// The whole log, as JSON.
///
/// # Panics
/// If the store cannot be read.
pub async fn log(host: &Host) -> Vec<Value> {
    match host.entries(0, usize::MAX).await {
        Ok(entries) => entries.iter().map(Entry::to_json).collect(),
        Err(error) => panic!("{error}"),
    }
}

/// The entry of a call's end.
///
/// # Panics
/// If there is not exactly one.
pub fn end_entry<'a>(log: &'a [Value], outcome: &Outcome) -> &'a Value {
    let id = outcome.call.to_string();
    let found: Vec<_> =
        log.iter().filter(|e| e["call"] == id && (e["kind"] == "end" || e["kind"] == "refusal")).collect();
    match found.as_slice() {
        [entry] => entry,
        entries => panic!("{id} has {} entries of its end: {entries:?}", entries.len()),
    }
}
