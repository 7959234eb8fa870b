//! `estop run`: one call of one tool.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::exit_code::{WithCode, usage};
use super::signals::Signals;
use super::watchdog::{self, Watchdog};
use super::{ExitCode, build, home, json_text, print, printable, quantity, say};
use crate::call::{Call, End, Outcome, Stopped};
use crate::control::HostKind;
use crate::log::CheckpointTo;
use crate::store::sqlite::Sqlite;
use crate::{CompileChild, Component, DEFAULT_AGENT, Host, HostLimits, LoadError, Size, Source};

/// What is read of an input at most (bytes); the call's own limit is smaller.
const INPUT_BYTES_MAX: u64 = 16 << 20;

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

pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
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
    let builder = Host::builder().limits(limits).store(store.open()?).cache(&home);
    let host = builder.compile_with(CompileChild::this_program()).offer(HostKind::Run).build()?;
    signals.stop(&host);
    let code = call(args, &host, path, input, signals, watchdog).await;
    // However it went: the record is complete before the process ends. The watchdog bounds it.
    watchdog.arm(watchdog::ENDS_WITHIN);
    host.shutdown().await;
    code
}

async fn call(
    args: &Args,
    host: &Host,
    path: PathBuf,
    input: Value,
    signals: &Signals,
    watchdog: &Watchdog,
) -> anyhow::Result<ExitCode> {
    let load = host.begin_load(Source::file(path));
    // Registered first, looked after: whoever asked before that did not meet it.
    if let Some(interrupt) = signals.interrupt() {
        load.interrupt(interrupt);
    }
    let component = match load.loaded().await {
        Err(LoadError::Stopped { cause, actor, .. }) => {
            let what = "while the component was loaded; nothing has run, nothing to discard";
            say(&format!("estop: stopped by {} ({cause}) {what}", printable(&actor)));
            return Ok(cause.into());
        }
        loaded => loaded?,
    };
    let tool = choose(&component, args.tool.as_deref())?;
    let call = host.agent(args.agent.clone()).call(&component, tool, input);
    let call = call.deadline(args.deadline).grace(args.grace).fuel(args.fuel).memory_bytes(args.memory).start();
    // Also if nobody asks: a reader of our output that hangs may not keep the process after its call.
    watchdog.arm(args.deadline.saturating_add(args.grace).saturating_add(watchdog::ENDS_WITHIN));
    // Registered first, looked after: whoever asked before that did not meet it.
    if let Some(interrupt) = signals.interrupt() {
        call.interrupt_with(interrupt);
    }
    let outcome = watch(&call).await;
    if args.json {
        print(&json_text(&outcome.to_json()))?;
    } else if let Some(output) = outcome.output() {
        print(&json_text(output))?;
    }
    tell(&outcome, args.json);
    Ok(ExitCode::from(&outcome.end))
}

fn read_input(input: &str) -> anyhow::Result<Value> {
    let (text, from) = if input == "-" {
        (read_bounded(std::io::stdin().lock()).context("cannot read standard input")?, "standard input".to_owned())
    } else if let Some(path) = input.strip_prefix('@') {
        let file = std::fs::File::open(path).with_context(|| format!("cannot open the input `{path}`"))?;
        (read_bounded(file).with_context(|| format!("cannot read the input `{path}`"))?, format!("`{path}`"))
    } else {
        (input.to_owned(), "the input".to_owned())
    };
    serde_json::from_str(&text).map_err(|error| {
        let message = format!("{from} is not JSON: {error}");
        WithCode { code: ExitCode::InvalidInput, message }.into()
    })
}

fn read_bounded(from: impl Read) -> anyhow::Result<String> {
    let mut text = String::new();
    from.take(INPUT_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > INPUT_BYTES_MAX {
        let message = format!("the input is larger than {INPUT_BYTES_MAX} bytes");
        return Err(WithCode { code: ExitCode::InvalidInput, message }.into());
    }
    Ok(text)
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

/// Waits for the outcome and shows progress: a bar on a terminal, lines elsewhere.
async fn watch(call: &Call) -> Arc<Outcome> {
    let mut progress = call.progress();
    // What it has said before somebody listened.
    progress.mark_changed();
    let bar = std::io::stderr().is_terminal().then(ProgressBar::no_length);
    let outcome = loop {
        tokio::select! {
            biased;
            outcome = call.outcome() => break outcome,
            changed = progress.changed() => {
                if changed.is_err() {
                    break call.outcome().await;
                }
                let Some(now) = progress.borrow_and_update().clone() else { continue };
                show(bar.as_ref(), &now);
            }
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    outcome
}

fn show(bar: Option<&ProgressBar>, progress: &crate::Progress) {
    let said = printable(&progress.message).replace('\n', " ");
    let Some(bar) = bar else {
        let total = progress.total.map(|total| format!("/{total}")).unwrap_or_default();
        say(&format!("progress {}{total} {said}", progress.done));
        return;
    };
    if let Some(total) = progress.total {
        bar.set_length(total);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {wide_msg}") {
            bar.set_style(style);
        }
    }
    bar.set_position(progress.done);
    bar.set_message(said);
}

/// What a person has to know beside the output.
fn tell(outcome: &Outcome, json: bool) {
    let Outcome { end, commits, discarded, .. } = outcome;
    match end {
        End::Completed(output) => {
            for attachment in output.attachments.iter().filter(|_| !json) {
                let bytes = attachment.data.len();
                say(&format!("estop: attachment {:?} ({:?}, {bytes} bytes)", attachment.name, attachment.media_type));
            }
            return;
        }
        End::Stopped(stopped) => {
            let reason =
                if stopped.reason.is_empty() { String::new() } else { format!(": {}", printable(&stopped.reason)) };
            let ran = humantime::format_duration(Duration::from_millis(outcome.elapsed.as_millis() as u64));
            let Stopped { cause, actor, .. } = stopped;
            say(&format!("estop: {} stopped by {actor} ({cause}{reason}) after {ran}", outcome.call));
        }
        end => say(&format!("estop: {}: {}", end.status(), printable(end.error().unwrap_or_default()))),
    }
    let committed = match commits {
        commits if commits.unknown => "whether the last commit is durable is UNKNOWN".to_owned(),
        commits if commits.points == 0 => "nothing was committed".to_owned(),
        commits => format!("{} writes ({} bytes) were committed before", commits.writes, commits.bytes),
    };
    let Size { writes, bytes } = discarded;
    say(&format!("estop: {writes} uncommitted writes ({bytes} bytes) were discarded; {committed}"));
    for effect in &outcome.effects {
        say(&format!("estop: outside the transaction: {:?} {:?}", effect.name, effect.state));
    }
}
