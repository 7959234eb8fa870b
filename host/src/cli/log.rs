//! `estop log`: the record, and whether it is as it was written.

mod filter;
mod words;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};

use self::filter::Filter;
pub(super) use self::words::{tell, tree};
use super::exit_code::usage;
use super::{ExitCode, escaped, home, is_read, json_text, print, say};
use crate::log::bundle::bundle;
use crate::log::checkpoint::{own_public_key, read_public_key};
use crate::log::export::{export, verify, walk};
use crate::log::verify::{Verified, Verifier, verify_file};
use crate::store::StoreError;
use crate::store::sqlite::{Look, Sqlite};

/// How often `tail --follow` looks for more.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);
/// Lines that `tail --follow` reads at once.
const FOLLOW_LINES_MAX: usize = 1000;

/// Look into the record of what happened, verify it, and take it elsewhere.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print entries, oldest first
    Show {
        #[command(flatten)]
        home: home::Options,
        #[command(flatten)]
        filter: Filter,
        /// Only the newest N of them
        #[arg(short = 'n', long, value_name = "N")]
        newest: Option<usize>,
        /// Interrupts, each with the calls that it stopped and the calls of those
        #[arg(long, conflicts_with = "json")]
        tree: bool,
        /// The entries as they are in the log, one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Print the newest entries, and new ones as they come
    Tail {
        #[command(flatten)]
        home: home::Options,
        #[command(flatten)]
        filter: Filter,
        /// How many
        #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
        newest: usize,
        /// Go on until Ctrl-C
        #[arg(short, long)]
        follow: bool,
        /// The entries as they are in the log, one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Verify the home's log, or an exported one: every line in its place, every signature right
    Verify {
        #[command(flatten)]
        home: home::Options,
        /// An exported log
        file: Option<PathBuf>,
        /// The public key (PEM) that has to have signed it, kept from an earlier day
        #[arg(long, value_name = "PEM")]
        key: Option<PathBuf>,
        /// Checkpoints that were kept elsewhere, such as by --checkpoint-to file:…: the log has to have what they cover
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
        /// What was found, as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write the whole log to a file, or to standard output, with a signed end
    Export {
        #[command(flatten)]
        home: home::Options,
        /// A file that does not exist yet
        #[arg(conflicts_with = "bundle")]
        file: Option<PathBuf>,
        /// Instead, everything that an auditor needs, in a folder that is empty or does not exist yet: the log, checkpoints,
        /// public keys, halts, drills, a report, and a script that verifies all of it without estop
        #[arg(long, value_name = "DIR")]
        bundle: Option<PathBuf>,
    },
    /// Export the oldest entries to a file and remove them, up to a checkpoint; what is left still verifies
    Prune {
        #[command(flatten)]
        home: home::Options,
        /// Keep what is younger than this, such as 30d
        #[arg(long, value_parser = super::quantity::age, required_unless_present = "before")]
        keep: Option<Duration>,
        /// Keep this line of the log and what comes after it
        #[arg(long, value_name = "SEQ", conflicts_with = "keep")]
        before: Option<u64>,
        /// Where they go: a file that does not exist yet
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Sign what is in the log now
    Checkpoint {
        #[command(flatten)]
        home: home::Options,
    },
    /// Let a new key sign from here on; the old one vouches for it
    RotateKey {
        #[command(flatten)]
        home: home::Options,
    },
}

pub(super) fn main(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Show { home, filter, newest, tree, json } => {
            let look = home.look()?;
            show(&look, look.newest()?, filter, newest, tree, json)?;
        }
        Command::Tail { home, filter, newest, follow, json } => tail(&home.look()?, &filter, newest, follow, json)?,
        Command::Verify { home, file, key, checkpoint, json } => return verified(&home, file, key, checkpoint, json),
        Command::Export { home, bundle: Some(folder), .. } => {
            let end = bundle(&home.look()?, &folder)?;
            let (first, last, folder) = (end.first, end.last, folder.display());
            say(&format!("estop: lines {first} to {last} and what belongs to them are in `{folder}`"));
            say(&format!("estop: `sh {folder}/verify.sh` verifies it; keep a copy of that script elsewhere"));
        }
        Command::Export { home, file, bundle: None } => exported(&home.look()?, file)?,
        Command::Prune { home, keep, before, to } => {
            let look = home.look()?;
            let before = match (before, keep) {
                (Some(before), _) => before,
                (None, keep) => first_since(&look, SystemTime::now().checked_sub(keep.unwrap_or_default()))?,
            };
            let pruned = Sqlite::open(&home.open()?)?.prune(before, &to)?;
            let (removed, first) = (pruned.removed, pruned.first);
            say(&format!("estop: {removed} entries are in `{}` and no longer in the log", to.display()));
            say(&format!("estop: the log begins with its line {first}; sha256 of the file: {}", pruned.sha256));
        }
        Command::Checkpoint { home } => {
            let look = home.look()?;
            let before = look.newest()?;
            Sqlite::open(&home.open()?)?.checkpoint()?;
            let mut newest = None;
            walk(&look, look.newest()?, |seq, line| {
                // An older one says nothing of what has come since.
                if seq >= before && line.contains("\"kind\":\"checkpoint\"") {
                    newest = Some(line.to_owned());
                }
                Ok::<_, StoreError>(())
            })?;
            print(&newest.context("nothing could be signed; see above")?)?;
        }
        Command::RotateKey { home } => {
            // Nothing is begun by this.
            drop(home.look()?);
            let home = home.open()?;
            Sqlite::open(&home)?.rotate_key()?;
            say(&format!("estop: a new key signs the log of `{}` from here on", home.path().display()));
        }
    }
    Ok(ExitCode::Completed)
}

fn show(
    look: &Look,
    last: u64,
    filter: Filter,
    newest: Option<usize>,
    as_tree: bool,
    json: bool,
) -> anyhow::Result<()> {
    if as_tree {
        let mut entries = Vec::new();
        walk(look, last, |_, line| {
            entries.extend(serde_json::from_str::<Value>(line));
            Ok::<_, StoreError>(())
        })?;
        let interrupts = entries.iter().filter(|entry| entry["kind"] == "interrupt" && filter.admits(entry));
        let skip = newest.map_or(0, |newest| interrupts.clone().count().saturating_sub(newest));
        for interrupt in interrupts.skip(skip) {
            print(&tree(&entries, interrupt["interrupt"].as_str().unwrap_or_default()))?;
        }
        return Ok(());
    }
    let Some(newest) = newest else {
        return walk(look, last, |_, line| show_line(line, &filter, json).map(drop));
    };
    let mut shown = std::collections::VecDeque::new();
    walk(look, last, |_, line| {
        if filter.admits_line(line) {
            shown.push_back(line.to_owned());
            if shown.len() > newest {
                shown.pop_front();
            }
        }
        Ok::<_, StoreError>(())
    })?;
    shown.iter().try_for_each(|line| show_line(line, &filter, json).map(drop))
}

/// Whether anybody still reads.
fn show_line(line: &str, filter: &Filter, json: bool) -> anyhow::Result<bool> {
    let Ok(entry) = serde_json::from_str::<Value>(line) else {
        say("estop: a line of the log is no JSON; `estop log verify` says which");
        return Ok(true);
    };
    if filter.admits(&entry) { is_read(&if json { escaped(line) } else { tell(&entry) }) } else { Ok(true) }
}

fn tail(look: &Look, filter: &Filter, newest: usize, follow: bool, json: bool) -> anyhow::Result<()> {
    let mut after = look.newest()?;
    show(look, after, filter.clone(), Some(newest), false, json)?;
    if !follow {
        return Ok(());
    }
    loop {
        let lines = look.lines(after, FOLLOW_LINES_MAX)?;
        for (seq, line) in &lines {
            after = *seq;
            if !show_line(line, filter, json)? {
                return Ok(());
            }
        }
        if lines.is_empty() {
            thread::sleep(FOLLOW_EVERY);
        }
    }
}

fn verified(
    home: &home::Options,
    file: Option<PathBuf>,
    key: Option<PathBuf>,
    checkpoints: Option<PathBuf>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let look = if file.is_none() { Some(home.look()?) } else { None };
    let about = look.as_ref().map(Look::home_id).transpose()?;
    let given = key.map(|key| read_public_key(&key)).transpose()?;
    let is_given = given.is_some();
    let pinned = match (given, &look) {
        (None, Some(look)) => own_public_key(look.folder())?,
        (given, _) => given,
    };
    let mut verifier = Verifier::new(pinned, about);
    if let Some(path) = checkpoints {
        let kept = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let foreign = || format!("`{}` does not have checkpoints of this log", path.display());
        verifier.kept(&kept).with_context(foreign)?;
    }
    let verified = match (&file, look) {
        (None, Some(look)) => {
            let home = look.folder().display().to_string();
            verify(&look, verifier).with_context(|| format!("the log of `{home}` is NOT as it was written"))?
        }
        (file, _) => {
            let path = file.clone().unwrap_or_default();
            let file = File::open(&path).with_context(|| format!("cannot open `{}`", path.display()))?;
            verify_file(file, verifier).with_context(|| format!("`{}` is NOT as it was exported", path.display()))?
        }
    };
    let Verified { first, last, sha256, signatures, signed_to, key, pinned } = verified;
    if json {
        print(&json_text(&json!({
            "first": first, "last": last, "sha256": sha256, "signatures": signatures, "signed_to": signed_to,
            "key": key, "pinned": pinned,
        })))?;
        return Ok(ExitCode::Completed);
    }
    print(&format!("verified: lines {first} to {last}, each in its place; sha256 of the last: {sha256}"))?;
    match key {
        Some(key) if is_given => print(&format!("signed up to line {signed_to} by the key you gave ({key})"))?,
        Some(key) => {
            print(&format!("signed up to line {signed_to} by the key {key}"))?;
            say("estop: whether that is the right key is for you to know: `--key PEM` compares it with one you kept");
        }
        None => say("estop: nothing in it is signed yet"),
    }
    Ok(ExitCode::Completed)
}

fn exported(look: &Look, file: Option<PathBuf>) -> anyhow::Result<()> {
    let last = look.newest()?;
    let Some(path) = file else {
        export(look, last, io::BufWriter::new(io::stdout().lock()))?;
        return Ok(());
    };
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let created = created.with_context(|| format!("cannot make `{}`", path.display()))?;
    let end = export(look, last, io::BufWriter::new(&created)).and_then(|end| Ok(created.sync_all().map(|()| end)?));
    match end {
        Ok(end) => say(&format!("estop: lines {} to {} are in `{}`", end.first, end.last, path.display())),
        Err(error) => {
            // Half a log is of no use to anybody.
            let _ = fs::remove_file(&path);
            return Err(error.into());
        }
    }
    Ok(())
}

/// The first line that is not older than this.
fn first_since(look: &Look, since: Option<SystemTime>) -> anyhow::Result<u64> {
    let since = since.ok_or_else(|| usage("that long ago there was no time yet"))?;
    let since = humantime::format_rfc3339_micros(since).to_string();
    let last = look.newest()?;
    let mut first = last + 1;
    walk(look, last, |seq, line| {
        let entry: Value = serde_json::from_str(line).unwrap_or_default();
        // Times of the same form are in the order of their letters.
        if entry["at"].as_str().is_some_and(|at| *at >= *since) {
            first = first.min(seq);
        }
        Ok::<_, StoreError>(())
    })?;
    Ok(first)
}
