//! The drill: a host testing its own emergency stop.
//!
//! It loads hostile components, stops each many times from a thread that is not a guest worker, and reports what it
//! measured: from the interrupt until no guest instruction could run. What waking an idle thread costs on the same
//! machine in the same run is reported beside it, because nothing that waits can be faster.
//!
//! [`hold`] makes a host of its own for that; `live.rs` drills one that runs, beside the calls of others.
//!
//! Invariant: a figure that is reported was measured on a real stop. A call that ended in another way than by the drill's
//! interrupt is an error, not a sample.

mod cases;
pub(crate) mod live;
mod measure;

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use serde::Serialize;
use wasmtime::component::Linker;

pub use self::cases::Case;
pub use self::live::{LIVE_RUNS_DEFAULT, LIVE_RUNS_MAX};
pub use crate::log::{CaseReport, Drilled};
use crate::tools::LoadError;
use crate::{BuildError, CallCtx, CallLimits, Host, HostLimits, Source};

/// How many times each case is stopped if nothing else is said.
pub const RUNS_DEFAULT: u32 = 200;
/// A call that is not released by then is unconfirmed.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(2);
/// Nothing that waits for another thread can be faster than this multiple of waking one.
const WAKE_FACTOR: f64 = 3.0;
/// Where the victims' host functions are.
const PROBE: &str = "estop:drill/probe@0.1.0";

/// What a drill found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What waking an idle thread cost at the 99th percentile (µs).
    pub wake_p99_us: f64,
    /// What was stopped.
    pub cases: Vec<CaseReport>,
    /// Every case met its target.
    pub passed: bool,
}

/// A drill could not be held.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// Its host could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A victim could not be loaded.
    #[error("cannot load the victim of case `{case}`: {error}")]
    Load {
        /// Which case.
        case: &'static str,
        /// Why.
        error: LoadError,
    },
    /// A victim's text is wrong: a defect of estop.
    #[error("the victim of case `{case}` is not WebAssembly: {error}; please report this")]
    Victim {
        /// Which case.
        case: &'static str,
        /// Why.
        error: String,
    },
    /// A victim ended by itself, so that there was nothing to stop.
    #[error("a victim of case `{case}` was not stopped by the drill: {end}")]
    NotStopped {
        /// Which case.
        case: &'static str,
        /// How it ended.
        end: String,
    },
    /// A victim did not start in time.
    #[error("the victims of case `{case}` did not start within {} s; is the machine overloaded?", within.as_secs())]
    NotStarted {
        /// Which case.
        case: &'static str,
        /// The bound.
        within: Duration,
    },
    /// The host lets no call begin, so none of a drill either.
    #[error("no drill was held: {0}")]
    Refused(String),
    /// It did not come to its end.
    #[error("{0}")]
    CutShort(&'static str),
    /// One at a time.
    #[error("another drill is being held in this host; ask again when it is over")]
    Busy,
    /// More than a host that has other things to do can be asked for, or none.
    #[error("a drill of a host that runs stops each case 1 to {LIVE_RUNS_MAX} times, not {0} times")]
    Runs(u32),
    /// Its thread could not be started, or has ended before its time.
    #[error("the drill's thread cannot do its work: {0}")]
    Thread(std::io::Error),
}

/// Host calls that victims have made, so that the drill knows that they wait.
#[derive(Default)]
struct Waiting(AtomicU64);

/// Holds a drill on a host of its own. `watch` is told the name of each case before it begins.
///
/// # Errors
/// See [`DrillError`]. A stop that was slow is no error; the report says so.
pub async fn hold(runs: u32, mut watch: impl FnMut(&'static str)) -> Result<Report, DrillError> {
    let host = victims_host()?;
    let wake_p99_us = measure::wake_p99_us(runs.max(100));
    let mut cases = Vec::new();
    for case in cases::ALL {
        watch(case.name);
        let component = victim(&host, case).await?;
        let samples = measure::measure(&host, &component, case, runs).await?;
        cases.push(samples.report(case, wake_p99_us));
        host.unload(&component);
    }
    let passed = cases.iter().all(|case| case.passed);
    Ok(Report { wake_p99_us, cases, passed })
}

fn victims_host() -> Result<Host, BuildError> {
    let limits = HostLimits { calls_max: 4_096, sandboxes_max: 1_100, ..HostLimits::default() };
    let call_limits = CallLimits { deadline: Duration::from_secs(600), ..CallLimits::default() };
    Host::builder().limits(limits).call_limits(call_limits).share(Waiting::default()).interface(probe).build()
}

async fn victim(host: &Host, case: &Case) -> Result<crate::Component, DrillError> {
    let bytes = case.component().map_err(|error| DrillError::Victim { case: case.name, error })?;
    let source = Source::bytes(bytes).named(format!("drill: {}", case.name));
    host.load(source).await.map_err(|error| DrillError::Load { case: case.name, error })
}

/// The victims' host functions.
fn probe(linker: &mut Linker<CallCtx>) -> wasmtime::Result<()> {
    let mut probe = linker.instance(PROBE)?;
    probe.func_wrap_async("wait", |cx, (): ()| {
        count(cx.data());
        Box::new(std::future::pending::<wasmtime::Result<()>>())
    })?;
    probe.func_wrap_async("sleep", |cx, (): ()| {
        count(cx.data());
        Box::new(async {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            Ok(())
        })
    })?;
    probe.func_wrap("describing", |cx, (): ()| Ok((cx.data().is_describing(),)))
}

fn count(ctx: &CallCtx) {
    if let Some(waiting) = ctx.shared::<Waiting>() {
        waiting.0.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
    }
}
