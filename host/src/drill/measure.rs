//! Stopping the victims and taking the times.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cases::Crowd;
use super::{CONFIRMED_WITHIN, Case, CaseReport, DrillError, WAKE_FACTOR, Waiting};
use crate::{Agent, Call, Cause, Component, End, Host, Interrupt, Outcome, Scope};

/// Victims that do not start within this are not going to.
const STARTED_WITHIN: Duration = Duration::from_secs(60);
/// A victim is left alone for up to this long before it is stopped, so that stops land at all points of its loop.
const RUN_FOR_MAX: Duration = Duration::from_micros(300);
/// The agent of the victims that are stopped as a crowd.
const AGENT: &str = "drill";
/// Who pulls the switch.
const ACTOR: &str = "drill";

#[derive(Default)]
pub(super) struct Samples {
    halted_us: Vec<f64>,
    released_us: Vec<f64>,
    unconfirmed: usize,
}

impl Samples {
    pub(super) fn add(&mut self, case: &Case, outcome: Option<Arc<Outcome>>) -> Result<(), DrillError> {
        let Some(outcome) = outcome else {
            self.unconfirmed += 1;
            return Ok(());
        };
        match &outcome.end {
            End::Stopped(stopped) if stopped.cause == Cause::Drill => {
                self.halted_us.push(crate::call::outcome::micros(stopped.halted));
                self.released_us.push(crate::call::outcome::micros(stopped.released));
                Ok(())
            }
            End::Refused(why) => Err(DrillError::Refused(why.clone())),
            end => {
                let why = end.error().map(|error| format!(": {error}")).unwrap_or_default();
                Err(DrillError::NotStopped { case: case.name, end: format!("{}{why}", end.status()) })
            }
        }
    }

    pub(super) fn report(mut self, case: &Case, wake_p99_us: f64) -> CaseReport {
        self.halted_us.sort_by(f64::total_cmp);
        self.released_us.sort_by(f64::total_cmp);
        let p99_us = percentile(&self.halted_us, 99);
        let met = p99_us <= case.target_us.max(WAKE_FACTOR * wake_p99_us);
        CaseReport {
            name: case.name.into(),
            runs: self.halted_us.len() + self.unconfirmed,
            p50_us: percentile(&self.halted_us, 50),
            p99_us,
            max_us: percentile(&self.halted_us, 100),
            released_p50_us: percentile(&self.released_us, 50),
            released_p99_us: percentile(&self.released_us, 99),
            released_max_us: percentile(&self.released_us, 100),
            unconfirmed: self.unconfirmed,
            target_us: case.target_us,
            passed: met && self.unconfirmed == 0 && !self.halted_us.is_empty(),
        }
    }
}

/// Of sorted values; the smallest that at least `percent` of them do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(rank).copied().unwrap_or(f64::NAN)
}

pub(super) async fn measure(host: &Host, component: &Component, case: &Case, runs: u32) -> Result<Samples, DrillError> {
    let mut samples = Samples::default();
    let drill = Drill { host, agent: host.agent(AGENT), component, case };
    match case.crowd {
        Crowd::One | Crowd::BeforeStart => {
            for run in 0..runs {
                let victim = drill.start();
                if case.crowd == Crowd::One {
                    drill.until_started(std::slice::from_ref(&victim), 1)?;
                    leave_alone(run);
                }
                samples.add(case, drill.stop(&victim).await)?;
            }
        }
        Crowd::OneOf(size) => {
            let mut crowd: Vec<Call> = (0..size).map(|_| drill.start()).collect();
            drill.until_started(&crowd, size)?;
            for run in 0..runs {
                leave_alone(run);
                let at = run as usize % size;
                // The others go on and one comes in for it, so the crowd stays as large as it is.
                drill.until_started(&crowd[at..=at], 1)?;
                samples.add(case, drill.stop(&crowd[at]).await)?;
                crowd[at] = drill.start();
            }
            drill.stop_all(crowd).await;
        }
        Crowd::All(size) => {
            for _ in 0..runs.div_ceil(u32::try_from(size).unwrap_or(u32::MAX)).max(3) {
                let crowd: Vec<Call> = (0..size).map(|_| drill.start()).collect();
                drill.until_started(&crowd, size)?;
                for outcome in drill.stop_all(crowd).await {
                    samples.add(case, outcome)?;
                }
            }
        }
    }
    Ok(samples)
}

struct Drill<'a> {
    host: &'a Host,
    agent: Agent,
    component: &'a Component,
    case: &'a Case,
}

impl Drill<'_> {
    fn start(&self) -> Call {
        self.agent.call(self.component, "victim", Value::Null).start()
    }

    /// Until `count` more victims do what the case is about. Looks instead of waiting to be told: whoever told it
    /// would have to run, and the victims keep all processors busy.
    fn until_started(&self, victims: &[Call], count: usize) -> Result<(), DrillError> {
        let begun = Instant::now();
        let waiting = self.host.shared::<Waiting>();
        let there = || match (&waiting, self.case.waits) {
            (Some(waiting), true) => waiting.0.load(Ordering::Acquire) >= count as u64 && !any_running(victims),
            _ => victims.iter().all(Call::has_started),
        };
        while !there() {
            if begun.elapsed() > STARTED_WITHIN {
                return Err(DrillError::NotStarted { case: self.case.name, within: STARTED_WITHIN });
            }
            thread::sleep(Duration::from_micros(20));
        }
        if let Some(waiting) = waiting {
            waiting.0.store(0, Ordering::Release);
        }
        Ok(())
    }

    async fn stop(&self, victim: &Call) -> Option<Arc<Outcome>> {
        victim.interrupt(Cause::Drill, ACTOR);
        confirmed(victim).await
    }

    async fn stop_all(&self, crowd: Vec<Call>) -> Vec<Option<Arc<Outcome>>> {
        self.host.interrupt(Scope::Everything, Interrupt::new(Cause::Drill, ACTOR));
        let mut outcomes = Vec::with_capacity(crowd.len());
        for victim in &crowd {
            outcomes.push(confirmed(victim).await);
        }
        outcomes
    }
}

pub(super) async fn confirmed(victim: &Call) -> Option<Arc<Outcome>> {
    tokio::time::timeout(CONFIRMED_WITHIN, victim.outcome()).await.ok()
}

fn any_running(victims: &[Call]) -> bool {
    victims.iter().any(Call::is_running)
}

/// A different while for each run, up to the bound, without any randomness: the steps never come back to the same point.
pub(super) fn leave_alone(run: u32) {
    let share = (f64::from(run) * 0.618_033_988_749_895).fract();
    let until = Instant::now() + RUN_FOR_MAX.mul_f64(share);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// What waking an idle thread costs, from the call that wakes it until it runs (µs, 99th percentile).
pub(super) fn wake_p99_us(runs: u32) -> f64 {
    let begun = Instant::now();
    let woken_ns = Arc::new(AtomicU64::new(0));
    let sleeper_ns = Arc::clone(&woken_ns);
    let sleeper = thread::spawn(move || {
        for _ in 0..runs {
            thread::park();
            sleeper_ns.store(elapsed_ns(begun), Ordering::Release);
        }
    });
    let mut samples = Vec::new();
    for _ in 0..runs {
        // Long enough for it to be asleep.
        thread::sleep(Duration::from_micros(200));
        woken_ns.store(0, Ordering::Release);
        let asked_ns = elapsed_ns(begun);
        sleeper.thread().unpark();
        let waited = Instant::now();
        while woken_ns.load(Ordering::Acquire) == 0 && waited.elapsed() < Duration::from_secs(1) {
            std::hint::spin_loop();
        }
        samples.push(woken_ns.load(Ordering::Acquire).saturating_sub(asked_ns) as f64 / 1e3);
        if sleeper.is_finished() {
            break;
        }
    }
    samples.sort_by(f64::total_cmp);
    (percentile(&samples, 99) * 10.0).round() / 10.0
}

fn elapsed_ns(begun: Instant) -> u64 {
    crate::clock::nanos(begun.elapsed())
}
