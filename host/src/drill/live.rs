//! Drilling a host that runs, beside the calls of others.
//!
//! Invariants:
//! - A drill stops its own calls and nobody else's: each alone, by its id, through the same function as every other stop.
//! - It has one call at a time, on a thread of its own, rests between two, and takes a bounded time. To the guest workers it
//!   is less than one more call, and no other one is less urgent.
//! - What it found is entered, also that it could not be held.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::oneshot;

use super::cases::{self, Case, Crowd};
use super::measure::{Samples, confirmed, leave_alone, wake_p99_us};
use super::{CONFIRMED_WITHIN, DrillError};
use crate::call::load::Load;
use crate::call::{CallBuilder, End, PRIORITY_MIN};
use crate::host::Core;
use crate::interrupt::halts::HaltScope;
use crate::interrupt::{HOST_ACTOR, TEXT_BYTES_MAX, cut};
use crate::log::{CaseReport, Drilled, EntryKind, Record};
use crate::tools::{Component, Source};
use crate::{Call, Cause, Interrupt, Scope};

/// How many times each case is stopped if nothing else is said. Each time is two or three entries of the log.
pub const LIVE_RUNS_DEFAULT: u32 = 20;
/// How many times each case is stopped at most.
pub const LIVE_RUNS_MAX: u32 = 1_000;
/// All of a drill. A victim that does not start, and one that is not confirmed, may come on top; either ends it.
const HELD_WITHIN: Duration = Duration::from_secs(8);
/// Between two runs. Whoever else works here has to get to the processors and to the log meanwhile.
const REST: Duration = Duration::from_millis(2);
/// What was found is told once it is in the log, or after this long.
const ENTERED_WITHIN: Duration = Duration::from_secs(1);
/// A victim that has not started by then has to wait for the calls of others for too long.
const STARTED_WITHIN: Duration = Duration::from_secs(2);
/// No drill takes longer, for whoever waits for its answer.
pub(crate) const OVER_WITHIN: Duration =
    HELD_WITHIN.saturating_add(STARTED_WITHIN).saturating_add(CONFIRMED_WITHIN).saturating_add(ENTERED_WITHIN);
/// Between two looks whether a victim has started.
const LOOK_EVERY: Duration = Duration::from_micros(20);
/// Measured beforehand.
const WAKES: u32 = 100;
/// The victims' only tool.
const TOOL: &str = "victim";

/// See [`Host::drill`](crate::Host::drill).
pub(crate) async fn hold(core: &Arc<Core>, mut actor: String, runs: u32) -> Result<Drilled, DrillError> {
    if !(1..=LIVE_RUNS_MAX).contains(&runs) {
        return Err(DrillError::Runs(runs));
    }
    cut(&mut actor, TEXT_BYTES_MAX);
    let turn = Turn::take(core)?;
    let (done, found) = oneshot::channel();
    let core = Arc::clone(core);
    let drill = move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(done.send(Err(DrillError::Thread(error)))),
        };
        let drilled = runtime.block_on(Drill::new(&core, actor, runs).hold());
        // The next one may begin as soon as this one is told.
        drop(turn);
        // Whoever asked may have gone away; it is entered.
        let _ = done.send(drilled);
    };
    thread::Builder::new().name("estop-drill".into()).spawn(drill).map_err(DrillError::Thread)?;
    let ended = || DrillError::Thread(std::io::Error::other("it has ended; please report this"));
    found.await.unwrap_or_else(|_| Err(ended()))
}

/// One drill at a time.
struct Turn(Arc<AtomicBool>);

impl Turn {
    fn take(core: &Core) -> Result<Self, DrillError> {
        if core.drilling.swap(true, Ordering::AcqRel) {
            return Err(DrillError::Busy);
        }
        Ok(Self(Arc::clone(&core.drilling)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

struct Drill<'a> {
    core: &'a Arc<Core>,
    until: Instant,
    found: Drilled,
}

impl<'a> Drill<'a> {
    fn new(core: &'a Arc<Core>, actor: String, runs: u32) -> Self {
        let found = Drilled {
            actor,
            runs,
            wake_p99_us: f64::NAN,
            cases: Vec::new(),
            others: 0,
            others_interrupted: 0,
            passed: false,
            not_held: None,
        };
        Self { core, until: Instant::now() + HELD_WITHIN, found }
    }

    /// All of it, and its entry.
    async fn hold(mut self) -> Result<Drilled, DrillError> {
        let held = self.hold_cases().await;
        self.found.not_held = held.as_ref().err().map(ToString::to_string);
        let all_passed = self.found.cases.len() == cases::LIVE.len() && self.found.cases.iter().all(|case| case.passed);
        self.found.passed = held.is_ok() && all_passed && self.found.others_interrupted == 0;
        self.core.log.record(Record::Noted(EntryKind::Drill(Box::new(self.found.clone()))));
        // A log that cannot be written says so by itself, and refuses calls.
        let _ = tokio::time::timeout(ENTERED_WITHIN, self.core.log.flush()).await;
        match held {
            Err(error @ DrillError::Refused(_)) => Err(error),
            // What it found until then is told, and why it did not go on.
            _ => Ok(self.found),
        }
    }

    async fn hold_cases(&mut self) -> Result<(), DrillError> {
        if let Some(why) = self.refused().await {
            return Err(DrillError::Refused(why));
        }
        self.found.wake_p99_us = wake_p99_us(WAKES);
        for (case, left) in cases::LIVE.iter().zip((1..=cases::LIVE.len() as u32).rev()) {
            let victim = Victim::load(self.core, case, self.left()).await?;
            // Each case has its share of what is left.
            let until = Instant::now() + self.left() / left;
            let report = self.measure(case, &victim.component, until).await?;
            let unconfirmed = report.unconfirmed;
            self.found.cases.push(report);
            if unconfirmed > 0 {
                // It holds its sandbox. More of that would harm those who have work to do.
                let remaining = "a stop was not confirmed, so no further ones were tried";
                return if left > 1 { Err(DrillError::CutShort(remaining)) } else { Ok(()) };
            }
        }
        Ok(())
    }

    /// Why no call of the host's own may start, if none may: a halt, for example.
    async fn refused(&self) -> Option<String> {
        if let Err(why) = self.core.halts.current().await {
            return Some(why);
        }
        let (halts, unreadable) = self.core.halts.in_force();
        let covers = |scope: &HaltScope| match scope {
            HaltScope::Host(host) => *host == self.core.id,
            scope => scope.covers_agent(HOST_ACTOR),
        };
        let halted = halts.iter().find(|halt| covers(&halt.scope)).map(|halt| halt.says()).or(unreadable);
        let halted =
            halted.map(|says| format!("the host is halted, and a halt refuses every call, also these: {says}"));
        halted.or_else(|| self.core.refuses())
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    async fn measure(&mut self, case: &Case, victim: &Component, until: Instant) -> Result<CaseReport, DrillError> {
        let mut samples = Samples::default();
        for run in 0..self.found.runs {
            if Instant::now() >= until {
                break;
            }
            let call = CallBuilder::own(Arc::clone(self.core), victim.clone(), TOOL, Value::Null).start();
            if case.crowd == Crowd::One {
                until_started(&call, case)?;
                leave_alone(run);
            }
            let interrupt = Interrupt::new(Cause::Drill, self.found.actor.clone());
            let interruption = self.core.interrupt(Scope::Call(call.id()), interrupt);
            let strangers = interruption.reached().filter(|(reached, _)| *reached != call.id()).count();
            self.count_others(victim, strangers);
            let outcome = confirmed(&call).await;
            let is_confirmed = outcome.is_some();
            // It has given way to somebody who has work to do, before it could be stopped.
            let gave_way = |end: &End| end.stopped().is_some_and(|stopped| stopped.cause == Cause::Priority);
            if !outcome.as_ref().is_some_and(|outcome| gave_way(&outcome.end)) {
                samples.add(case, outcome)?;
            }
            if !is_confirmed {
                break;
            }
            thread::sleep(REST);
        }
        Ok(samples.report(case, self.found.wake_p99_us))
    }

    /// Who else is there, and whether any of them was stopped by a drill, whatever the interrupt says of itself.
    fn count_others(&mut self, victim: &Component, reached: usize) {
        let (mut others, mut stopped) = (0, 0);
        self.core.inventory.walk(|call| {
            let is_victim = *call.agent == *HOST_ACTOR && call.component() == Some(victim.digest());
            if !is_victim {
                others += 1;
                let by_drill = |by: &crate::interrupt::Delivered| by.interrupt.cause == Cause::Drill;
                stopped += usize::from(call.interrupted().is_some_and(|by| by_drill(&by)));
            }
        });
        self.found.others = self.found.others.max(others);
        self.found.others_interrupted += stopped.max(reached) as u64;
    }
}

/// A victim that is loaded, until it is dropped.
struct Victim<'a> {
    core: &'a Core,
    component: Component,
}

impl<'a> Victim<'a> {
    async fn load(core: &'a Arc<Core>, case: &Case, within: Duration) -> Result<Self, DrillError> {
        let case_name = case.name;
        let bytes = case.live_component().map_err(|error| DrillError::Victim { case: case_name, error })?;
        let load = Load::start(core, Source::bytes(bytes).named(format!("drill: {case_name}")), PRIORITY_MIN);
        let slow = |_| DrillError::NotStarted { case: case_name, within };
        let loaded = tokio::time::timeout(within, load.loaded()).await.map_err(slow)?;
        let component = loaded.map_err(|error| DrillError::Load { case: case_name, error })?;
        Ok(Self { core, component })
    }
}

impl Drop for Victim<'_> {
    fn drop(&mut self) {
        self.core.tools.unload(&self.component);
    }
}

/// Until the victim does what the case is about, or has ended. Looks instead of waiting to be told, as whoever told it would
/// have to run, and the calls of others may keep all processors busy.
fn until_started(call: &Call, case: &Case) -> Result<(), DrillError> {
    let begun = Instant::now();
    // What waits in the host is on no processor.
    while !(call.has_started() && (!case.waits || !call.is_running())) {
        if call.try_outcome().is_some() {
            // The caller says how.
            return Ok(());
        }
        if begun.elapsed() > STARTED_WITHIN {
            return Err(DrillError::NotStarted { case: case.name, within: STARTED_WITHIN });
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
