//! `estop run`: one call of one tool.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::exit_code::usage;
use super::outcome_shown::{self, Shown, read_input};
use super::signals::Signals;
use super::watchdog::{self, Watchdog};
use super::{ExitCode, build, changes_shown, grants, home, print, printable, quantity, say};
use crate::call::{Call, CallBuilder, DECLINED, End, Outcome};
use crate::control::HostKind;
use crate::log::CheckpointTo;
use crate::store::sqlite::Sqlite;
use crate::{
    CompileChild, Component, DEFAULT_AGENT, Grantee, Grants, Host, HostLimits, HttpGrant, LoadError, ProcessSupervisor,
    ProgramGrant, Secret, Source, WorkspaceGrant,
};

/// Run a tool of a component, once. Its output goes to standard output, everything else to standard error.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A component (`.wasm`), or the folder of a tool's crate, which is built first
    component: PathBuf,
    /// Which tool; may be left out if there is only one
    tool: Option<String>,
    /// The tool's input: JSON, `@FILE` to read it from a file, or `-` to read it from standard input
    #[arg(short, long, value_name = "JSON|@FILE|-", default_value = "{}")]
    input: String,
    /// On whose behalf
    #[arg(long, default_value = DEFAULT_AGENT)]
    agent: String,
    /// Stop it after this long, such as 500ms or 30s
    #[arg(long, value_parser = quantity::duration, default_value = "30s")]
    deadline: Duration,
    /// Stop it after this much fuel (about one unit for each instruction), such as 50M or 10G
    #[arg(long, value_parser = quantity::fuel, default_value = "1T")]
    fuel: u64,
    /// Stop it when it wants more memory than this, such as 64MiB
    #[arg(long, value_parser = quantity::bytes, default_value = "64MiB")]
    memory: usize,
    /// How long a cooperative tool may tidy up after the deadline
    #[arg(long, value_parser = quantity::duration, default_value = "0s")]
    grace: Duration,
    /// Let it use the files of this folder: what it changes is there once it has completed, or not at all. With `:ro` it may
    /// only read. The tool sees it at `/`, or where `=PATH` says: DIR[:ro][=PATH]
    #[arg(long, value_name = "DIR[:ro][=PATH]", value_parser = grants::workspace)]
    workspace: Vec<WorkspaceGrant>,
    /// Let it run this program, with any arguments; what a program does is not undone. It and everything that it starts is
    /// killed when the call ends
    #[arg(long, value_name = "PROGRAM", value_parser = grants::program)]
    allow_program: Vec<ProgramGrant>,
    /// Let it send requests to this host: `https://example.com`, `*.example.com`, `http://127.0.0.1:8080`. Only `GET` and
    /// `HEAD`, unless others are named: 'GET,POST https://api.example.com'. A host with a private address is refused, unless
    /// it is written as that address or as `localhost`
    #[arg(long, value_name = "[METHODS ]HOST", value_parser = grants::host)]
    allow_host: Vec<HttpGrant>,
    /// Give it the variable NAME of this command's own environment, as configuration; its value is shown nowhere
    #[arg(long, value_name = "NAME", value_parser = grants::secret)]
    secret: Vec<Secret>,
    /// Load this component as well (`.wasm`): the tool may invoke its tools
    #[arg(long, value_name = "COMPONENT")]
    with: Vec<PathBuf>,
    /// Show what it would change in the workspaces, as a unified diff on standard output, and change nothing
    #[arg(long, requires = "workspace", conflicts_with_all = ["json", "ask"])]
    dry_run: bool,
    /// Show what it would change in the workspaces, and ask before anything is changed
    #[arg(long, requires = "workspace")]
    ask: bool,
    /// Print the whole outcome as one JSON object
    #[arg(long)]
    json: bool,
    /// Send signed checkpoints of the log there as well: file:PATH, journald, or command:PROGRAM
    #[arg(long, value_name = "TO")]
    checkpoint_to: Option<CheckpointTo>,
    #[command(flatten)]
    home: home::Options,
    #[command(flatten)]
    build: build::Options,
}

/// How long whoever is asked may take.
const ASKS_WITHIN: Duration = Duration::from_secs(3600);

pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    if args.ask && !std::io::stdin().is_terminal() {
        return Err(usage("there is nobody to ask: standard input is no terminal; --dry-run shows the changes"));
    }
    let watchdog = Watchdog::start()?;
    let signals = Signals::handle(watchdog.clone())?;
    let input = read_input(&args.input)?;
    let path = build::component(&args.component, &args.build)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let code = runtime.block_on(run(&args, path, input, &signals, &watchdog))?;
    // Without waiting for threads: what the call had is released, and nothing else may hold up the end.
    std::process::exit(code as i32)
}

async fn run(
    args: &Args,
    path: PathBuf,
    input: Value,
    signals: &Signals,
    watchdog: &Watchdog,
) -> anyhow::Result<ExitCode> {
    // What the user asks for bounds the tool, not the component's description of itself: that has the host's own limits.
    let memory_bytes_max = HostLimits::default().memory_bytes_max.max(args.memory);
    let limits = HostLimits { sandboxes_max: 16, memory_bytes_max, ..HostLimits::default() };
    let home = args.home.open()?;
    let mut store = Sqlite::options(&home);
    if let Some(to) = &args.checkpoint_to {
        store = store.checkpoint_to(to.clone());
    }
    let granted = args.workspace.iter().cloned().fold(Grants::new(), Grants::workspace);
    let granted = args.allow_program.iter().cloned().fold(granted, Grants::program);
    let granted = args.allow_host.iter().cloned().fold(granted, Grants::http);
    let granted =
        args.secret.iter().fold(granted, |granted, secret| granted.environment(secret.name(), secret.value()));
    let builder = Host::builder().limits(limits).store(store.open()?).cache(&home).grant(Grantee::everyone(), granted);
    let host = builder
        .compile_with(CompileChild::this_program())
        .supervise_with(ProcessSupervisor::this_program())
        .offer(HostKind::Run)
        .build()?;
    signals.stop(&host);
    let code = call(args, &host, path, input, signals, watchdog).await;
    // However it went: the record is complete before the process ends. The watchdog bounds it.
    watchdog.arm(watchdog::ENDS_WITHIN);
    host.shutdown().await;
    code
}

/// An exit code if somebody has stopped it.
async fn load(host: &Host, path: PathBuf, signals: &Signals) -> anyhow::Result<Result<Component, ExitCode>> {
    let load = host.begin_load(Source::file(path));
    // Registered first, looked after: whoever asked before that did not meet it.
    if let Some(interrupt) = signals.interrupt() {
        load.interrupt(interrupt);
    }
    match load.loaded().await {
        Err(LoadError::Stopped { cause, actor, .. }) => {
            let what = "while the component was loaded; nothing has run, nothing to discard";
            say(&format!("estop: stopped by {} ({cause}) {what}", printable(&actor)));
            Ok(Err(cause.into()))
        }
        loaded => Ok(Ok(loaded?)),
    }
}

async fn call(
    args: &Args,
    host: &Host,
    path: PathBuf,
    input: Value,
    signals: &Signals,
    watchdog: &Watchdog,
) -> anyhow::Result<ExitCode> {
    let component = match load(host, path, signals).await? {
        Ok(component) => component,
        Err(code) => return Ok(code),
    };
    // Kept until the call has ended: its tool may invoke theirs.
    let mut others = Vec::new();
    for path in &args.with {
        match load(host, path.clone(), signals).await? {
            Ok(other) => others.push(other),
            Err(code) => return Ok(code),
        }
    }
    let tool = choose(&component, args.tool.as_deref())?;
    let call = host.agent(args.agent.clone()).call(&component, tool, input);
    let call = call.deadline(args.deadline).grace(args.grace).fuel(args.fuel).memory_bytes(args.memory);
    let call = reviewed(call, args).start();
    // Also if nobody asks: a reader of our output that hangs may not keep the process after its call.
    let asking = if args.ask { ASKS_WITHIN } else { Duration::ZERO };
    watchdog.arm(args.deadline.saturating_add(asking).saturating_add(args.grace).saturating_add(watchdog::ENDS_WITHIN));
    // Registered first, looked after: whoever asked before that did not meet it.
    if let Some(interrupt) = signals.interrupt() {
        call.interrupt_with(interrupt);
    }
    let outcome = watch(&call).await;
    match &outcome.end {
        End::Failed(failure) if args.dry_run && failure.code == DECLINED => {
            say("estop: nothing was changed: this is what would be");
            Ok(ExitCode::Completed)
        }
        _ => outcome_shown::finish(&outcome.to_json(), args.json),
    }
}

/// Shows changes of files before they are committed, if that was asked for.
fn reviewed(call: CallBuilder, args: &Args) -> CallBuilder {
    if args.dry_run {
        call.review(|changes| async move {
            // Whoever reads it may have gone away; that changes nothing.
            let _ = print(changes_shown::to_be_applied(&changes).trim_end_matches('\n'));
            false
        })
    } else if args.ask {
        call.review(|changes| async move {
            say(&changes_shown::harmless(&changes_shown::diff(&changes)));
            changes_shown::agreed(ASKS_WITHIN).await
        })
    } else {
        call
    }
}

fn choose(component: &Component, asked: Option<&str>) -> anyhow::Result<String> {
    let names: Vec<&str> = component.tools().iter().map(|tool| tool.name.as_str()).collect();
    let all = names.join(", ");
    match asked {
        Some(name) if names.contains(&name) => Ok(name.to_owned()),
        Some(name) => {
            let near = names.iter().copied().map(|known| (strsim::damerau_levenshtein(known, name), known)).min();
            let near = near.filter(|(distance, known)| *distance <= known.len().div_ceil(2));
            let hint = near.map_or(".".into(), |(_, known)| format!("; did you mean `{known}`?"));
            Err(usage(format!("`{}` has no tool `{name}`{hint} It has: {all}", component.name())))
        }
        None if names.len() == 1 => Ok(names[0].to_owned()),
        None => Err(usage(format!("`{}` has several tools, say which one: {all}", component.name()))),
    }
}

/// Waits for the outcome and shows progress.
async fn watch(call: &Call) -> Arc<Outcome> {
    let mut progress = call.progress();
    // What it has said before somebody listened.
    progress.mark_changed();
    let shown = Shown::new();
    loop {
        tokio::select! {
            biased;
            outcome = call.outcome() => break outcome,
            changed = progress.changed() => {
                if changed.is_err() {
                    break call.outcome().await;
                }
                let Some(now) = progress.borrow_and_update().clone() else { continue };
                shown.show(&now);
            }
        }
    }
}
