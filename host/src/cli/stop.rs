//! `estop stop`: one call, once.

use std::time::Duration;

use hyper::Method;

use super::halt::tell_calls;
use super::hosts::{self, tell_unseen, unseen};
use super::{ExitCode, json_text, print, quantity, say};
use crate::CallId;
use crate::control::client::{AskError, STOPS_WITHIN};
use crate::control::place;
use crate::control::protocol::{Answer, Role, StopRequest};

use super::exit_code::usage;

/// Stop one call, wherever it runs. Once: nothing keeps it from being called again (`estop halt` does).
#[derive(clap::Args)]
pub(super) struct Args {
    /// Which, as `estop ps` lists it
    #[arg(value_name = "CALL")]
    call: String,
    /// Why, for the log
    #[arg(long, default_value = "")]
    reason: String,
    /// How long a cooperative tool may tidy up
    #[arg(long, value_parser = quantity::duration, default_value = "0s")]
    grace: Duration,
    /// What was reached, as one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: &Args) -> anyhow::Result<ExitCode> {
    let call: CallId =
        args.call.parse().map_err(|error| usage(format!("`{}`: {error} (`estop ps` lists them)", args.call)))?;
    let grace_us = u64::try_from(args.grace.as_micros()).unwrap_or(u64::MAX);
    let request = StopRequest { call, reason: args.reason.clone(), grace_us };
    let looked = place::look();
    let stop = (Role::Operator, Method::POST, "/v1/stop");
    let within = STOPS_WITHIN.saturating_add(args.grace);
    let asked = hosts::ask_all::<Answer>(&looked.hosts, stop, Some(&request), within);
    let (answers, others) = hosts::block_on(asked)?;
    // Those that do not have it say so.
    let silent = unseen(others.into_iter().filter(|(_, error)| !matches!(error, AskError::Refused(_))).collect());
    // Whoever may have it: somebody else can say that he has stopped it.
    tell_unseen(&silent);
    if answers.is_empty() {
        say(&format!(
            "estop: nobody was reached: no host that answers runs `{call}` (`estop show {call}` if it has ended)"
        ));
        return Ok(ExitCode::Unconfirmed);
    }
    for (host, answer) in answers.iter().cloned() {
        let answer = Answer { pid: host.pid, ..answer };
        if args.json { print(&json_text(&serde_json::to_value(&answer)?))? } else { tell_calls(&answer)? }
    }
    let confirmed = answers.iter().all(|(_, answer)| answer.calls.iter().all(|call| call.released_us.is_some()));
    if !confirmed {
        say(
            "estop: UNCONFIRMED: it was told to stop and is not released yet; `estop ps` shows it. An agent's own program may \
             still have its grace: look again. `estop halt --agent NAME --force` ends its host, with everything in it",
        );
    }
    Ok(if confirmed && silent.is_empty() { ExitCode::Completed } else { ExitCode::Unconfirmed })
}
