//! `estop retire`: a halt that is never lifted.

use std::io::{IsTerminal, Write};

use anyhow::Context;

use super::exit_code::usage;
use super::hosts::tell_unseen;
use super::{ExitCode, halt, home, printable, ps, say};
use crate::interrupt::halts::{Halt, HaltScope};
use crate::user;

/// Retire an agent or a tool for good: stop it, and refuse it for ever in this home. Nothing lifts it. What it has kept, and
/// the log, stay.
#[derive(clap::Args)]
pub(super) struct Args {
    /// This agent, and its own program
    #[arg(long, group = "what", value_name = "NAME", required_unless_present = "tool")]
    agent: Option<String>,
    /// This tool, in whatever component
    #[arg(long, group = "what", value_name = "NAME")]
    tool: Option<String>,
    /// Why, for the log and for whoever is refused
    #[arg(long, value_name = "WHY")]
    reason: String,
    /// Without asking
    #[arg(long)]
    yes: bool,
    /// What was reached, as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    home: home::Options,
}

pub(super) fn main(args: &Args) -> anyhow::Result<ExitCode> {
    let scope = match (&args.agent, &args.tool) {
        (Some(agent), _) => HaltScope::Agent(agent.clone()),
        (None, Some(tool)) => HaltScope::Tool(tool.clone()),
        (None, None) => return Err(usage("say what: --agent NAME or --tool NAME")),
    };
    if args.reason.trim().is_empty() {
        return Err(usage("what is retired is retired for a reason: say which"));
    }
    if !args.yes && !is_meant(args, &scope)? {
        say("estop: nothing was retired");
        return Ok(ExitCode::Refused);
    }
    let halt = Halt::new(scope, user::own(), args.reason.clone()).permanent();
    halt::put_in_force(&halt, false, args.json, &args.home)
}

/// Shows what it would reach, and asks.
fn is_meant(args: &Args, scope: &HaltScope) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(usage("it cannot be undone: say --yes"));
    }
    let seen = ps::look(&args.home)?;
    tell_unseen(&seen.survey.unseen);
    let covered = |agent: &str, tool: &str| match scope {
        HaltScope::Agent(name) => name == agent,
        HaltScope::Tool(name) => name == tool,
        _ => false,
    };
    let calls = seen.calls().filter(|(_, call)| covered(&call.agent, &call.tool)).count();
    let what = printable(&scope.to_string());
    let _ = write!(std::io::stderr(), "Retire {what} for good? {calls} calls of it run. It cannot be undone. [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
