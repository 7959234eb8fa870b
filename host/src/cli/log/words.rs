//! Entries in words, and an interrupt with what it stopped as a tree.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde_json::Value;

use crate::cli::{printable, printable_line};

/// Calls of calls are shown this deep.
const DEPTH_MAX: usize = 32;

/// One entry on one line.
pub(in crate::cli) fn tell(entry: &Value) -> String {
    let text = |name: &str| printable_line(entry[name].as_str().unwrap_or_default());
    let who = || format!("{} {}/{}", text("call"), text("agent"), text("tool"));
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let what = match entry["kind"].as_str().unwrap_or_default() {
        "start" => format!("{} started", who()),
        "commit" => {
            let (writes, bytes) = (number(&entry["writes"]), number(&entry["bytes"]));
            format!("{} commit point {}: {writes} writes, {bytes} bytes", who(), number(&entry["point"]))
        }
        "end" => format!("{} {}", who(), end(entry)),
        "interrupt" => format!("{} {}", text("interrupt"), stop(entry)),
        "refusal" => format!("{} refused: {}", who(), text("why")),
        "refusals" => format!("{} more calls refused: {}", number(&entry["count"]), text("why")),
        "denied" => {
            let times = number(&entry["times"]);
            let times = if times > 1 { format!(" ({times} times)") } else { String::new() };
            format!("{} denied to {}: {}{times}", text("verb"), text("actor"), text("why"))
        }
        "lost" => format!("{} entries had no room", number(&entry["entries"])),
        "opened" => format!("opened by process {} (estop {})", number(&entry["pid"]), text("version")),
        "closed" => "closed".to_owned(),
        "cut" => cut(entry),
        "died" => {
            let (pid, calls) = (number(&entry["pid"]), number(&entry["calls"]));
            format!("{} (process {pid}) died with {calls} calls running", text("died"))
        }
        "call-died" => format!("{} ended with its host {}; {}", who(), text("died"), committed(&entry["commits"])),
        "resolved" => {
            let durable = if entry["durable"] == true { "is durable" } else { "is not there" };
            format!("{} commit point {}, which was unknown, {durable}", text("call"), number(&entry["point"]))
        }
        "halt" => {
            let latched = if entry["latched"] == true { "" } else { ", NOT on the disk" };
            let place = if entry["machine"] == true { " on this machine" } else { "" };
            let retired = if entry["permanent"] == true { " retired for good" } else { "" };
            format!(
                "{} {}{place}{retired} by {}{}{latched}",
                text("halt"),
                scope(&entry["scope"]),
                text("actor"),
                reason(&text("reason"))
            )
        }
        "lift" => {
            format!(
                "{} {} lifted by {}{}",
                text("halt"),
                scope(&entry["scope"]),
                text("actor"),
                reason(&text("reason"))
            )
        }
        "killed" => {
            let pid = number(&entry["pid"]);
            format!("process {pid} killed by {}: it did not answer to {}", text("actor"), text("halt"))
        }
        "unload" => format!("`{}` taken away by {}{}", text("name"), text("actor"), reason(&text("reason"))),
        "load" => {
            let what = entry["name"].as_str().map_or_else(|| "all tools".into(), |_| format!("`{}`", text("name")));
            format!("{what} to be loaded, says {}", text("actor"))
        }
        "drill" => format!("by {}: {}", text("actor"), drilled(entry)),
        "gap" => {
            let beside = number(&entry["alternate"]);
            format!("could not be written since {} ({}); {beside} stops stand beside it", text("since"), text("why"))
        }
        "alternate" => format!("of {}, beside the log: {}", text("died"), tell(&entry["entry"])),
        "checkpoint" => format!("lines up to {} signed by {}", number(&entry["covers"]), text("key")),
        "key-rotated" => format!("signed by {} from here on, said {}", text("next"), text("key")),
        "pruned" => {
            format!("lines before {} are in `{}` (sha256 {})", number(&entry["first"]), text("file"), text("sha256"))
        }
        "cache" => format!("compiled {} anew: {}", text("component"), text("why")),
        _ => printable(&entry.to_string()),
    };
    format!("{:>6} {} {} {what}", number(&entry["seq"]), text("at"), text("kind"))
}

fn drilled(entry: &Value) -> String {
    let mut line = if entry["passed"] == true { "passed".to_owned() } else { "FAILED".to_owned() };
    for case in entry["cases"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let name = printable_line(case["name"].as_str().unwrap_or_default());
        let (runs, unconfirmed) = (case["runs"].as_u64().unwrap_or(0), case["unconfirmed"].as_u64().unwrap_or(0));
        let _ = write!(line, "; {name}: {runs} stopped, halted within {} µs at the 99th percentile", case["p99_us"]);
        if unconfirmed > 0 {
            let _ = write!(line, ", {unconfirmed} UNCONFIRMED");
        }
    }
    let reached = entry["others_interrupted"].as_u64().unwrap_or(0);
    let _ = write!(line, "; {reached} of {} calls of others reached", entry["others"].as_u64().unwrap_or(0));
    if let Some(why) = entry["not_held"].as_str() {
        let _ = write!(line, "; {}", printable_line(why));
    }
    line
}

fn end(entry: &Value) -> String {
    let text = |name: &str| printable_line(entry[name].as_str().unwrap_or_default());
    let mut line = text("status");
    if entry["cause"].is_string() {
        let _ = write!(line, " ({} by {}{})", text("cause"), text("actor"), reason(&text("reason")));
        let us = |name: &str| entry[name].as_f64().unwrap_or(0.0);
        let _ = write!(line, ", halted after {:.1} µs, released after {:.1} µs", us("halted_us"), us("released_us"));
    }
    let _ = write!(line, "; {}", committed(&entry["commits"]));
    let discarded = |what: &str| entry["discarded"][what].as_u64().unwrap_or(0);
    let (writes, bytes) = (discarded("writes"), discarded("bytes"));
    if writes > 0 {
        let _ = write!(line, ", {writes} writes ({bytes} bytes) discarded");
    }
    for effect in entry["effects"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let (name, state) = (&effect["name"], effect["state"].as_str().unwrap_or_default());
        let _ = write!(line, ", {} {}", printable(&name.to_string()), printable(state));
    }
    if entry["subprocesses"].is_string() {
        let _ = write!(line, ", subprocesses: {}", text("subprocesses"));
    }
    line
}

fn cut(entry: &Value) -> String {
    let unconfirmed = entry["unconfirmed"].as_u64().unwrap_or(0);
    let mut line = format!("shut down with {unconfirmed} calls NOT RELEASED");
    for cut in entry["hooks"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let text = |name: &str| printable_line(cut[name].as_str().unwrap_or_default());
        let _ = write!(line, ", hook {}: {}", text("hook"), text("why"));
    }
    line
}

fn committed(commits: &Value) -> String {
    if commits["unknown"] == true {
        return "whether its last commit is durable was UNKNOWN".to_owned();
    }
    match commits["points"].as_u64().unwrap_or(0) {
        0 => "nothing committed".to_owned(),
        points => format!("{} writes committed in {points} points", commits["writes"].as_u64().unwrap_or(0)),
    }
}

fn stop(entry: &Value) -> String {
    let text = |name: &str| printable_line(entry[name].as_str().unwrap_or_default());
    let scope = printable(&entry["scope"].to_string());
    let reached = entry["reached"].as_u64().unwrap_or(0);
    format!("{} by {}{}: {scope} reached {reached} calls", text("cause"), text("actor"), reason(&text("reason")))
}

fn scope(scope: &Value) -> String {
    let Some((what, name)) = scope.as_object().and_then(|scope| scope.iter().next()) else {
        return "everything".to_owned();
    };
    format!("{what} {}", printable_line(name.as_str().unwrap_or_default()))
}

fn reason(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(", {text}") }
}

/// An interrupt, the calls that it reached, and what they had called.
pub(in crate::cli) fn tree(entries: &[Value], interrupt: &str) -> String {
    let Some(root) = entries.iter().find(|entry| entry["kind"] == "interrupt" && entry["interrupt"] == interrupt)
    else {
        return format!("{interrupt}: its entry is not in the log");
    };
    let ends: HashMap<&str, &Value> = entries
        .iter()
        .filter(|entry| entry["kind"] == "end" || entry["kind"] == "call-died")
        .filter_map(|entry| Some((entry["call"].as_str()?, entry)))
        .collect();
    let stopped_by = |end: &Value| end["interrupt"] == interrupt;
    let named = root["calls"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut calls: Vec<(&str, &str)> =
        named.iter().filter_map(|reached| Some((reached[0].as_str()?, reached[1].as_str()?))).collect();
    // The entry names a bounded number; the ends of the others name the interrupt.
    let unnamed = ends.iter().filter(|(call, end)| stopped_by(end) && calls.iter().all(|(named, _)| named != *call));
    let mut unnamed: Vec<_> = unnamed.map(|(call, _)| (*call, "reached")).collect();
    unnamed.sort_unstable();
    calls.extend(unnamed);
    let is_reached = |call: &str| calls.iter().any(|(reached, _)| *reached == call);
    let roots = calls.iter().filter(|(call, _)| {
        let parent = ends.get(call).and_then(|end| end["parent"].as_str());
        parent.is_none_or(|parent| !is_reached(parent))
    });
    let mut text = tell(root);
    let mut under: Vec<(usize, &str, &str)> = roots.map(|(call, how)| (1, *call, *how)).rev().collect();
    while let Some((depth, call, how)) = under.pop() {
        let end = ends.get(call).map_or("no end in the log".to_owned(), |entry| {
            let text = |name: &str| printable(entry[name].as_str().unwrap_or_default());
            format!("{}/{} {}", text("agent"), text("tool"), end(entry))
        });
        let (named, how) = (printable(call), printable(how));
        let _ = write!(text, "\n{:indent$}└ {named} was {how}: {end}", "", indent = depth * 2);
        if depth < DEPTH_MAX {
            let children = calls.iter().filter(|(child, _)| {
                ends.get(child).and_then(|end| end["parent"].as_str()).is_some_and(|parent| parent == call)
            });
            under.extend(children.map(|(child, how)| (depth + 1, *child, *how)).rev());
        }
    }
    text
}
