//! What `tracing` is told: a span for each call, and what the log records.
//!
//! Invariants:
//! - Nothing here is on the path of a stop: a call is told about once it has its outcome, and an interrupt, a halt and a
//!   lift when they are in the log. Whoever subscribes may be slow.
//! - Where nobody subscribes, a call pays for a look whether somebody does.

use tracing::field::Empty;
use tracing::{Level, Span};

use crate::call::{CallState, Outcome};
use crate::log::{Entry, EntryKind};

/// The span of a call, below that of whoever starts it. What its guest says is in it.
pub(crate) fn call(call: &CallState) -> Span {
    tracing::info_span!(
        target: "estop::call",
        "estop::call",
        call = %call.id,
        agent = &*call.agent,
        tool = &*call.tool,
        component = call.component().map(display),
        parent = call.parent.as_ref().map(|parent| display(parent.id)),
        status = Empty,
        cause = Empty,
        fuel = Empty,
        elapsed_us = Empty,
    )
}

/// The call has its outcome.
pub(crate) fn ended(span: &Span, call: &CallState, outcome: &Outcome) {
    if span.is_disabled() {
        return;
    }
    span.record("status", outcome.end.status());
    span.record("fuel", outcome.fuel);
    span.record("elapsed_us", outcome.elapsed.as_micros() as u64);
    if let Some(stopped) = outcome.end.stopped() {
        span.record("cause", stopped.cause.as_str());
        tracing::info!(
            target: "estop::call",
            parent: span,
            interrupt = call.interrupted().map(|delivered| display(delivered.id)),
            cause = stopped.cause.as_str(),
            actor = %printable(&stopped.actor),
            reason = %printable(&stopped.reason),
            halted_us = stopped.halted.as_micros() as u64,
            released_us = stopped.released.as_micros() as u64,
            "stopped",
        );
    }
}

/// Something is in the log: as it stands there, and what has to do with stopping once more with fields.
pub(crate) fn entry(entry: &Entry) {
    match &entry.kind {
        EntryKind::Interrupt { interrupt, cause, actor, reason, reached, .. } => tracing::info!(
            target: "estop::interrupt",
            %interrupt,
            cause = cause.as_str(),
            actor = %printable(actor),
            reason = %printable(reason),
            reached,
            "interrupt",
        ),
        EntryKind::Halt { halt, scope, actor, reason, latched, .. } => tracing::info!(
            target: "estop::halt",
            %halt,
            scope = %printable(&scope.to_string()),
            actor = %printable(actor),
            reason = %printable(reason),
            latched,
            "halt",
        ),
        EntryKind::Lift { halt, scope, actor, reason } => tracing::info!(
            target: "estop::halt",
            %halt,
            scope = %printable(&scope.to_string()),
            actor = %printable(actor),
            reason = %printable(reason),
            "lift",
        ),
        _ => {}
    }
    if tracing::enabled!(target: "estop::log", Level::INFO) {
        tracing::info!(target: "estop::log", entry = %entry.to_json());
    }
}

/// Escapes what could forge lines or drive a terminal.
fn printable(words: &str) -> impl std::fmt::Display {
    words.escape_debug()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::call::live::Live;
    use crate::call::{Commits, End, Identity};
    use crate::log::Record;
    use crate::metrics::Counts;
    use crate::transaction::Size;

    /// Where nobody subscribes, telling about a call and counting it takes no memory.
    #[test]
    fn a_call_pays_nothing_for_telemetry_that_nobody_wants() {
        let live = Live::new(0, 0);
        let (agent, tool) = ("a".into(), "t".into());
        let state = CallState::new(
            usize::MAX,
            Identity { agent, tool, component: None, parent: None, grace: Duration::ZERO, priority: 0, live },
        );
        let outcome = Outcome {
            call: state.id,
            agent: "a".into(),
            tool: "t".into(),
            component: None,
            end: End::Trapped("as asked".into()),
            commits: Commits::default(),
            merged: None,
            discarded: Size { writes: 1, bytes: 1, ..Size::default() },
            effects: Vec::new(),
            subprocesses: None,
            fuel: 1,
            elapsed: Duration::ZERO,
            stderr: String::new(),
        };
        let record = Record::Ended(EntryKind::ended(&state, &outcome));
        let counts = Counts::default();
        let allocated = allocation_counter::measure(|| {
            let span = call(&state);
            drop(span.enter());
            counts.recorded(&record);
            ended(&span, &state, &outcome);
        });
        assert_eq!(allocated.count_total, 0);
        // The counter counts.
        assert_eq!(allocation_counter::measure(|| drop(outcome.clone())).count_total, 1);
    }
}
