//! Which entries are asked for.

use std::time::SystemTime;

use serde_json::Value;

/// All that are given have to fit.
#[derive(Clone, clap::Args)]
pub(super) struct Filter {
    /// Of this call, and of interrupts that reached it
    #[arg(long, value_name = "ID")]
    call: Option<String>,
    /// Of this agent
    #[arg(long)]
    agent: Option<String>,
    /// Of this tool
    #[arg(long)]
    tool: Option<String>,
    /// With this cause, such as operator or deadline
    #[arg(long)]
    cause: Option<String>,
    /// By this actor
    #[arg(long)]
    actor: Option<String>,
    /// Of this kind, such as end, commit, interrupt or refusal
    #[arg(long)]
    kind: Option<String>,
    /// Not before this: 2026-11-22T15:00:00Z, or how long ago, such as 10m
    #[arg(long, value_parser = moment, value_name = "TIME")]
    since: Option<String>,
    /// Not after this
    #[arg(long, value_parser = moment, value_name = "TIME")]
    until: Option<String>,
}

impl Filter {
    pub(super) fn admits_line(&self, line: &str) -> bool {
        serde_json::from_str(line).is_ok_and(|entry| self.admits(&entry))
    }

    pub(super) fn admits(&self, entry: &Value) -> bool {
        let is = |wanted: &Option<String>, name: &str| wanted.as_ref().is_none_or(|wanted| entry[name] == **wanted);
        let at = entry["at"].as_str().unwrap_or_default();
        is(&self.cause, "cause")
            && is(&self.actor, "actor")
            && is(&self.kind, "kind")
            && self.agent.as_ref().is_none_or(|agent| entry["agent"] == **agent || entry["scope"]["agent"] == **agent)
            && self.tool.as_ref().is_none_or(|tool| entry["tool"] == **tool || entry["scope"]["tool"] == **tool)
            && self.call.as_ref().is_none_or(|call| concerns(entry, call))
            && self.since.as_ref().is_none_or(|since| at >= &**since)
            && self.until.as_ref().is_none_or(|until| at <= &**until)
    }
}

/// Whether an entry is about a call.
fn concerns(entry: &Value, call: &str) -> bool {
    let reached = entry["calls"].as_array().map(Vec::as_slice).unwrap_or_default();
    entry["call"] == call || entry["parent"] == call || reached.iter().any(|reached| reached[0] == call)
}

/// As the log writes it, so that times can be compared as text.
fn moment(text: &str) -> Result<String, String> {
    let at = humantime::parse_rfc3339_weak(text).or_else(|_| {
        let ago = super::super::quantity::age(text)?;
        SystemTime::now().checked_sub(ago).ok_or_else(|| "that long ago there was no time yet".to_owned())
    });
    let at = at.map_err(|_| format!("`{text}` is neither a time like 2026-11-22T15:00:00Z nor a duration like 10m"))?;
    Ok(humantime::format_rfc3339_micros(at).to_string())
}
