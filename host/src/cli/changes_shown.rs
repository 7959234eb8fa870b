//! What a call would change, as `diff -u` says it, and the question whether it may.

use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal, Write as _};
use std::path::Path;
use std::time::Duration;

use similar::TextDiff;

use super::{drives_a_terminal, printable_line};
use crate::workspace::{CHANGES_MAX, Changes, FileChange, Shown};

/// An answer is never longer (bytes).
const ANSWER_BYTES_MAX: u64 = 1024;

/// As it is, for a program that applies it; harmless for a terminal.
pub(super) fn to_be_applied(changes: &Changes) -> String {
    let diff = diff(changes);
    if std::io::stdout().is_terminal() { harmless(&diff) } else { diff }
}

/// What files hold may not drive the terminal.
pub(super) fn harmless(diff: &str) -> String {
    let shown = |letter| if letter != '\n' && letter != '\t' && drives_a_terminal(letter) { ' ' } else { letter };
    diff.chars().map(shown).collect()
}

/// A unified diff; what is no text is named.
pub(super) fn diff(changes: &Changes) -> String {
    let mut text = String::new();
    for change in &changes.files {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", one(change).trim_end_matches('\n'));
    }
    if changes.files.is_empty() {
        text.push_str("no file is changed; its own state is\n");
    }
    if changes.more {
        let _ = writeln!(text, "… and more: only the first {CHANGES_MAX} changes are shown");
    }
    text
}

fn one(change: &FileChange) -> String {
    let name = |path: &Path| printable_line(&path.display().to_string());
    let path = name(&change.path);
    match (&change.from, &change.before, &change.after) {
        (_, None, None) => format!("times of {path}"),
        (_, Some(Shown::File(old)), Some(Shown::File(new))) if old == new => format!("times of {path}"),
        (Some(from), None, Some(new)) => match new {
            // It may have been changed as well.
            Shown::File(_) => format!("moved {} to {path}\n{}", name(from), hunks(&path, None, Some(new))),
            _ => format!("moved {} to {path}", name(from)),
        },
        (_, Some(old), None) if !matches!(old, Shown::File(_)) => format!("removed {} {path}", what(old)),
        (_, None, Some(new)) if !matches!(new, Shown::File(_)) => format!("new {} {path}", what(new)),
        (_, old @ (None | Some(Shown::File(_))), new @ (None | Some(Shown::File(_)))) => {
            hunks(&path, old.as_ref(), new.as_ref())
        }
        (_, Some(old), Some(new)) => format!("changed {path}: {} to {}", what(old), what(new)),
        (_, Some(old), None) => format!("removed {} {path}", what(old)),
        (_, None, Some(new)) => format!("new {} {path}", what(new)),
    }
}

/// Of a file that is there before, or after, or both.
fn hunks(path: &str, old: Option<&Shown>, new: Option<&Shown>) -> String {
    let content = |shown: Option<&Shown>| match shown {
        Some(Shown::File(data)) => String::from_utf8(data.clone()).ok().filter(|text| !text.contains('\0')),
        _ => Some(String::new()),
    };
    let head = |shown: Option<&Shown>, side: &str| match shown {
        Some(_) => format!("{side}/{path}"),
        None => "/dev/null".into(),
    };
    let (from, to) = (head(old, "a"), head(new, "b"));
    match (content(old), content(new)) {
        (Some(before), Some(after)) => {
            let diff = TextDiff::from_lines(&before, &after).unified_diff().header(&from, &to).to_string();
            // An empty file has no lines to show.
            if diff.is_empty() { format!("--- {from}\n+++ {to}") } else { diff }
        }
        _ => format!("--- {from}\n+++ {to}\nBinary files differ"),
    }
}

fn what(shown: &Shown) -> String {
    match shown {
        Shown::File(data) => format!("file of {} bytes", data.len()),
        Shown::Large { bytes } => format!("file of {bytes} bytes"),
        Shown::Directory => "folder".into(),
        Shown::Link(to) => format!("link to {}", printable_line(&to.display().to_string())),
        Shown::Special => "special file".into(),
    }
}

/// Whether whoever sits at the terminal says yes, in time.
pub(super) async fn agreed(within: Duration) -> bool {
    let (answer, answered) = tokio::sync::oneshot::channel();
    // A thread of its own: nobody waits for one that waits for a person.
    let asked = std::thread::Builder::new().name("estop-ask".into()).spawn(move || {
        let mut stderr = std::io::stderr();
        let _ = write!(stderr, "estop: commit these changes? [y/N] ").and_then(|()| stderr.flush());
        let mut line = String::new();
        let read = std::io::Read::take(std::io::stdin().lock(), ANSWER_BYTES_MAX).read_line(&mut line);
        // The call may have been stopped meanwhile.
        let _ = answer.send(read.is_ok() && matches!(line.trim().to_lowercase().as_str(), "y" | "yes"));
    });
    asked.is_ok() && matches!(tokio::time::timeout(within, answered).await, Ok(Ok(true)))
}
