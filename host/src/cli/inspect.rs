//! `estop inspect`: what a component is, and what it would get.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{ExitCode, build, json_text, print, printable};
use crate::hostcalls::grant;
use crate::{CompileChild, Component, Host, HostLimits, Source, ToolInfo};

/// Say what a component is, what tools it has, what it imports and what it would get.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A component (`.wasm`), or the folder of a tool's crate, which is built first
    component: PathBuf,
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
    let component = runtime.block_on(host.load(Source::file(path)))?;
    print(&if args.json { json_text(&to_json(&component)) } else { to_text(&component) })?;
    Ok(ExitCode::Completed)
}

fn to_json(component: &Component) -> Value {
    let import = |name: &String| json!({ "name": name, "gets": grant(name) });
    json!({
        "name": component.name(),
        "component": component.digest(),
        "tools": component.tools(),
        "imports": component.imports().iter().map(import).collect::<Vec<_>>(),
    })
}

fn to_text(component: &Component) -> String {
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
