//! `estop halt`, `halts` and `lift`: stops that hold.

use std::io::{IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::Context;
use hyper::Method;
use serde_json::json;

use super::exit_code::{WithCode, usage};
use super::hosts::{self, Unseen, tell_unseen, unseen};
use super::{ExitCode, home, json_text, kill, print, printable, printable_line, ps, say};
use crate::control::Mode;
use crate::control::client::{ANSWERS_WITHIN, AskError, STOPS_WITHIN};
use crate::control::place::{self, Found};
use crate::control::protocol::{Answer, HaltRequest, LiftRequest, ProgramInfo, Role, Status};
use crate::interrupt::halts::{Halt, HaltScope, Halts};
use crate::log::{Entry, EntryKind};
use crate::store::Store;
use crate::store::sqlite::Sqlite;
use crate::{HaltId, Home, HostId, user};

/// Stop, and keep stopped: everything that runs in the hosts you can reach, and whatever would start in this home, or on
/// this machine in service mode, also after a restart, until the halt is lifted.
///
/// Without --all, --agent, --tool or --host it shows what it would reach and asks.
#[derive(clap::Args)]
#[command(after_help = CURL)]
pub(super) struct Args {
    /// Everything, without asking
    #[arg(long, group = "what")]
    all: bool,
    /// Everything of this agent
    #[arg(long, group = "what", value_name = "NAME")]
    agent: Option<String>,
    /// This tool, in whatever component
    #[arg(long, group = "what", value_name = "NAME")]
    tool: Option<String>,
    /// One host process, by its pid or host id. What is started in its place is another host, which this does not halt
    #[arg(long, group = "what", value_name = "PID|HOST")]
    host: Option<String>,
    /// Why, for the log and for whoever is refused
    #[arg(long, default_value = "")]
    reason: String,
    /// Kill host processes that do not confirm within half a second, whole: with the calls of others in them, and with
    /// agents' own programs that still have their grace
    #[arg(long)]
    force: bool,
    /// What was reached, as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    home: home::Options,
}

/// For whoever has no `estop` at hand.
const CURL: &str = "\
Without this command, for each host process (`ls /run/estop/*/* /run/user/*/estop/* /tmp/estop-*/*`):
  curl --unix-socket FOLDER/operator.sock -X POST http://estop/v1/halt
Without any client: drop a file, empty or with the reason in it, into `halts/inbox/` in the home
($ESTOP_HOME, else $XDG_STATE_HOME/estop, else ~/.local/state/estop), or for the whole machine into `/var/lib/estop/halts/inbox/` (service mode; as one of `estop-operators`).";

pub(super) fn main(args: &Args) -> anyhow::Result<ExitCode> {
    let Some(scope) = scope(args)? else {
        say("estop: nothing was halted");
        return Ok(ExitCode::Refused);
    };
    let halt = Halt::new(scope, user::own(), args.reason.clone());
    put_in_force(&halt, args.force, args.json, &args.home)
}

/// Latches a halt, has every host act on it, and says what was reached. One that is permanent is for the home's own hosts.
pub(super) fn put_in_force(halt: &Halt, force: bool, json: bool, home: &home::Options) -> anyhow::Result<ExitCode> {
    // On the disk before anybody is asked: a host that starts meanwhile finds it there.
    let (kept, latched) = keep(halt, home);
    let halt = &Halt { machine: matches!(kept, Kept::Machine), ..halt.clone() };
    let began = Instant::now();
    let mut looked = place::look();
    if halt.permanent {
        looked.hosts = hosts::block_on(hosts::of_home(looked.hosts, &home.open()?))?;
    }
    let within = if force { ANSWERS_WITHIN } else { STOPS_WITHIN };
    let Halt { scope, reason, permanent, .. } = halt.clone();
    let request = HaltRequest { scope, reason, halt: Some(halt.halt), permanent };
    let ask = (Role::Operator, Method::POST, "/v1/halt");
    let (answers, silent) = hosts::block_on(hosts::ask_all::<Answer>(&looked.hosts, ask, Some(&request), within))?;
    let mut unconfirmed: Vec<Found> = silent.iter().map(|(host, _)| host.clone()).collect();
    let mut left = unseen(silent);
    left.extend(looked.unseen.into_iter().map(Unseen::from));
    let (mut killed, mut supervised) = (Vec::new(), 0);
    if force {
        unconfirmed.extend(answers.iter().filter(|(_, answer)| !is_confirmed(answer)).map(|(host, _)| host.clone()));
        kill::Killed { hosts: killed, supervised, left } = kill::all(&unconfirmed, left);
    }
    // By the number that was looked at, whatever it says of itself.
    let answers: Vec<Answer> = answers.into_iter().map(|(host, answer)| Answer { pid: host.pid, ..answer }).collect();
    let entered = enter(&kept, home, halt, latched.is_ok(), &killed);

    if json {
        print(&json_text(&json!({
            "halt": halt, "on_disk": latched.is_ok(), "kept": kept.to_string(), "hosts": answers, "unseen": left,
            "killed": killed, "killed_supervised": supervised,
            "took_us": u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        })))?;
    } else {
        let what = if halt.permanent { "retired for good" } else { "halted" };
        print(&format!("{} {} is {what} {kept}", halt.halt, halt.scope))?;
        answers.iter().try_for_each(tell_calls)?;
    }
    tell_unseen(&left);
    for pid in &killed {
        say(&format!("estop: process {pid} did not confirm and was killed"));
    }
    if supervised > 0 {
        say(&format!("estop: {supervised} processes that were supervised there were killed with it"));
    }
    if let Err(error) = &latched {
        say(&format!("estop: NOT ON THE DISK: {error}; hosts that start from now on do not know of it"));
    }
    for answer in &answers {
        if let Some(why) = &answer.not_on_disk {
            say(&format!("estop: process {}: NOT KEPT: {}", answer.pid, printable(why)));
        }
    }
    if let Err(error) = entered {
        say(&format!("estop: the halt is in force, and its entry is not in the log: {error:#}"));
    }
    let homes = if halt.machine { "" } else { ", other homes whose hosts do not run," };
    say(&format!("estop: not covered: what has left a sandbox already{homes} and programs that are not run by estop"));
    let reached = !answers.is_empty() || !killed.is_empty();
    if !reached {
        say("estop: no host process was reached; the halt is in force for those that start");
    }
    let on_disk = latched.is_ok() && answers.iter().all(|answer| answer.not_on_disk.is_none());
    let confirmed = answers.iter().all(|answer| is_confirmed(answer) || killed.contains(&answer.pid));
    Ok(if reached && confirmed && left.is_empty() && on_disk { ExitCode::Completed } else { ExitCode::Unconfirmed })
}

fn is_confirmed(answer: &Answer) -> bool {
    answer.calls.iter().all(|call| call.released_us.is_some())
}

/// What was asked for; `None` if a person has thought better of it.
fn scope(args: &Args) -> anyhow::Result<Option<HaltScope>> {
    if let Some(agent) = &args.agent {
        return Ok(Some(HaltScope::Agent(agent.clone())));
    }
    if let Some(tool) = &args.tool {
        return Ok(Some(HaltScope::Tool(tool.clone())));
    }
    if let Some(host) = &args.host {
        return Ok(Some(HaltScope::Host(host_id(host)?)));
    }
    if args.all {
        return Ok(Some(HaltScope::All));
    }
    if !std::io::stdin().is_terminal() {
        return Err(usage("say what: --all, --agent NAME, --tool NAME or --host PID"));
    }
    let seen = ps::look(&args.home)?;
    let (hosts, calls) = (seen.survey.hosts.len(), seen.calls().count());
    tell_unseen(&seen.survey.unseen);
    let _ =
        write!(std::io::stderr(), "Halt everything: {calls} calls in {hosts} hosts, and whatever would start? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes").then_some(HaltScope::All))
}

/// By its id, or by the process that it is in.
fn host_id(host: &str) -> anyhow::Result<HostId> {
    if let Ok(id) = host.parse() {
        return Ok(id);
    }
    let pid: u32 = host.parse().map_err(|_| usage(format!("`{host}` is neither a pid nor a host id (host-…)")))?;
    let survey = hosts::block_on(hosts::survey())?;
    let mut found = survey.hosts.iter().filter(|(host, _)| host.pid == pid).map(|(_, status)| status.host.host);
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(id),
        (Some(_), Some(_)) => {
            Err(usage(format!("process {pid} has several hosts: name one by its id (`estop ps --json`)")))
        }
        (None, _) => Err(usage(format!("no host in process {pid} answers (`estop ps` lists them)"))),
    }
}

/// Where a halt is kept.
enum Kept {
    Machine,
    Home(Home),
    /// There is no place for it.
    Nowhere,
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kept::Machine => f.write_str("on this machine"),
            Kept::Home(home) => write!(f, "in the home `{}`", home.path().display()),
            Kept::Nowhere => f.write_str("in the hosts that were reached"),
        }
    }
}

/// Puts the halt on the disk: for the whole machine if this user may, otherwise in the home. What is retired is the home's.
fn keep(halt: &Halt, home: &home::Options) -> (Kept, Result<(), String>) {
    if !halt.permanent
        && let Some(latched) = Halts::latch_on_the_machine(halt)
    {
        return (Kept::Machine, latched.map_err(|error| error.to_string()));
    }
    match home.open() {
        Ok(home) => {
            let latched = Halts::open(Some(&home)).latch(halt);
            (Kept::Home(home), latched.map(drop).map_err(|error| error.to_string()))
        }
        // Those that run are stopped all the same.
        Err(error) => (Kept::Nowhere, Err(format!("{error:#}"))),
    }
}

/// Into the log of the home: hosts on other homes enter what they did themselves, and whoever takes a dropped halt enters
/// that. No home is made for what was dropped.
fn enter(kept: &Kept, options: &home::Options, halt: &Halt, latched: bool, killed: &[u32]) -> anyhow::Result<()> {
    let home = match kept {
        Kept::Home(home) => home.clone(),
        Kept::Machine if rustix::process::geteuid().is_root() => options.open()?,
        Kept::Machine | Kept::Nowhere => match options.open_if_there()? {
            Some(home) if !killed.is_empty() => home,
            _ => return Ok(()),
        },
    };
    let store = Sqlite::open(&home)?;
    let (at, host) = (std::time::SystemTime::now(), HostId::generate());
    let mut entries = vec![Entry { at, host, kind: EntryKind::halted(halt, latched) }];
    let kill = |pid: &u32| EntryKind::Killed { pid: *pid, halt: halt.halt, actor: halt.actor.clone() };
    entries.extend(killed.iter().map(|pid| Entry { at, host, kind: kill(pid) }));
    store.write(&mut [], &entries)?;
    if !killed.is_empty() {
        // A host of its own, for a moment: it enters what became of the calls of those that are dead.
        let host = crate::Host::builder().store(store).build()?;
        hosts::block_on(host.shutdown())?;
    }
    Ok(())
}

/// One line for each call that was reached.
pub(super) fn tell_calls(answer: &Answer) -> anyhow::Result<()> {
    let halted = answer.halted_us.map_or("NOT ALL HALTED".into(), |us| format!("all halted within {us} µs"));
    print(&format!("process {}: {} calls reached, {halted}", answer.pid, answer.calls.len()))?;
    for call in &answer.calls {
        let us = |us: Option<u64>| us.map_or("NOT YET".into(), |us| format!("{us} µs"));
        let (agent, tool) = (printable(&call.agent), printable(&call.tool));
        let (halted, released) = (us(call.halted_us), us(call.released_us));
        print(&format!("  {} {agent}/{tool} halted {halted}, released {released}", call.call))?;
        if let Some(program) = &call.program {
            tell_program(program, call.released_us.is_some())?;
        }
        for process in call.processes.iter().filter(|_| call.released_us.is_none()) {
            let trouble = process.trouble.as_ref().map(|trouble| format!(": {}", printable(trouble)));
            let command = printable_line(&process.command);
            print(&format!("    NOT GONE: the program {command}{}", trouble.unwrap_or_default()))?;
        }
        for effect in &call.effects {
            print(&format!("    outside the sandbox: {} {:?}", printable(&effect.name), effect.state))?;
        }
    }
    Ok(())
}

/// An agent's own program, and what of it is not gone.
fn tell_program(program: &ProgramInfo, is_released: bool) -> anyhow::Result<()> {
    let pid = program.pid.map_or("not started".into(), |pid| format!("process {pid}"));
    print(&format!("    {pid}: {}", printable_line(&program.command)))?;
    if is_released {
        return Ok(());
    }
    if program.in_grace {
        print("    it was sent SIGTERM, and is killed with everything that it has started when its grace is over")?;
    }
    for left in &program.left {
        print(&format!("    NOT GONE: process {} {} (state {})", left.pid, printable(&left.name), left.state))?;
    }
    if let Some(trouble) = &program.trouble {
        print(&format!("    NOT VERIFIED: {}", printable(trouble)))?;
    }
    Ok(())
}

/// List the halts in force.
#[derive(clap::Args)]
pub(super) struct ListArgs {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    home: home::Options,
}

pub(super) fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let seen = ps::look(&args.home)?;
    for halt in &seen.halts {
        print(&if args.json { json_text(&serde_json::to_value(halt)?) } else { printable(&halt.says()) })?;
    }
    if seen.halts.is_empty() {
        say("estop: no halt is in force");
    }
    tell_unseen(&seen.survey.unseen);
    Ok(ExitCode::Completed)
}

/// Lift a halt: what it covered may start again. Nothing resumes by itself.
#[derive(clap::Args)]
pub(super) struct LiftArgs {
    /// Which, as `estop halts` lists it
    halt: String,
    /// Why it is safe now, for the log; asked for on a terminal
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    home: home::Options,
}

pub(super) fn lift(args: &LiftArgs) -> anyhow::Result<ExitCode> {
    let halt: HaltId =
        args.halt.parse().map_err(|error| usage(format!("`{}`: {error} (`estop halts` lists them)", args.halt)))?;
    let reason = reason(args)?;
    let seen = ps::look(&args.home)?;
    let Some(found) = seen.halts.iter().find(|other| other.halt == halt).cloned() else {
        return Err(usage(format!("no halt `{halt}` is in force (`estop halts` lists those that are)")));
    };
    found.may_be_lifted().map_err(|error| WithCode { code: ExitCode::Refused, message: error.to_string() })?;
    // What it covers must have come to rest first, in every host but those of others, who could say anything: whoever runs
    // one has no say in what somebody else lifts.
    let homes = args.home.path().and_then(|path| Ok(std::fs::metadata(path)?.uid())).ok();
    let own = [Some(0), Some(rustix::process::geteuid().as_raw()), homes];
    let is_ours = |host: &Found| host.mode() == Mode::Service || own.contains(&Some(host.owner));
    let ours = seen.survey.hosts.iter().filter(|(host, _)| is_ours(host));
    let stopping: usize =
        ours.map(|(_, status)| status.calls.iter().filter(|call| call.stopped.is_some()).count()).sum();
    let unseen = seen.survey.unseen.iter().filter(|unseen| unseen.host.as_ref().is_none_or(is_ours)).count();
    tell_unseen(&seen.survey.unseen);
    if stopping > 0 || unseen > 0 {
        let message =
            format!("{halt} is still in force: {stopping} calls are still stopping, and {unseen} hosts cannot be seen");
        return Err(WithCode { code: ExitCode::Refused, message }.into());
    }
    let request = LiftRequest { halt, reason: reason.clone() };
    // A personal host cannot lift what holds for the machine.
    let knows = |host: &Found, status: &Status| {
        status.halts.iter().any(|other| other.halt == halt) && (!found.machine || host.mode() == Mode::Service)
    };
    let hosts = seen.survey.hosts.iter().filter(|(host, status)| knows(host, status));
    let hosts: Vec<Found> = hosts.map(|(host, _)| host.clone()).collect();
    let ask = (Role::Admin, Method::POST, "/v1/lift");
    let lifted = hosts::block_on(hosts::ask_all::<Halt>(&hosts, ask, Some(&request), STOPS_WITHIN))?;
    // A host that has lost it to another one of the same home says so; what counts is what is left.
    let (answered, others) = lifted;
    if answered.is_empty()
        && let Some(refused) = refused(&others, &request)?
    {
        return Err(
            WithCode { code: ExitCode::Refused, message: format!("{halt} is still in force: {refused}") }.into()
        );
    }
    let on_disk = Halts::open(args.home.open_if_there()?.as_ref());
    let is_left = on_disk.in_force().0.iter().any(|other| other.halt == halt);
    if is_left {
        on_disk.lift(halt).map_err(|error| WithCode { code: ExitCode::Refused, message: error.to_string() })?;
    }
    // Whoever has taken it from the disk enters it.
    if is_left || !answered.iter().any(|(host, _)| is_ours(host)) {
        let kind = EntryKind::Lift { halt, scope: found.scope.clone(), actor: user::own(), reason };
        let entry = Entry { at: std::time::SystemTime::now(), host: HostId::generate(), kind };
        Sqlite::open(&args.home.open()?)?.write(&mut [], &[entry])?;
    }
    let survey = hosts::block_on(hosts::survey())?;
    let of_hosts = survey.hosts.iter().filter(|(host, _)| is_ours(host)).flat_map(|(_, status)| &status.halts);
    let (on_disk, _) = Halts::open(args.home.open_if_there()?.as_ref()).in_force();
    if of_hosts.chain(&on_disk).any(|other| other.halt == halt) {
        let message =
            format!("{halt} is still in force somewhere (`estop halts`); lift it as the user who runs that host");
        return Err(WithCode { code: ExitCode::Refused, message }.into());
    }
    print(&format!("{halt} is lifted: {} may start again, nothing resumes", found.scope))?;
    Ok(ExitCode::Completed)
}

/// Whoever may not connect as an admin asks where he may connect, so that the attempt is entered. What is answered.
fn refused(others: &[(Found, AskError)], request: &LiftRequest) -> anyhow::Result<Option<String>> {
    let shut_out = others.iter().filter(|(_, error)| error.is_shut_out());
    let shut_out: Vec<Found> = shut_out.map(|(host, _)| host.clone()).collect();
    let ask = (Role::Operator, Method::POST, "/v1/lift");
    let (_, refused) = hosts::block_on(hosts::ask_all::<Halt>(&shut_out, ask, Some(request), ANSWERS_WITHIN))?;
    Ok(refused.first().map(|(_, error)| error.to_string()))
}

fn reason(args: &LiftArgs) -> anyhow::Result<String> {
    let reason = match &args.reason {
        Some(reason) => reason.clone(),
        None if std::io::stdin().is_terminal() => {
            let _ = write!(std::io::stderr(), "Why is it safe to start again? ");
            let mut reason = String::new();
            std::io::stdin().read_line(&mut reason).context("cannot read the reason")?;
            reason
        }
        None => return Err(usage("say why it is safe to start again: --reason TEXT")),
    };
    let reason = reason.trim().to_owned();
    if reason.is_empty() { Err(usage("a halt is lifted for a reason: say which")) } else { Ok(reason) }
}

/// How long `--force` waits for a process that it has killed.
pub(super) const GONE_WITHIN: Duration = Duration::from_secs(2);
