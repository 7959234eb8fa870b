//! `estop drill`.

use super::{ExitCode, print, say};
use crate::drill::{self, Report};

/// Test the emergency stop on this machine: stop hostile components many times and report how long it took.
///
/// Times are from the interrupt until no guest instruction could run. A case passes if 99 of 100 stops took at most its
/// target, or three times what waking an idle thread costs on this machine in the same run, and every stop was confirmed.
/// Exits with 0 if all pass and with 8 otherwise.
#[derive(clap::Args)]
pub(super) struct Args {
    /// How many times each case is stopped
    #[arg(long, default_value_t = drill::RUNS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    runs: u32,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let report = runtime.block_on(drill::hold(args.runs, |case| say(&format!("estop: drilling: {case}"))))?;
    print(&if args.json { serde_json::to_string(&report)? } else { table(&report) })?;
    Ok(if report.passed { ExitCode::Completed } else { ExitCode::Unconfirmed })
}

fn table(report: &Report) -> String {
    let mut lines = vec![format!(
        "{:<26} {:>6} {:>9} {:>9} {:>9} {:>13} {:>11} {:>9}",
        "case", "runs", "p50 µs", "p99 µs", "max µs", "released p99", "unconfirmed", "target"
    )];
    for case in &report.cases {
        lines.push(format!(
            "{:<26} {:>6} {:>9.1} {:>9.1} {:>9.1} {:>13.1} {:>11} {:>9.0}  {}",
            case.name,
            case.runs,
            case.p50_us,
            case.p99_us,
            case.max_us,
            case.released_p99_us,
            case.unconfirmed,
            case.target_us,
            if case.passed { "passed" } else { "FAILED" }
        ));
    }
    lines.push(format!("\nwaking an idle thread: {:.1} µs (99th percentile)", report.wake_p99_us));
    lines.push(if report.passed { "the drill passed".into() } else { "THE DRILL FAILED".into() });
    lines.join("\n")
}
