//! `estop state`: what agents keep.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Subcommand;
use serde_json::{Value, json};

use super::{ExitCode, home, json_text, print, printable};
use crate::store::sqlite::{KeyInfo, Look};

/// Show what agents keep: keys, sizes and versions, and values if asked for.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List who keeps how much; with --agent, the keys of that agent
    Show {
        #[command(flatten)]
        home: home::Options,
        #[command(flatten)]
        which: Which,
        /// Values as well
        #[arg(long, requires = "agent")]
        values: bool,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Print every key of an agent with its value, one JSON object a line
    Export {
        #[command(flatten)]
        home: home::Options,
        #[command(flatten)]
        which: Which,
    },
}

#[derive(clap::Args)]
struct Which {
    /// Whose
    #[arg(long)]
    agent: Option<String>,
    /// Only what it keeps with this component
    #[arg(long, requires = "agent")]
    component: Option<String>,
    /// Only this bucket
    #[arg(long, requires = "agent")]
    bucket: Option<String>,
}

pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Show { home, which: Which { agent: None, .. }, json, .. } => spaces(&home.look()?, json)?,
        Command::Show { home, which, values, json } => {
            keys(&home.look()?, &which, |key| if json { json_text(&to_json(key, values)) } else { line(key, values) })?;
        }
        Command::Export { home, which } => {
            if which.agent.is_none() {
                return Err(super::exit_code::usage("say whose state: --agent NAME; `estop state show` lists them"));
            }
            keys(&home.look()?, &which, |key| json_text(&to_json(key, true)))?;
        }
    }
    Ok(ExitCode::Completed)
}

fn spaces(look: &Look, json: bool) -> anyhow::Result<()> {
    for space in look.spaces()? {
        let (agent, component) = (&space.agent, &space.component);
        if json {
            let space = json!({ "agent": agent, "component": component, "keys": space.keys, "bytes": space.bytes });
            print(&json_text(&space))?;
        } else {
            let (agent, component) = (printable(agent), printable(component));
            print(&format!("{agent}  {component}  {} keys  {} bytes", space.keys, space.bytes))?;
        }
    }
    Ok(())
}

fn keys(look: &Look, which: &Which, shown: impl Fn(&KeyInfo) -> String) -> anyhow::Result<()> {
    let agent = which.agent.as_deref().unwrap_or_default();
    look.keys(agent, which.component.as_deref(), which.bucket.as_deref(), |key| print(&shown(&key)))
}

fn line(key: &KeyInfo, values: bool) -> String {
    let KeyInfo { component, bucket, key: name, version, value, .. } = key;
    let place = format!("{}  {}  {}", printable(component), printable(bucket), printable(name));
    let shown = if values { format!("  {}", text(value)) } else { String::new() };
    format!("{place}  {} bytes  version {version}{shown}", value.len())
}

/// A value as a person can read it.
fn text(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) => printable(text),
        Err(_) => format!("base64:{}", BASE64.encode(value)),
    }
}

fn to_json(key: &KeyInfo, values: bool) -> Value {
    let mut object = json!({
        "agent": key.agent,
        "component": key.component,
        "bucket": key.bucket,
        "key": key.key,
        "version": key.version,
        "bytes": key.value.len(),
    });
    if values {
        // What is not text is told apart by the name under which it stands.
        match std::str::from_utf8(&key.value) {
            Ok(text) => object["value"] = text.into(),
            Err(_) => object["value_base64"] = BASE64.encode(&key.value).into(),
        }
    }
    object
}
