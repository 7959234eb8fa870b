//! `estop policy`: what an `estop.toml` says, before anything runs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::exit_code::{WithCode, usage};
use super::{ExitCode, home, print, printable};
use crate::grants::GrantTable;
use crate::policy::{Policy, PolicyError};
use crate::store::sqlite::Sqlite;
use crate::{Budget, Grantee, Home};

/// Looked for in the working directory and in the home.
const CONFIG: &str = "estop.toml";

/// Look at what an estop.toml says.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Check an estop.toml as `estop serve` does, start nothing, and tell in words what it grants to whom
    Check(CheckArgs),
}

#[derive(clap::Args)]
struct CheckArgs {
    /// ./estop.toml, else estop.toml in the home
    file: Option<PathBuf>,
    #[command(flatten)]
    home: home::Options,
}

pub(super) fn main(args: &Args) -> anyhow::Result<ExitCode> {
    let Command::Check(args) = &args.command;
    let path = find(args.file.as_deref(), &args.home)?;
    let policy = read(&path, "nothing of it can be used")?;
    let home = args.home.open_if_there()?;
    let table = open(&path, &policy, home)?;
    print(&in_words(&path, &policy, &table))?;
    Ok(ExitCode::Completed)
}

/// Where the configuration is.
pub(super) fn find(asked: Option<&Path>, home: &home::Options) -> anyhow::Result<PathBuf> {
    if let Some(path) = asked {
        return std::path::absolute(path).with_context(|| format!("cannot use `{}`", path.display()));
    }
    let here = std::path::absolute(CONFIG).context("cannot say where this is")?;
    if here.exists() {
        return Ok(here);
    }
    let in_home = home.path()?.join(CONFIG);
    if in_home.exists() {
        return Ok(in_home);
    }
    let (here, in_home) = (here.display(), in_home.display());
    Err(usage(format!("there is neither `{here}` nor `{in_home}`; `estop serve --help` shows what to write into one")))
}

/// `consequence`: what follows where it cannot be used.
pub(super) fn read(path: &Path, consequence: &str) -> anyhow::Result<Policy> {
    Policy::read(path).map_err(|error: PolicyError| {
        let message = format!("{error}\n{consequence}; correct it and try again (`estop serve --help` has an example)");
        WithCode { code: ExitCode::Usage, message }.into()
    })
}

/// What it grants: some of that is only seen by opening it, with the home that it is for, or one of its kind.
pub(super) fn open(path: &Path, policy: &Policy, home: Option<Home>) -> anyhow::Result<GrantTable> {
    let none = tempfile::tempdir().context("cannot make a folder to try it with")?;
    let home = match home {
        Some(home) => home,
        None => Home::open(none.path().join("home"))?,
    };
    let store = Sqlite::open(&home)?;
    GrantTable::open(policy.host.grants.clone(), &store, &policy.kept(path)).map_err(|error| {
        let message = format!("{}: {error}; nothing of it can be used", path.display());
        WithCode { code: ExitCode::Usage, message }.into()
    })
}

fn in_words(path: &Path, policy: &Policy, table: &GrantTable) -> String {
    let mut text = format!("{}: it can be used\n", path.display());
    // Writing to a string cannot fail.
    let mut add = |what: String| {
        let _ = writeln!(text, "  {}", printable(&what));
    };
    for (name, tool) in &policy.tools {
        let is_there = if tool.path.is_file() { "" } else { ", which is NOT THERE" };
        add(format!("serves {name} from {}{is_there}", tool.path.display()));
    }
    for (grantee, granted) in table.rules() {
        let who = who(grantee);
        granted.in_words().into_iter().for_each(|what| add(format!("{who}: {what}")));
    }
    for (agent, budget) in &policy.host.budgets {
        let who = agent.as_ref().map_or("each agent that has no other budget".into(), |agent| format!("agent {agent}"));
        budget_in_words(budget).into_iter().for_each(|what| add(format!("{who}: {what}")));
    }
    if policy.host.grants.is_empty() {
        add("nothing is granted beyond a tool's own state".into());
    }
    text.truncate(text.trim_end().len());
    text
}

fn who(grantee: &Grantee) -> String {
    let (agent, component, tool) = grantee.names();
    let name = |what: &str, name: Option<&str>| name.map_or(format!("every {what}"), |name| format!("{what} {name}"));
    match (component, tool) {
        (None, None) => name("agent", agent),
        _ => format!("{}, {}, {}", name("agent", agent), name("component", component), name("tool", tool)),
    }
}

fn budget_in_words(budget: &Budget) -> Vec<String> {
    let calls = budget.calls_per_minute.map(|calls| format!("{calls} calls a minute"));
    let fuel = budget.fuel_per_minute.map(|fuel| format!("{fuel} units of fuel a minute"));
    let requests = budget.requests_per_minute.map(|requests| format!("{requests} requests a minute"));
    let bytes = budget.request_bytes_per_minute.map(|bytes| format!("{bytes} bytes of requests a minute"));
    calls.into_iter().chain(fuel).chain(requests).chain(bytes).collect()
}
