//! `estop show`: one call, one interrupt or one halt; what runs is asked for where it runs, everything else is in the log.

use std::fmt::Write as _;

use hyper::Method;
use serde_json::{Value, json};

use super::exit_code::usage;
use super::hosts::{self, Unseen, tell_unseen, unseen};
use super::log::{tell, tree};
use super::ps::{self, time};
use super::{ExitCode, home, json_text, print, printable, printable_line, say};
use crate::control::client::{ANSWERS_WITHIN, AskError, Nothing};
use crate::control::place;
use crate::control::protocol::{Role, Shown};
use crate::log::export::walk;
use crate::store::StoreError;
use crate::{CallId, EffectState, HaltId, InterruptId};

/// Show a call (call-…), running or ended; an interrupt (interrupt-…); or a halt (halt-…).
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    home: home::Options,
    /// The id
    id: String,
    /// With the input of a call that runs; otherwise its size and digest stand for it
    #[arg(long)]
    input: bool,
    /// A call that runs or a halt as one JSON object; entries of the log one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    let Args { home, id, input, json } = args;
    if let Ok(halt) = id.parse::<HaltId>() {
        return show_halt(&home, halt, json);
    }
    // As the log writes it.
    let (is_interrupt, id) = match (id.parse::<InterruptId>(), id.parse::<CallId>()) {
        (Ok(interrupt), _) => (true, interrupt.to_string()),
        (_, Ok(call)) => {
            let (shown, silent) = ask(call, input)?;
            if let Some(shown) = shown {
                print(&if json { json_text(&serde_json::to_value(&shown)?) } else { running(&shown) })?;
                return Ok(ExitCode::Completed);
            }
            tell_unseen(&silent);
            (false, call.to_string())
        }
        _ => {
            let kinds = "a call (call-…), an interrupt (interrupt-…) or a halt (halt-…)";
            return Err(usage(format!("`{id}` is not the id of {kinds}")));
        }
    };
    let entries = entries(&home, &id)?;
    if entries.is_empty() {
        let home = home.look()?.folder().display().to_string();
        return Err(usage(format!(
            "the log of `{home}` has nothing about `{id}` (`estop log show` lists what it has)"
        )));
    }
    if is_interrupt && !json {
        print(&tree(&entries, &id))?;
        return Ok(ExitCode::Completed);
    }
    for entry in &entries {
        print(&if json { json_text(entry) } else { tell(entry) })?;
    }
    Ok(ExitCode::Completed)
}

/// What the log of the home has about an id.
fn entries(home: &home::Options, id: &str) -> anyhow::Result<Vec<Value>> {
    let look = home.look()?;
    let last = look.newest()?;
    let mut entries = Vec::new();
    // An id is not in a line by chance, and looking is cheaper than reading.
    walk(&look, last, |_, line| {
        if line.contains(id) {
            entries.extend(serde_json::from_str(line));
        }
        Ok::<_, StoreError>(())
    })?;
    Ok(entries)
}

/// The host that runs the call, if one does, and those that do not say.
fn ask(call: CallId, input: bool) -> anyhow::Result<(Option<Shown>, Vec<Unseen>)> {
    let looked = place::look();
    let path = format!("/v1/calls/{call}{}", if input { "?input=true" } else { "" });
    let asked = (Role::Operator, Method::GET, &*path);
    let asked = hosts::ask_all::<Shown>(&looked.hosts, asked, None::<&Nothing>, ANSWERS_WITHIN);
    let (answers, others) = hosts::block_on(asked)?;
    // Those that do not have it say so.
    let silent = others.into_iter().filter(|(_, error)| !matches!(error, AskError::Refused(_))).collect();
    Ok((answers.into_iter().next().map(|(_, shown)| shown), unseen(silent)))
}

/// What somebody needs to know to decide.
fn running(shown: &Shown) -> String {
    let Shown { call, input } = shown;
    let line = printable_line;
    let mut text = format!("{} is {}", call.call, call.state.as_str());
    let mut add = |what: &str, value: String| {
        let _ = write!(text, "\n  {what:<12} {value}");
    };
    if let Some(stopped) = &call.stopped {
        let why = if stopped.reason.is_empty() { String::new() } else { format!(", {}", line(&stopped.reason)) };
        add("stopped", format!("{} by {}{why}, {} ago", stopped.cause, line(&stopped.actor), time(stopped.ago_us)));
    }
    add("agent", line(&call.agent));
    let component = call.component.map_or_else(|| "-".into(), |digest| digest.to_string());
    add("tool", format!("{} of {component}", line(&call.tool)));
    add("where", format!("{}, a process of {}", call.host, line(&call.owner)));
    let left = call.time_left_us.map_or_else(|| "its deadline has not begun".into(), |us| format!("{} left", time(us)));
    add("time", format!("since {}, {left}", time(call.age_us)));
    add("priority", call.priority.to_string());
    let is_metered = call.fuel_granted > 0;
    let fuel = || format!("about {} used, {} left", call.fuel_used, call.fuel_left);
    add("fuel", if is_metered { fuel() } else { "-".into() });
    add("memory", format!("{} bytes", call.memory_bytes));
    add("host call", call.host_call.as_deref().map_or_else(|| "-".into(), line));
    add("uncommitted", format!("{} writes, {} bytes", call.uncommitted.writes, call.uncommitted.bytes));
    let commits = &call.commits;
    add("committed", format!("{} writes, {} bytes, in {} points", commits.writes, commits.bytes, commits.points));
    let state = |state: EffectState| if state == EffectState::Performed { "performed" } else { "unknown" };
    let effects: Vec<_> =
        call.effects.iter().map(|effect| format!("{} {}", line(&effect.name), state(effect.state))).collect();
    add("effects", if effects.is_empty() { "none".into() } else { effects.join(", ") });
    for process in &call.processes {
        let by = process.supervisor.map_or("not started".into(), |pid| format!("supervised by process {pid}"));
        let trouble = process.trouble.as_ref().map(|trouble| format!("; NOT GONE: {}", line(trouble)));
        add("program", format!("{}, {by}{}", line(&process.command), trouble.unwrap_or_default()));
    }
    add(
        "says",
        call.progress.as_ref().map_or_else(
            || "-".into(),
            |progress| {
                let total = progress.total.map(|total| format!("/{total}")).unwrap_or_default();
                format!("{}{total} {}, {} ago", progress.done, line(&progress.message), time(progress.ago_us))
            },
        ),
    );
    add("invoked by", call.parent.map_or_else(|| "-".into(), |parent| parent.to_string()));
    add("children", call.children.to_string());
    add("grants", if call.grants.is_empty() { "none".into() } else { line(&call.grants.join(", ")) });
    match input {
        None => add("input", "-".into()),
        Some(input) => {
            let hint = if input.text.is_none() { " (--input shows it)" } else { "" };
            add("input", format!("{} bytes, sha256 {}{hint}", input.bytes, line(&input.sha256)));
            if let Some(input) = &input.text {
                add("", line(input));
            }
        }
    }
    let _ = write!(text, "\nStop it:   estop stop {}", call.call);
    text
}

/// A halt: what it says, whether it is in force, and what the log has about it.
fn show_halt(home: &home::Options, id: HaltId, json: bool) -> anyhow::Result<ExitCode> {
    let seen = ps::look(home)?;
    tell_unseen(&seen.survey.unseen);
    let halt = seen.halts.iter().find(|halt| halt.halt == id);
    // Where nothing has run there is no log.
    let entries = if home.open_if_there()?.is_some() { entries(home, &id.to_string())? } else { Vec::new() };
    if halt.is_none() && entries.is_empty() {
        return Err(usage(format!("nobody knows of `{id}` (`estop halts` lists those that are in force)")));
    }
    if json {
        print(&json_text(&json!({ "in_force": halt.is_some(), "halt": halt, "entries": entries })))?;
        return Ok(ExitCode::Completed);
    }
    match halt {
        Some(halt) => print(&format!("in force: {}", printable(&halt.says())))?,
        None => print(&format!("{id} is not in force"))?,
    }
    if entries.is_empty() {
        say("estop: the log of this home has nothing about it");
    }
    entries.iter().try_for_each(|entry| print(&tell(entry)))?;
    Ok(ExitCode::Completed)
}
