//! `estop drill`.

use std::time::Duration;

use hyper::Method;
use serde_json::json;

use super::exit_code::usage;
use super::hosts::{self, tell_unseen, unseen};
use super::{ExitCode, json_text, print, printable, say};
use crate::control::client::AskError;
use crate::control::drill::{DrillAnswer, DrillRequest};
use crate::control::place::{self, Found};
use crate::control::protocol::Role;
use crate::drill::live::OVER_WITHIN;
use crate::drill::{self, CaseReport, Report};

/// Test the emergency stop on this machine: stop hostile components many times and report how long it took.
///
/// Times are from the interrupt until no guest instruction could run. A case passes if 99 of 100 stops took at most its
/// target, or three times what waking an idle thread costs on this machine in the same run, and every stop was confirmed.
/// Exits with 0 if all pass and with 8 otherwise.
///
/// With --live a host that runs drills itself: it starts calls of its own, one at a time, stops each alone, and enters what
/// it found in its log. Calls of others go on. A host that is halted refuses (exit 6), as it does every call.
#[derive(clap::Args)]
pub(super) struct Args {
    /// How many times each case is stopped [default: 200; with --live 20, and at most 1000]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    runs: Option<u32>,
    /// Drill a host that runs, instead of one made for the drill
    #[arg(long)]
    live: bool,
    /// Which, by its pid, if several run
    #[arg(long, value_name = "PID", requires = "live")]
    host: Option<u32>,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// An answer that is on its way when the drill is over.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    if args.live {
        return live(&args);
    }
    let runs = args.runs.unwrap_or(drill::RUNS_DEFAULT);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let report = runtime.block_on(drill::hold(runs, |case| say(&format!("estop: drilling: {case}"))))?;
    print(&if args.json { serde_json::to_string(&report)? } else { table(&report) })?;
    Ok(if report.passed { ExitCode::Completed } else { ExitCode::Unconfirmed })
}

fn live(args: &Args) -> anyhow::Result<ExitCode> {
    let runs = args.runs.unwrap_or(drill::LIVE_RUNS_DEFAULT);
    if runs > drill::LIVE_RUNS_MAX {
        return Err(usage(format!("--live stops each case at most {} times", drill::LIVE_RUNS_MAX)));
    }
    let Some(host) = which(args.host)? else {
        say("estop: nobody was reached: no host that you can see runs; without --live a host is made for the drill");
        return Ok(ExitCode::Unconfirmed);
    };
    say(&format!("estop: process {} drills itself, for {} s at most", host.pid, OVER_WITHIN.as_secs()));
    let drill = (Role::Operator, Method::POST, "/v1/drill");
    let within = OVER_WITHIN.saturating_add(ANSWERED_WITHIN);
    let request = DrillRequest { runs };
    let asked = hosts::ask_all::<DrillAnswer>(std::slice::from_ref(&host), drill, Some(&request), within);
    let (mut answers, silent) = hosts::block_on(asked)?;
    let Some((_, answer)) = answers.pop() else {
        if let Some((_, AskError::Refused(why))) = silent.first() {
            say(&format!("estop: process {}: {}", host.pid, printable(why)));
            return Ok(ExitCode::Refused);
        }
        tell_unseen(&unseen(silent));
        say("estop: nobody was reached: the host did not answer, or has ended");
        return Ok(ExitCode::Unconfirmed);
    };
    print(&if args.json { json_text(&json!(answer)) } else { live_table(&answer) })?;
    Ok(if answer.found.passed { ExitCode::Completed } else { ExitCode::Unconfirmed })
}

/// The only host there is, or the one that is meant.
fn which(pid: Option<u32>) -> anyhow::Result<Option<Found>> {
    let looked = place::look();
    tell_unseen(&looked.unseen.into_iter().map(Into::into).collect::<Vec<_>>());
    let mut hosts = looked.hosts;
    hosts.retain(|host| pid.is_none_or(|pid| host.pid == pid));
    match &hosts[..] {
        [] | [_] => Ok(hosts.pop()),
        several if pid.is_none() => {
            let pids: Vec<_> = several.iter().map(|host| host.pid.to_string()).collect();
            Err(usage(format!("several hosts run: say which with --host, one of {}", pids.join(", "))))
        }
        several => {
            // A program with several hosts in it: the first one that it made.
            Ok(several.iter().min_by_key(|host| host.folder.as_os_str().len()).cloned())
        }
    }
}

fn table(report: &Report) -> String {
    let mut lines = case_lines(&report.cases);
    lines.push(format!("\nwaking an idle thread: {:.1} µs (99th percentile)", report.wake_p99_us));
    lines.push(verdict(report.passed));
    lines.join("\n")
}

fn live_table(answer: &DrillAnswer) -> String {
    let DrillAnswer { host, pid, found } = answer;
    let mut lines = case_lines(&found.cases);
    lines.push(format!("\nwaking an idle thread: {:.1} µs (99th percentile)", found.wake_p99_us));
    lines.push(format!("calls of others: {}; reached by the drill: {}", found.others, found.others_interrupted));
    if let Some(why) = &found.not_held {
        lines.push(printable(why));
    }
    lines.push(format!("{host}, process {pid}: {}", verdict(found.passed)));
    lines.join("\n")
}

fn verdict(passed: bool) -> String {
    if passed { "the drill passed".into() } else { "THE DRILL FAILED".into() }
}

fn case_lines(cases: &[CaseReport]) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<26} {:>6} {:>9} {:>9} {:>9} {:>13} {:>11} {:>9}",
        "case", "runs", "p50 µs", "p99 µs", "max µs", "released p99", "unconfirmed", "target"
    )];
    for case in cases {
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
    lines
}
