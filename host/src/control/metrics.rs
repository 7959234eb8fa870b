//! `GET /v1/metrics`: what a host counts and how it is, as Prometheus' text format has it.
//!
//! Invariant: it only reads: nothing that stops, runs or writes waits for whoever scrapes.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Extension, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::protocol::CallPhase;
use super::server::{Desk, Peer, Refused, phase, program};
use crate::host::Core;
use crate::interrupt::Cause;
use crate::metrics::{BOUNDS_NS, Committed, Counter, Histogram, STATUSES, Sizes};

/// The text format that Prometheus and everything like it reads.
const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn routes() -> Router<Arc<Desk>> {
    Router::new().route("/v1/metrics", get(metrics))
}

async fn metrics(State(desk): State<Arc<Desk>>, Extension(peer): Extension<Peer>) -> Result<Response, Refused> {
    peer.asked.looks();
    let work_out = || {
        let core = desk.core()?;
        let mut text = Text::default();
        host(&mut text, &desk, &core);
        calls(&mut text, &core);
        stops(&mut text, &core);
        state(&mut text, &core);
        log(&mut text, &core);
        threads(&mut text, &desk, &core);
        Ok(text.0.into())
    };
    let text = desk.metrics.get(work_out).await?;
    peer.asked.is_told();
    Ok(([(CONTENT_TYPE, TYPE)], text).into_response())
}

fn host(text: &mut Text, desk: &Desk, core: &Core) {
    text.gauge("estop_build_info", "The version of estop.").sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    let labels = [("host", &*core.id.to_string()), ("kind", &*desk.kind.to_string())];
    text.gauge("estop_host_info", "The host and what kind of process it is in.").sample(&labels, 1);
    let since = desk.since.duration_since(UNIX_EPOCH).unwrap_or_default();
    text.gauge("estop_start_time_seconds", "When the host began, since 1970.").sample(&[], since.as_secs_f64());
    let refuses = u8::from(core.refuses().is_some());
    text.gauge("estop_refuses_calls", "Whether the host lets no call in, halts apart.").sample(&[], refuses);
    let (halts, unreadable) = core.halts.in_force();
    text.gauge("estop_halts_in_force", "Halts that are in force here.").sample(&[], halts.len());
    let unreadable = u8::from(unreadable.is_some());
    text.gauge("estop_halts_unreadable", "Whether nobody knows what else is halted: then everything is.")
        .sample(&[], unreadable);
    text.gauge("estop_watchers", "Whoever watches the events of this host.").sample(&[], desk.watchers.count());
}

fn calls(text: &mut Text, core: &Core) {
    let mut live = [0_u64; CallPhase::ALL.len()];
    core.inventory.walk(|call| {
        let interrupted = call.gate.is_interrupted().then(|| call.interrupted()).flatten();
        let ago_us = interrupted.map(|delivered| core.now_ns().saturating_sub(delivered.at_ns) / 1000);
        live[phase(call, ago_us, program(call).as_ref()) as usize] += 1;
    });
    let mut family = text.gauge("estop_calls_live", "Calls that run or wait; those that are queued wait for room.");
    for (state, calls) in CallPhase::ALL.iter().zip(live) {
        family.sample(&[("state", state.as_str())], calls);
    }
    text.gauge("estop_sandbox_places", "Sandboxes that there is room for.").sample(&[], core.limits.sandboxes_max);

    let counts = &core.log.counts;
    let mut family = text.counter("estop_calls_ended_total", "Calls by how they ended; cause: why they were stopped.");
    for (status, ended) in STATUSES.iter().zip(&counts.ended) {
        family.sample(&[("status", status), ("cause", "")], ended.get());
    }
    for (cause, stopped) in Cause::ALL.iter().zip(&counts.stopped) {
        family.sample(&[("status", "stopped"), ("cause", cause.as_str())], stopped.get());
    }
    text.counter("estop_fuel_used_total", "Fuel that ended calls have used.").sample(&[], counts.fuel.get());
}

fn stops(text: &mut Text, core: &Core) {
    let counts = &core.log.counts;
    let mut family = text.counter("estop_interrupts_total", "Interrupts, whatever they reached.");
    for (cause, interrupts) in Cause::ALL.iter().zip(&counts.interrupts) {
        family.sample(&[("cause", cause.as_str())], interrupts.get());
    }
    text.histogram(
        "estop_halted_seconds",
        "From the interrupt until no guest instruction of the call could run.",
        &counts.halted,
    );
    text.histogram("estop_released_seconds", "From the interrupt until the call was released.", &counts.released);
}

fn state(text: &mut Text, core: &Core) {
    let counts = &core.log.counts;
    let mut family = text.counter("estop_commits_total", "Transactions by what became of them at the committer.");
    for (result, commits) in Committed::WORDS.iter().zip(&counts.commits) {
        family.sample(&[("result", result)], commits.get());
    }
    let mut sizes = |what: &str, says: &str, Sizes { writes, bytes }: &Sizes| {
        let mut counter = |unit: &str, counter: &Counter| {
            text.counter(&format!("estop_{what}_{unit}_total"), says).sample(&[], counter.get());
        };
        counter("writes", writes);
        counter("bytes", bytes);
    };
    sizes("committed", "What became durable.", &counts.committed);
    sizes("discarded", "What ended calls had written and not committed.", &counts.discarded);
}

fn log(text: &mut Text, core: &Core) {
    let (entries, age) = core.log.behind();
    text.gauge("estop_log_waiting_entries", "Entries that are recorded and not in the store yet.").sample(&[], entries);
    text.gauge("estop_log_waiting_seconds", "How long the oldest of them has been waiting.")
        .sample(&[], age.as_secs_f64());
    let lost = core.log.counts.lost.get();
    text.counter("estop_log_lost_entries_total", "Entries for which there was no room.").sample(&[], lost);
}

fn threads(text: &mut Text, desk: &Desk, core: &Core) {
    let mut family = text.gauge("estop_heartbeat_age_seconds", "Since the thread last gave a sign of life.");
    for (thread, heartbeat) in [
        ("ticker", &core.ticker.heart),
        ("preempter", core.preempter.heartbeat()),
        ("log", &core.log.heartbeat),
        ("halts", core.halts.heartbeat()),
        ("control", &*desk.heart),
    ] {
        family.sample(&[("thread", thread)], heartbeat.age().as_secs_f64());
    }
}

/// The text, family by family.
#[derive(Default)]
struct Text(String);

impl Text {
    fn gauge(&mut self, name: &str, says: &str) -> Family<'_> {
        self.family(name, "gauge", says)
    }

    fn counter(&mut self, name: &str, says: &str) -> Family<'_> {
        self.family(name, "counter", says)
    }

    fn histogram(&mut self, name: &str, says: &str, histogram: &Histogram) {
        let sum = histogram.sum();
        let mut family = self.family(name, "histogram", says);
        let mut count = 0;
        let bounds = BOUNDS_NS.iter().map(|ns| Duration::from_nanos(*ns).as_secs_f64().to_string());
        for (bound, within) in bounds.chain(["+Inf".to_owned()]).zip(histogram.cumulative()) {
            family.part("_bucket", &[("le", &bound)], within);
            count = within;
        }
        family.part("_sum", &[], sum.as_secs_f64());
        family.part("_count", &[], count);
    }

    fn family(&mut self, name: &str, kind: &str, says: &str) -> Family<'_> {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {}", says.replace('\\', r"\\").replace('\n', r"\n"));
        let _ = writeln!(self.0, "# TYPE {name} {kind}");
        Family { text: &mut self.0, name: name.to_owned() }
    }
}

struct Family<'a> {
    text: &'a mut String,
    name: String,
}

impl Family<'_> {
    fn sample(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.part("", labels, value);
    }

    fn part(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let _ = write!(self.text, "{}{suffix}", self.name);
        for (at, (label, said)) in labels.iter().enumerate() {
            let _ = write!(self.text, "{}{label}=\"{}\"", if at == 0 { '{' } else { ',' }, escaped(said));
        }
        let _ = writeln!(self.text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cannot_end_what_they_are_in() {
        let mut text = Text::default();
        text.gauge("a", "one\nline").sample(&[("b", "\"} 1\nc\\"), ("d", "")], 1.5);
        assert_eq!(text.0, "# HELP a one\\nline\n# TYPE a gauge\na{b=\"\\\"} 1\\nc\\\\\",d=\"\"} 1.5\n");
    }
}
