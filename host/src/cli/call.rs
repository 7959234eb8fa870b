//! `estop call`: one call of a tool that a serving host has.

use std::path::Path;
use std::time::Duration;

use hyper::Method;
use serde_json::Value;

use super::exit_code::{WithCode, usage};
use super::outcome_shown::{self, Shown, read_input};
use super::signals::Signals;
use super::watchdog::{self, Watchdog};
use super::{ExitCode, hosts, printable, quantity, say};
use crate::Progress;
use crate::control::client::events::{Events, EventsError};
use crate::control::client::{STOPS_WITHIN, ask};
use crate::control::place::{self, Found};
use crate::control::protocol::{Answer, CallBegun, CallRequest, CancelRequest, Role};

/// Call a tool of a host that serves agents (`estop serve`). Its output goes to standard output, everything else to
/// standard error. Ctrl-C stops the call.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Which: the tool's name, or COMPONENT/TOOL if several components have one of that name
    #[arg(value_name = "TOOL")]
    tool: String,
    /// The tool's input: JSON, `@FILE` to read it from a file, or `-` to read it from standard input
    #[arg(short, long, value_name = "JSON|@FILE|-", default_value = "{}")]
    input: String,
    /// On whose behalf [default: `default`; in service mode the user's name, and no other]
    #[arg(long)]
    agent: Option<String>,
    /// The process whose tool it is, if several serve agents (`estop ps` lists them)
    #[arg(long, value_name = "PID")]
    host: Option<u32>,
    /// Stop it after this long, such as 500ms or 30s; the host's own limit if that is shorter
    #[arg(long, value_parser = quantity::duration)]
    deadline: Option<Duration>,
    /// Stop it after this much fuel, such as 50M or 10G; the host's own limit if that is less
    #[arg(long, value_parser = quantity::fuel)]
    fuel: Option<u64>,
    /// Stop it when it wants more memory than this, such as 64MiB; the host's own limit if that is less
    #[arg(long, value_parser = quantity::bytes)]
    memory: Option<usize>,
    /// How long a cooperative tool may tidy up after the deadline; the host's own limit if that is shorter
    #[arg(long, value_parser = quantity::duration)]
    grace: Option<Duration>,
    /// How urgent it is, from 0 to 255, higher is more: when there is no room, a call stops the least urgent one that runs,
    /// if that is less urgent. The host's own limit if that is less
    #[arg(long, value_name = "N")]
    priority: Option<u8>,
    /// Print the whole outcome as one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    let watchdog = Watchdog::start()?;
    let signals = Signals::tell(watchdog.clone(), watchdog::ENDS_WITHIN)?;
    let input = read_input(&args.input)?;
    let host = choose(args.host)?;
    let (component, tool) = match args.tool.split_once('/') {
        Some((component, tool)) => (Some(component.to_owned()), tool.to_owned()),
        None => (None, args.tool),
    };
    let us = |time: Option<Duration>| time.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    let request = CallRequest {
        tool,
        component,
        input,
        agent: args.agent,
        deadline_us: us(args.deadline),
        grace_us: us(args.grace),
        fuel: args.fuel,
        memory_bytes: args.memory.map(|bytes| bytes as u64),
        priority: args.priority,
    };
    let outcome = hosts::block_on(call(&host, &request, &signals))??;
    // A reader of our output that hangs may not keep the process after its call.
    watchdog.arm(watchdog::ENDS_WITHIN);
    let code = outcome_shown::finish(&outcome, args.json)?;
    std::process::exit(code as i32)
}

/// The host that is meant.
fn choose(pid: Option<u32>) -> anyhow::Result<Found> {
    let looked = place::look();
    let mut serving: Vec<Found> = looked.hosts.into_iter().filter(Found::serves_agents).collect();
    let pids: Vec<_> = serving.iter().map(|host| host.pid.to_string()).collect();
    if let Some(pid) = pid {
        serving.retain(|host| host.pid == pid);
    }
    match (serving.len(), pid) {
        (1, _) => Ok(serving.remove(0)),
        (0, Some(pid)) if !pids.is_empty() => {
            Err(usage(format!("process {pid} does not serve agents; these do: {}", pids.join(", "))))
        }
        (0, _) => {
            let places: Vec<_> = looked.places.iter().map(|place| place.display().to_string()).collect();
            let message = format!(
                "no host serves agents: start one with `estop serve` (`estop serve --help` says how); looked in {}",
                places.join(", ")
            );
            Err(WithCode { code: ExitCode::HostFailed, message }.into())
        }
        _ => Err(usage(format!("several hosts serve agents, say which one: --host {}", pids.join(" or --host ")))),
    }
}

/// The outcome. Whoever asks to stop stops the call; its outcome comes all the same.
async fn call(host: &Found, request: &CallRequest, signals: &Signals) -> anyhow::Result<Value> {
    let socket = host.folder.join(Role::Agent.socket());
    let mut events = tokio::select! {
        events = ask_for(&socket, request) => events?,
        // Nothing is known of the call yet. It is stopped by that, if it is there.
        asked = signals.asked() => {
            let message = format!("stopped ({}) before the call began", printable(&asked.reason));
            return Err(WithCode { code: ExitCode::Cancelled, message }.into());
        }
    };
    let shown = Shown::new();
    let mut begun: Option<CallBegun> = None;
    let mut is_asked = false;
    loop {
        let event = tokio::select! {
            biased;
            event = events.next() => event?,
            asked = signals.asked(), if !is_asked && begun.is_some() => {
                is_asked = true;
                if let Some(CallBegun { call, token }) = begun.clone() {
                    let reason = printable(&asked.reason);
                    say(&format!("estop: stopping {call}; {reason} once more ends this without waiting for it"));
                    cancel(host, CancelRequest { call, token, reason: asked.reason }).await;
                }
                continue;
            }
        };
        let Some(event) = event else {
            let message = format!("process {} has ended before the call has; the log says what became of it", host.pid);
            return Err(WithCode { code: ExitCode::HostFailed, message }.into());
        };
        match &*event.name {
            "call" => begun = Some(serde_json::from_str(&event.data)?),
            "progress" => shown.show(&serde_json::from_str::<Progress>(&event.data)?),
            "outcome" => return Ok(serde_json::from_str(&event.data)?),
            // Of a newer version of estop.
            _ => {}
        }
    }
}

async fn ask_for(socket: &Path, request: &CallRequest) -> anyhow::Result<Events> {
    Events::ask(socket, "/v1/call", request).await.map_err(|error| match error {
        EventsError::Turned { status, error: message } => {
            let code = match status {
                400 | 404 | 413 => ExitCode::Usage,
                _ => ExitCode::Refused,
            };
            WithCode { code, message }.into()
        }
        EventsError::Ask(error) if error.is_shut_out() => {
            let message = format!("{error}; in service mode those call who are in group `{}`", Role::Agent.group());
            WithCode { code: ExitCode::Refused, message }.into()
        }
        EventsError::Ask(error) => error.into(),
    })
}

async fn cancel(host: &Found, request: CancelRequest) {
    let asked = ask::<Answer>(host, Role::Agent, Method::POST, "/v1/stop", Some(&request), STOPS_WITHIN).await;
    if let Err(error) = asked {
        // The watchdog ends the process; the host stops the call then, because the connection is gone.
        say(&format!("estop: the call could not be stopped: {}", printable(&error.to_string())));
    }
}
