//! An outcome and what comes before it, as people and scripts are shown them: the same from `run` and from `call`.

use std::io::{IsTerminal, Read};
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::Value;

use super::exit_code::WithCode;
use super::{ExitCode, json_text, print, printable, printable_line, say};
use crate::call::{Commits, Effect};
use crate::{Cause, Containment, Progress, Size};

/// What is read of an input at most (bytes); the call's own limit is smaller.
const INPUT_BYTES_MAX: u64 = 16 << 20;

/// A tool's input, as `--input` names it.
pub(super) fn read_input(input: &str) -> anyhow::Result<Value> {
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

/// Progress: a bar on a terminal, lines elsewhere.
pub(super) struct Shown {
    bar: Option<ProgressBar>,
}

impl Shown {
    pub(super) fn new() -> Self {
        Self { bar: std::io::stderr().is_terminal().then(ProgressBar::no_length) }
    }

    pub(super) fn show(&self, progress: &Progress) {
        let said = printable_line(&progress.message);
        let Some(bar) = &self.bar else {
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
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What [`Outcome::to_json`](crate::Outcome::to_json) says, as far as people are told it.
#[derive(Deserialize)]
struct Told {
    call: String,
    status: String,
    output: Value,
    attachments: Vec<Attached>,
    error: Option<Failed>,
    cause: Option<Cause>,
    actor: Option<String>,
    reason: Option<String>,
    commits: Commits,
    discarded: Size,
    effects: Vec<Effect>,
    subprocesses: Option<Containment>,
    elapsed_us: f64,
}

#[derive(Deserialize)]
struct Attached {
    name: String,
    media_type: String,
    bytes: u64,
}

#[derive(Deserialize)]
struct Failed {
    message: String,
    code: Option<String>,
}

/// Prints the output, or with `json` the whole outcome; says what a person has to know beside it; and answers which code
/// tells it.
pub(super) fn finish(outcome: &Value, json: bool) -> anyhow::Result<ExitCode> {
    let told = Told::deserialize(outcome).context("the outcome cannot be understood")?;
    if json {
        print(&json_text(outcome))?;
    } else if told.status == "completed" {
        print(&json_text(&told.output))?;
    }
    told.tell(json);
    Ok(told.code())
}

impl Told {
    fn code(&self) -> ExitCode {
        let failed = self.error.as_ref().and_then(|error| error.code.as_deref());
        match (&*self.status, self.cause) {
            ("completed", _) => ExitCode::Completed,
            ("stopped", Some(cause)) => cause.into(),
            // The tool did its work; what is not known is the host's affair.
            ("failed", _) if failed == Some("commit-unknown") => ExitCode::HostFailed,
            ("failed", _) => ExitCode::ToolFailed,
            ("invalid-input", _) => ExitCode::InvalidInput,
            ("conflict", _) => ExitCode::Conflict,
            ("trapped", _) => ExitCode::Trapped,
            ("refused", _) => ExitCode::Refused,
            // Of a newer version of estop.
            _ => ExitCode::HostFailed,
        }
    }

    fn tell(&self, json: bool) {
        match (&*self.status, self.cause) {
            ("completed", _) => {
                for Attached { name, media_type, bytes } in self.attachments.iter().filter(|_| !json) {
                    say(&format!("estop: attachment {name:?} ({media_type:?}, {bytes} bytes)"));
                }
                return;
            }
            ("stopped", Some(cause)) => {
                let reason = self.reason.as_deref().filter(|reason| !reason.is_empty());
                let reason = reason.map(|reason| format!(": {}", printable(reason))).unwrap_or_default();
                let ran = humantime::format_duration(Duration::from_millis((self.elapsed_us / 1e3) as u64));
                let actor = printable(self.actor.as_deref().unwrap_or_default());
                let call = printable(&self.call);
                say(&format!("estop: {call} stopped by {actor} ({cause}{reason}) after {ran}"));
            }
            (status, _) => {
                let message = self.error.as_ref().map_or("", |error| error.message.as_str());
                say(&format!("estop: {}: {}", printable(status), printable(message)));
            }
        }
        let committed = match &self.commits {
            commits if commits.unknown => "whether the last commit is durable is UNKNOWN".to_owned(),
            commits if commits.points == 0 => "nothing was committed".to_owned(),
            commits if commits.files > 0 => {
                let (files, of) = (commits.files, commits.file_bytes);
                format!(
                    "{} writes ({} bytes) and {files} changes of files ({of} bytes) were committed before",
                    commits.writes, commits.bytes
                )
            }
            commits => format!("{} writes ({} bytes) were committed before", commits.writes, commits.bytes),
        };
        let Size { writes, bytes, files, file_bytes } = self.discarded;
        let files =
            if files > 0 { format!(" and {files} changes of files ({file_bytes} bytes)") } else { String::new() };
        say(&format!("estop: {writes} uncommitted writes ({bytes} bytes){files} were discarded; {committed}"));
        for effect in &self.effects {
            say(&format!("estop: outside the transaction: {:?} {:?}", effect.name, effect.state));
        }
        if self.subprocesses == Some(Containment::Unverified) {
            say("estop: subprocesses: unverified: nobody could see whether everything that they started is gone");
        }
    }
}
