//! `estop inspect`: what a component is, and what it would get.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::exit_code::usage;
use super::{ExitCode, build, json_text, policy, print, printable};
use crate::hostcalls::grant;
use crate::policy::ToolPolicy;
use crate::{CompileChild, Component, DEFAULT_AGENT, Host, HostLimits, Source, ToolInfo};

/// Say what a component is, what tools it has, what it imports and what it would get.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A component (`.wasm`), or the folder of a tool's crate, which is built first
    component: PathBuf,
    /// Say what it would get by this configuration (estop.toml), where one of its tools is this component
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// On whose behalf
    #[arg(long, default_value = DEFAULT_AGENT, requires = "config")]
    agent: String,
    /// As one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    build: build::Options,
}

pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    let path = build::component(&args.component, &args.build)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let limits = HostLimits { sandboxes_max: 16, ..HostLimits::default() };
    let host = Host::builder().limits(limits).compile_with(CompileChild::this_program()).build()?;
    let component = runtime.block_on(host.load(Source::file(path.clone())))?;
    let granted = args.config.as_deref().map(|config| granted(config, &args.agent, &path, &component)).transpose()?;
    let granted = granted.unwrap_or_default();
    print(&if args.json { json_text(&to_json(&component, &granted)) } else { to_text(&component, &granted) })?;
    Ok(ExitCode::Completed)
}

/// What each tool would get, in words.
type Gets = Vec<(String, Vec<String>)>;

fn granted(config: &Path, agent: &str, path: &Path, component: &Component) -> anyhow::Result<Gets> {
    let policy = policy::read(config, "nothing can be said")?;
    let is_it =
        |tool: &ToolPolicy| tool.path.canonicalize().ok().zip(path.canonicalize().ok()).is_some_and(|(a, b)| a == b);
    let Some((name, _)) = policy.tools.iter().find(|(_, tool)| is_it(tool)) else {
        let (config, path) = (config.display(), path.display());
        return Err(usage(format!("no [tools.*] of `{config}` has the path `{path}`")));
    };
    let table = policy::open(config, &policy, None)?;
    let gets = |tool: &ToolInfo| (tool.name.clone(), table.of(agent, name, &tool.name).in_words());
    Ok(component.tools().iter().map(gets).collect())
}

fn to_json(component: &Component, granted: &Gets) -> Value {
    let import = |name: &String| json!({ "name": name, "gets": grant(name) });
    let mut said = json!({
        "name": component.name(),
        "component": component.digest(),
        "tools": component.tools(),
        "imports": component.imports().iter().map(import).collect::<Vec<_>>(),
    });
    if !granted.is_empty() {
        said["granted"] = granted.iter().map(|(tool, what)| (tool.clone(), json!(what))).collect();
    }
    said
}

fn to_text(component: &Component, granted: &Gets) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} ({})", component.name(), component.digest());
    let _ = writeln!(text, "\ntools");
    for tool in component.tools() {
        let _ = writeln!(text, "  {} {}{}", tool.name, printable(&tool.version), hints(tool));
        for line in tool.description.lines() {
            let _ = writeln!(text, "      {}", printable(line));
        }
        let _ = writeln!(text, "      input: {}", printable(&tool.input_schema.to_string()));
        if let Some(schema) = &tool.output_schema {
            let _ = writeln!(text, "      output: {}", printable(&schema.to_string()));
        }
    }
    let _ = writeln!(text, "\nimports, and what they get");
    let width = component.imports().iter().map(String::len).max().unwrap_or(0);
    for name in component.imports() {
        let _ = writeln!(text, "  {name:width$}  {}", grant(name));
    }
    if !granted.is_empty() {
        let _ = writeln!(text, "\ngranted");
        for (tool, what) in granted {
            let what = if what.is_empty() { "nothing beyond its own state".into() } else { what.join(", ") };
            let _ = writeln!(text, "  {tool}  {}", printable(&what));
        }
    }
    text.truncate(text.trim_end().len());
    text
}

fn hints(tool: &ToolInfo) -> String {
    let hints = [
        (tool.hints.read_only, "read-only"),
        (tool.hints.destructive, "destructive"),
        (tool.hints.idempotent, "idempotent"),
        (tool.hints.open_world, "open-world"),
    ];
    let claimed: Vec<_> = hints.iter().filter(|(claimed, _)| *claimed).map(|(_, name)| *name).collect();
    if claimed.is_empty() { String::new() } else { format!(" ({})", claimed.join(", ")) }
}
