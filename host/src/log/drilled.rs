//! What a drill has found, as it is reported and entered.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};

/// What a drill of a host that runs has found. See [`Host::drill`](crate::Host::drill).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Drilled {
    /// Who asked for it.
    pub actor: String,
    /// How many times each case was to be stopped.
    pub runs: u32,
    /// What waking an idle thread cost at the 99th percentile (µs).
    #[serde(deserialize_with = "figure")]
    pub wake_p99_us: f64,
    /// What was stopped. A case with fewer runs was cut short, because a drill takes a bounded time.
    pub cases: Vec<CaseReport>,
    /// The most calls of others that ran or waited in the host meanwhile.
    pub others: u64,
    /// How often the drill has reached one of these. Anything but never is a defect of estop.
    pub others_interrupted: u64,
    /// Every case met its target, every stop was confirmed, and nobody else was reached.
    pub passed: bool,
    /// Why there was no drill, or not all of one.
    pub not_held: Option<String>,
}

/// What was measured of one case. Times are from the interrupt; where nothing was measured they are no numbers, and `null`
/// in JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CaseReport {
    /// What the victims did.
    pub name: Cow<'static, str>,
    /// Calls stopped.
    pub runs: usize,
    /// Until the call was halted, median (µs).
    #[serde(deserialize_with = "figure")]
    pub p50_us: f64,
    /// Until the call was halted, 99th percentile (µs).
    #[serde(deserialize_with = "figure")]
    pub p99_us: f64,
    /// Until the call was halted, the worst (µs).
    #[serde(deserialize_with = "figure")]
    pub max_us: f64,
    /// Until the store was dropped, median (µs).
    #[serde(deserialize_with = "figure")]
    pub released_p50_us: f64,
    /// Until the store was dropped, 99th percentile (µs).
    #[serde(deserialize_with = "figure")]
    pub released_p99_us: f64,
    /// Until the store was dropped, the worst (µs).
    #[serde(deserialize_with = "figure")]
    pub released_max_us: f64,
    /// Calls that were not released within two seconds.
    pub unconfirmed: usize,
    /// What the 99th percentile should be at most (µs), unless waking a thread is slow on this machine.
    pub target_us: f64,
    /// It is, and everything was confirmed.
    pub passed: bool,
}

/// JSON has no word for what is no number.
fn figure<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}
