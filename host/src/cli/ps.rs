//! `estop ps`: what runs, in every host process of the machine that this user can see. And the crisis screen.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

use serde_json::{Value, json};

use super::hosts::{self, Survey, tell_unseen};
use super::{ExitCode, home, json_text, print, printable, printable_line, quantity, say};
use crate::control::Mode;
use crate::control::protocol::{CallInfo, HostInfo};
use crate::interrupt::halts::{Halt, Halts};

/// List what runs: hosts, agents and calls of every host process that you can see, and the halts in force.
#[derive(clap::Args)]
#[command(after_help = MORE)]
pub(super) struct Args {
    /// One JSON object: hosts, calls, agents, halts, unseen
    #[arg(long)]
    json: bool,
    /// Show it again and again, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    watch: bool,
    /// Between two looks of --watch
    #[arg(long, value_parser = quantity::duration, default_value = "1s", requires = "watch")]
    every: Duration,
    #[command(flatten)]
    home: home::Options,
}

const MORE: &str = "\
Every host answers on a socket, in FOLDER: $XDG_RUNTIME_DIR/estop/PID, /tmp/estop-UID/PID, or /run/estop/UID/PID for a
service:
  curl --unix-socket FOLDER/operator.sock http://estop/v1/metrics     counts and latencies, for Prometheus
  curl -N --unix-socket FOLDER/operator.sock http://estop/v1/events   starts, ends, stops, halts, as they happen";

/// With `--watch`, two looks are at least this far apart.
const EVERY_MIN: Duration = Duration::from_millis(100);

pub(super) fn main(args: &Args) -> anyhow::Result<ExitCode> {
    loop {
        let seen = look(&args.home)?;
        if args.json {
            print(&json_text(&seen.json()))?;
        } else {
            if args.watch && std::io::stdout().is_terminal() {
                // Home, and what is below goes away.
                print("\u{1b}[H\u{1b}[2J")?;
            }
            print(&seen.table())?;
            tell_unseen(&seen.survey.unseen);
        }
        if !args.watch {
            return Ok(ExitCode::Completed);
        }
        std::thread::sleep(args.every.max(EVERY_MIN));
    }
}

/// Bare `estop`: the status, and the lines that stop everything.
pub(super) fn status() -> anyhow::Result<ExitCode> {
    let seen = look(&home::Options::default())?;
    let (hosts, calls) = (seen.survey.hosts.len(), seen.calls().count());
    let mut text = format!("hosts: {hosts}, calls: {calls}, halts in force: {}\n", seen.halts.len());
    let _ = writeln!(text, "\n{}\n", seen.table());
    text.push_str(CRISIS);
    print(&text)?;
    let places: Vec<_> = seen.survey.places.iter().map(|place| place.display().to_string()).collect();
    let (services, all) = (seen.services(), seen.survey.hosts.len());
    let mode = match services {
        0 => "personal mode".to_owned(),
        services if services == all => "service mode".to_owned(),
        services => format!("service mode ({services} of {all} hosts; the others are in personal mode)"),
    };
    say(&format!("estop: {mode}; looked in {}", places.join(", ")));
    tell_unseen(&seen.survey.unseen);
    Ok(ExitCode::Completed)
}

/// What stops everything.
const CRISIS: &str = "\
Stop everything, and keep it stopped:   estop halt --all
Stop an agent, and keep it stopped:     estop halt --agent NAME
Stop one call:                          estop stop CALL
What happens next:                      estop ps --watch     estop halts     estop lift HALT
Everything else:                        estop --help";

/// What is known of the machine.
pub(super) struct Seen {
    pub(super) survey: Survey,
    /// Those of the home, and those that hosts know of.
    pub(super) halts: Vec<Halt>,
}

/// Asks everybody, and reads the halts of the home as well: they are in force also where nothing runs.
pub(super) fn look(home: &home::Options) -> anyhow::Result<Seen> {
    let survey = hosts::block_on(hosts::survey())?;
    let home = home.open_if_there()?;
    let (mut halts, unreadable) = Halts::open(home.as_ref()).in_force();
    if let Some(why) = unreadable {
        say(&format!("estop: {why}"));
    }
    for (_, status) in &survey.hosts {
        for halt in &status.halts {
            if halts.iter().all(|known| known.halt != halt.halt) {
                halts.push(halt.clone());
            }
        }
    }
    halts.sort_by_key(|halt| halt.at);
    Ok(Seen { survey, halts })
}

impl Seen {
    pub(super) fn calls(&self) -> impl Iterator<Item = (&HostInfo, &CallInfo)> {
        self.survey.hosts.iter().flat_map(|(_, status)| status.calls.iter().map(|call| (&status.host, call)))
    }

    fn services(&self) -> usize {
        self.survey.hosts.iter().filter(|(_, status)| status.host.mode == Mode::Service).count()
    }

    fn json(&self) -> Value {
        let hosts: Vec<_> = self.survey.hosts.iter().map(|(_, status)| &status.host).collect();
        let calls: Vec<_> = self.calls().map(|(_, call)| call).collect();
        let agents: Vec<_> = self
            .agents()
            .into_iter()
            .map(|(agent, calls)| {
                let halts: Vec<_> = self.halts.iter().filter(|halt| halt.scope.covers_agent(agent)).collect();
                let halts: Vec<_> = halts.iter().map(|halt| halt.halt).collect();
                json!({ "agent": agent, "calls": calls, "halts": halts })
            })
            .collect();
        let left_out: usize = self.survey.hosts.iter().map(|(_, status)| status.calls_left_out).sum();
        json!({
            "hosts": hosts, "calls": calls, "agents": agents, "halts": self.halts, "unseen": self.survey.unseen,
            "calls_left_out": left_out, "looked_in": self.survey.places,
        })
    }

    fn agents(&self) -> BTreeMap<&str, usize> {
        let mut agents = BTreeMap::new();
        for (_, call) in self.calls() {
            *agents.entry(call.agent.as_str()).or_default() += 1;
        }
        agents
    }

    fn table(&self) -> String {
        let mut text = String::new();
        for halt in &self.halts {
            let _ = writeln!(text, "HALTED {}", printable(&halt.says()));
        }
        if self.survey.hosts.is_empty() {
            text.push_str("no host process is running");
            return text;
        }
        let _ = writeln!(text, "{:<9} {:<9} {:<9} {:<8} {:>5}  HOME", "PID", "KIND", "MODE", "USER", "CALLS");
        for (_, status) in &self.survey.hosts {
            let host = &status.host;
            let home = host.home.as_ref().map_or("-".into(), |home| printable_line(&home.display().to_string()));
            let refuses =
                host.refuses.as_ref().map_or(String::new(), |why| format!("  REFUSES CALLS: {}", printable(why)));
            let (kind, mode) = (host.kind.to_string(), host.mode.to_string());
            let _ = writeln!(
                text,
                "{:<9} {kind:<9} {mode:<9} {:<8} {:>5}  {home}{refuses}",
                host.pid, host.user, host.calls
            );
        }
        if self.calls().next().is_some() {
            let _ = writeln!(
                text,
                "\n{:<31} {:<14} {:<20} {:<11} {:>8} {:>8}  SAYS",
                "CALL", "AGENT", "TOOL", "STATE", "AGE", "LEFT"
            );
        }
        for (_, call) in self.calls() {
            let left = call.time_left_us.map_or("-".into(), time);
            let says = call.progress.as_ref().map_or(String::new(), |progress| {
                let total = progress.total.map(|total| format!("/{total}")).unwrap_or_default();
                format!("{}{total} {}", progress.done, printable_line(&progress.message))
            });
            let program = call.program.as_ref().map(|program| {
                let pid = program.pid.map_or("not started".into(), |pid| format!("process {pid}"));
                format!("{pid}: {}", printable_line(&program.command))
            });
            let says = program.unwrap_or(says);
            let (agent, tool) = (printable(&call.agent), printable(&call.tool));
            let (state, age) = (call.state.as_str(), time(call.age_us));
            let _ = writeln!(
                text,
                "{:<31} {agent:<14} {tool:<20} {state:<11} {age:>8} {left:>8}  {says}",
                call.call.to_string()
            );
        }
        for (_, status) in self.survey.hosts.iter().filter(|(_, status)| status.calls_left_out > 0) {
            let _ = writeln!(text, "… and {} more calls of process {}", status.calls_left_out, status.host.pid);
        }
        text.truncate(text.trim_end().len());
        text
    }
}

/// Short enough for a column.
pub(super) fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}us"),
        1_000..1_000_000 => format!("{}ms", us / 1000),
        1_000_000..600_000_000 => format!("{:.1}s", us as f64 / 1e6),
        us => humantime::format_duration(Duration::from_secs(us / 60_000_000 * 60)).to_string().replace(' ', ""),
    }
}
