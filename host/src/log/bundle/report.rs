//! A bundle's report: what the log says, for people, in Markdown.
//!
//! Invariant: it adds nothing. Every line is counted or copied from the log or from a halt's file, and what is left out for
//! its length is counted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::path::Path;
use std::time::SystemTime;

use serde_json::Value;

use crate::interrupt::HOST_ACTOR;
use crate::log::checkpoint::ExportEnd;

/// Rows of one table: the newest.
const ROWS_MAX: usize = 1000;
/// Halts that the log does not say were lifted; more are not followed.
const OPEN_HALTS_MAX: usize = 10_000;
/// Versions of estop that are named.
const VERSIONS_MAX: usize = 100;

pub(super) struct Report {
    home: String,
    end: ExportEnd,
    keys: Vec<String>,
    first_at: Option<String>,
    last_at: String,
    kinds: BTreeMap<String, u64>,
    ends: BTreeMap<String, u64>,
    causes: BTreeMap<String, u64>,
    versions: BTreeSet<String>,
    open_halts: BTreeSet<String>,
    in_force: Vec<String>,
    in_force_ids: BTreeSet<String>,
    acts: Rows,
    stops: Rows,
    drills: Rows,
    gaps: Rows,
}

/// The newest rows of a table.
#[derive(Default)]
struct Rows {
    rows: VecDeque<String>,
    left_out: u64,
}

impl Rows {
    fn add(&mut self, cells: &[&str]) {
        if self.rows.len() == ROWS_MAX {
            self.rows.pop_front();
            self.left_out += 1;
        }
        self.rows.push_back(row(cells.iter().map(|cell| escaped(cell))));
    }

    fn table(&self, text: &mut String, title: &str, columns: &[&str]) {
        let _ = writeln!(text, "\n## {title}\n");
        if self.rows.is_empty() {
            text.push_str("None.\n");
            return;
        }
        if self.left_out > 0 {
            let _ = writeln!(text, "The newest {ROWS_MAX}; {} before them are in `log.jsonl`.\n", self.left_out);
        }
        text.push_str(&row(columns.iter().map(|column| (*column).to_owned())));
        text.push_str(&row(columns.iter().map(|_| "---".to_owned())));
        text.extend(self.rows.iter().map(String::as_str));
    }
}

fn row(cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<_> = cells.collect();
    format!("| {} |\n", cells.join(" | "))
}

/// What people and programs have said may be neither markup nor drive a terminal.
fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        let hides = matches!(
            character,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
        );
        if character.is_control() || hides {
            shown.push(' ');
        } else {
            if "\\`*_[]<>#|~".contains(character) {
                shown.push('\\');
            }
            shown.push(character);
        }
    }
    shown
}

fn text<'a>(entry: &'a Value, name: &str) -> &'a str {
    entry[name].as_str().unwrap_or_default()
}

/// `{"agent":"a"}` and `"all"` in words.
fn scope(scope: &Value) -> String {
    match scope.as_object().and_then(|scope| scope.iter().next()) {
        Some((what, name)) => format!("{what} {}", name.as_str().unwrap_or_default()),
        None => scope.as_str().unwrap_or_default().to_owned(),
    }
}

/// Microseconds, where something was measured.
fn us(value: &Value) -> String {
    value.as_f64().map_or_else(|| "–".to_owned(), |us| format!("{us:.1}"))
}

impl Report {
    pub(super) fn new(home: &Path, end: &ExportEnd) -> Self {
        Self {
            home: home.display().to_string(),
            end: end.clone(),
            keys: Vec::new(),
            first_at: None,
            last_at: String::new(),
            kinds: BTreeMap::new(),
            ends: BTreeMap::new(),
            causes: BTreeMap::new(),
            versions: BTreeSet::new(),
            open_halts: BTreeSet::new(),
            in_force: Vec::new(),
            in_force_ids: BTreeSet::new(),
            acts: Rows::default(),
            stops: Rows::default(),
            drills: Rows::default(),
            gaps: Rows::default(),
        }
    }

    pub(super) fn key(&mut self, number: usize, key: &str) {
        self.keys.push(format!("- `keys/{number}.pem`: {}\n", escaped(key)));
    }

    pub(super) fn halt(&mut self, file: &str, content: &[u8]) {
        let halt: Value = serde_json::from_slice(content).unwrap_or_default();
        self.in_force_ids.insert(text(&halt, "halt").to_owned());
        let what = if halt["halt"].is_string() { scope(&halt["scope"]) } else { "everything: it says no more".into() };
        let cells = [file, &what, text(&halt, "actor"), text(&halt, "at"), text(&halt, "reason")];
        self.in_force.push(row(cells.iter().map(|cell| escaped(cell))));
    }

    pub(super) fn unreadable_halts(&mut self, path: &Path, error: &std::io::Error) {
        let path = path.display().to_string();
        self.gaps.add(&["–", "halts", &format!("{path} cannot be read, so everything counts as halted: {error}")]);
    }

    pub(super) fn add(&mut self, entry: &Value) {
        let (kind, at) = (text(entry, "kind"), text(entry, "at"));
        *self.kinds.entry(kind.to_owned()).or_default() += 1;
        self.first_at.get_or_insert_with(|| at.to_owned());
        self.last_at = at.to_owned();
        let number = |name: &str| entry[name].as_u64().unwrap_or(0);
        let mut gap = |what: &str| self.gaps.add(&[at, kind, what]);
        match kind {
            "end" => {
                *self.ends.entry(text(entry, "status").to_owned()).or_default() += 1;
                if let Some(cause) = entry["cause"].as_str() {
                    *self.causes.entry(cause.to_owned()).or_default() += 1;
                }
            }
            "opened" if self.versions.len() < VERSIONS_MAX => {
                self.versions.insert(text(entry, "version").to_owned());
            }
            "halt" => {
                let latched = entry["latched"] == true;
                if latched && self.open_halts.len() < OPEN_HALTS_MAX {
                    self.open_halts.insert(text(entry, "halt").to_owned());
                }
                let did = match (latched, entry["permanent"] == true) {
                    (true, false) => "halted",
                    (true, true) => "retired",
                    (false, _) => "halted, NOT on the disk",
                };
                let what = format!("{} ({})", scope(&entry["scope"]), text(entry, "halt"));
                self.acts.add(&[at, text(entry, "actor"), did, &what, text(entry, "reason")]);
            }
            "lift" => {
                self.open_halts.remove(text(entry, "halt"));
                let what = format!("{} ({})", scope(&entry["scope"]), text(entry, "halt"));
                self.acts.add(&[at, text(entry, "actor"), "lifted", &what, text(entry, "reason")]);
            }
            "killed" => {
                let what = format!("process {}, which did not answer to {}", number("pid"), text(entry, "halt"));
                self.acts.add(&[at, text(entry, "actor"), "killed", &what, ""]);
            }
            "unload" => {
                self.acts.add(&[at, text(entry, "actor"), "took away", text(entry, "name"), text(entry, "reason")]);
            }
            "load" => {
                let what = entry["name"].as_str().unwrap_or("all tools");
                self.acts.add(&[at, text(entry, "actor"), "had loaded", what, ""]);
            }
            "denied" => {
                let did = format!("was denied: {}", text(entry, "verb"));
                let times = number("times");
                let what = if times > 1 { format!("{times} times") } else { String::new() };
                self.acts.add(&[at, text(entry, "actor"), &did, &what, text(entry, "why")]);
            }
            // What the host does by itself is counted; what it does to test itself has a table of its own.
            "interrupt" if entry["cause"] != "drill" && entry["actor"] != HOST_ACTOR => {
                let reached = number("reached").to_string();
                let (who, cause, what) = (text(entry, "actor"), text(entry, "cause"), scope(&entry["scope"]));
                self.stops.add(&[at, who, cause, &what, &reached, text(entry, "reason")]);
            }
            "drill" => self.drilled(entry, at),
            "gap" => gap(&format!(
                "the log could not be written since {}: {}; {} stops stand beside it",
                text(entry, "since"),
                text(entry, "why"),
                number("alternate")
            )),
            "lost" => gap(&format!("{} entries had no room", number("entries"))),
            "cut" => {
                let hooks = entry["hooks"].as_array().map_or(0, Vec::len);
                gap(&format!(
                    "a shutdown left {} calls unreleased and {hooks} hooks unfinished",
                    number("unconfirmed")
                ));
            }
            "died" => gap(&format!("process {} ended without closing, with {} calls", number("pid"), number("calls"))),
            "alternate" => gap("a stop that a host which died had recorded beside the log"),
            "resolved" if entry["durable"] != true => gap("a commit that was told as unknown is not durable"),
            "refusals" => gap(&format!("{} refusals are only counted", number("count"))),
            "pruned" => gap(&format!(
                "lines before {} are in {} (SHA-256 {})",
                number("first"),
                text(entry, "file"),
                text(entry, "sha256")
            )),
            _ => {}
        }
    }

    fn drilled(&mut self, entry: &Value, at: &str) {
        let actor = text(entry, "actor");
        let verdict = |passed: &Value| if *passed == true { "passed" } else { "FAILED" };
        for case in entry["cases"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let figures = |names: [&str; 3]| names.map(|name| us(&case[name])).join(" / ");
            let runs = case["runs"].as_u64().unwrap_or(0).to_string();
            let unconfirmed = case["unconfirmed"].as_u64().unwrap_or(0).to_string();
            let halted = figures(["p50_us", "p99_us", "max_us"]);
            let released = figures(["released_p50_us", "released_p99_us", "released_max_us"]);
            let (name, passed) = (text(case, "name"), verdict(&case["passed"]));
            self.drills.add(&[at, actor, name, &runs, &halted, &released, &unconfirmed, passed]);
        }
        let (others, reached) =
            (entry["others"].as_u64().unwrap_or(0), entry["others_interrupted"].as_u64().unwrap_or(0));
        let mut all = format!("all; {reached} of {others} calls of others reached");
        if let Some(why) = entry["not_held"].as_str() {
            let _ = write!(all, "; {why}");
        }
        self.drills.add(&[at, actor, &all, "", "", "", "", verdict(&entry["passed"])]);
    }

    /// All of it.
    pub(super) fn text(mut self) -> String {
        let ExportEnd { home, first, last, sha256, .. } = &self.end;
        let made = humantime::format_rfc3339_seconds(SystemTime::now());
        let versions: Vec<_> = self.versions.iter().map(|version| escaped(version)).collect();
        let mut report = format!("# Evidence of {home}\n\n");
        let mut fact = |name: &str, value: &str| {
            let _ = writeln!(report, "- {name}: {value}");
        };
        fact("Made", &format!("{made}, by estop {}", env!("CARGO_PKG_VERSION")));
        fact("Home", &escaped(&self.home));
        let (from, to) = (self.first_at.as_deref().unwrap_or_default(), &self.last_at);
        fact("Log", &format!("lines {first} to {last}, from {} to {}", escaped(from), escaped(to)));
        fact("SHA-256 of the last line", sha256);
        let versions = if versions.is_empty() { "not in these lines".to_owned() } else { versions.join(", ") };
        fact("Written by estop", &versions);
        report
            .push_str("\nKeys that have signed, in the order of their first use; the last one signs this bundle:\n\n");
        report.extend(self.keys.iter().map(String::as_str));

        counted(&mut report, "Entries", &self.kinds);
        counted(&mut report, "How calls ended", &self.ends);
        counted(&mut report, "Why calls were stopped", &self.causes);

        report.push_str("\n## Halts in force\n\n");
        if self.in_force.is_empty() {
            report.push_str("None.\n");
        } else {
            report
                .push_str(&row(["file in `halts/`", "covers", "by", "since", "reason"].map(str::to_owned).into_iter()));
            report.push_str(&row(["---"; 5].map(str::to_owned).into_iter()));
            report.extend(self.in_force.iter().map(String::as_str));
        }
        for halt in self.open_halts.difference(&self.in_force_ids) {
            self.gaps.add(&[
                "–",
                "halts",
                &format!("{halt} was not lifted by an entry of the log, and has no file any more"),
            ]);
        }
        let acts = ["when", "who", "did", "what", "reason"];
        self.acts.table(&mut report, "Halted, retired, lifted, killed, denied", &acts);
        let stops = ["when", "who", "cause", "what", "calls reached", "reason"];
        self.stops.table(&mut report, "Stopped, by others than the host itself", &stops);
        let drills = [
            "when",
            "who",
            "case",
            "runs",
            "halted p50 / p99 / max µs",
            "released p50 / p99 / max µs",
            "unconfirmed",
            "verdict",
        ];
        self.drills.table(&mut report, "Drills of hosts that ran", &drills);
        self.gaps.table(&mut report, "Gaps", &["when", "kind", "what"]);
        report.push_str(NOT_COVERED);
        report
    }
}

fn counted(report: &mut String, title: &str, counts: &BTreeMap<String, u64>) {
    let _ = writeln!(report, "\n## {title}\n");
    if counts.is_empty() {
        report.push_str("None.\n");
        return;
    }
    for (what, count) in counts {
        let _ = writeln!(report, "- {}: {count}", escaped(what));
    }
}

/// The same in every bundle.
const NOT_COVERED: &str = "
## What this does not show

- That what a host entered is true: whoever controls a host's process can have it enter anything.
- What was never signed before this bundle, against whoever has the home's key: only checkpoints that were kept elsewhere
  show that the log was not written anew (`verify.sh --checkpoints FILE`).
- Whether the key is the right one: compare it with one that you kept (`verify.sh --key PEM`).
- Other homes, and programs that are not run by estop.
- What tools were given and what they answered: inputs, outputs and state are not in the log.
- Drills by `estop drill` without `--live`: these use a host of their own and are not entered.

## How to verify

`sh verify.sh` in this folder needs sha256sum, jq, sqlite3, openssl and the coreutils, and nothing of estop. Use a copy of
`verify.sh` from elsewhere, or read it: one that comes with what it verifies proves little. `estop log verify log.jsonl`
verifies the log alone. `log.db` has the log's lines as an SQLite table `log (seq, line)`, for questions.
";
