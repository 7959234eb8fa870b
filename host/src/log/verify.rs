//! Whether a log is as it was written: every line in its place, every signature right.
//!
//! Invariant: it believes nothing that it reads. What it accepts is a chain from its first line to its last, which begins
//! at the beginning or at a signed checkpoint, and in which every signature was made by the key that had the right to.

use std::collections::BTreeMap;
use std::io::{BufRead, Read};

use serde::Deserialize;
use serde_json::Value;

use super::chain::{Head, Link};
use super::checkpoint::{Checkpoint, ExportEnd, Pruning, Rotation, Statement};
use crate::tools::Hex;

/// A line is never longer (bytes); an interrupt's entry that names a thousand calls has about 60,000.
const LINE_BYTES_MAX: u64 = 4 << 20;

/// What was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The first line's number.
    pub first: u64,
    /// The last line's number.
    pub last: u64,
    /// SHA-256 of the last line and its newline, in hexadecimal.
    pub sha256: String,
    /// Checkpoints and rotations whose signatures are right.
    pub signatures: u64,
    /// The last line that a signature covers. What comes after it is tied together, but not signed.
    pub signed_to: u64,
    /// The key of the last signature, in Base64.
    pub key: Option<String>,
    /// Whether that is the pinned key, or one that the pinned one has handed over to.
    pub pinned: bool,
}

/// What is wrong, and where.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct Invalid {
    /// The line in the file, or of the log, from one.
    pub line: u64,
    /// What is wrong with it.
    pub what: String,
}

/// Takes one line after another.
pub struct Verifier {
    pinned: Option<String>,
    kept: BTreeMap<u64, Checkpoint>,
    /// The pinned key has signed, or no key is pinned.
    trusted: bool,
    /// Who has to sign next.
    key: Option<String>,
    home: Option<String>,
    head: Option<Head>,
    first: u64,
    signatures: u64,
    signed_to: u64,
    /// The log does not begin at the beginning, and must say that it was pruned.
    pruned: Option<u64>,
    ended: bool,
}

/// The part of a line that matters here.
#[derive(Deserialize)]
struct Signed {
    kind: Option<String>,
    #[serde(flatten)]
    rest: Value,
}

impl Verifier {
    /// `pinned`: the public key that has to have signed, in Base64. `home`: the home that it has to be about.
    pub fn new(pinned: Option<String>, home: Option<String>) -> Self {
        Self {
            trusted: pinned.is_none(),
            pinned,
            kept: BTreeMap::new(),
            key: None,
            home,
            head: None,
            first: 0,
            signatures: 0,
            signed_to: 0,
            pruned: None,
            ended: false,
        }
    }

    /// Checkpoints that were kept elsewhere, one line of JSON each: the log has to have what they cover. Against whoever has
    /// the key this is the only evidence.
    ///
    /// # Errors
    /// The first line that is no checkpoint, or that nobody signed.
    pub fn kept(&mut self, checkpoints: &str) -> Result<(), Invalid> {
        for (number, line) in (1..).zip(checkpoints.lines()) {
            let at = |what: &str| Invalid { line: number, what: what.to_owned() };
            let kept: Checkpoint = serde_json::from_str(line).map_err(|_| at("it is no checkpoint"))?;
            let Checkpoint { home, covers, sha256, key, signature } = &kept;
            if !Statement::checkpoint(home, *covers, sha256).is_signed(key, signature) {
                return Err(at("its signature is wrong"));
            }
            if self.home.get_or_insert_with(|| home.clone()) != home {
                return Err(at("it is about another home"));
            }
            if self.kept.get(covers).is_some_and(|other| other.sha256 != *sha256) {
                return Err(at("another one covers the same line and says something else: the log was written anew"));
            }
            self.kept.insert(*covers, kept);
        }
        Ok(())
    }

    /// The next line, without its newline.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn line(&mut self, line: &str) -> Result<(), String> {
        if self.ended {
            return Err("there is something after the end of the exported log".into());
        }
        let link: Link = serde_json::from_str(line).map_err(|error| format!("it is not a line of a log: {error}"))?;
        let signed: Signed = serde_json::from_str(line).map_err(|error| format!("it is not an entry: {error}"))?;
        let kind = signed.kind.as_deref().unwrap_or_default();
        match self.head {
            Some(head) if head.seq.checked_add(1) != Some(link.seq) => {
                return Err(format!("it has number {} and {} should be here", link.seq, head.seq.saturating_add(1)));
            }
            Some(head) if link.prev != Hex::of(&head.sha256).as_str() => {
                return Err(format!("line {} or `prev` of this one was changed: they do not fit", head.seq));
            }
            Some(_) => {}
            None if link.seq == 0 => return Err("a line's number is 1 or more".into()),
            None if link.seq == 1 && link.prev == Head::EMPTY.hex() => self.first = 1,
            None if kind == "checkpoint" => {
                self.first = link.seq;
                self.pruned = (link.seq > 1).then_some(link.seq);
            }
            None => {
                return Err("a log begins with its line 1, or with a checkpoint; lines before it are missing".into());
            }
        }
        match kind {
            "checkpoint" => {
                let checkpoint: Checkpoint = parsed(signed.rest)?;
                let Checkpoint { home, covers, sha256, key, signature } = &checkpoint;
                self.covers(&link, *covers, sha256)?;
                self.signed(home, key, signature, &Statement::checkpoint(home, *covers, sha256))?;
                self.signed_to = link.seq - 1;
            }
            "key-rotated" => {
                let rotation: Rotation = parsed(signed.rest)?;
                let Rotation { home, covers, sha256, key, next, signature } = rotation;
                self.covers(&link, covers, &sha256)?;
                self.signed(&home, &key, &signature, &Statement::rotation(&home, covers, &sha256, &next))?;
                self.key = Some(next);
                self.signed_to = link.seq - 1;
            }
            "pruned" => {
                let Pruning { home, first, sha256, key, signature, .. } = parsed(signed.rest)?;
                self.signed(&home, &key, &signature, &Statement::pruning(&home, first, &sha256))?;
                if self.pruned == Some(first) {
                    self.pruned = None;
                }
            }
            _ => {}
        }
        let head = Head::of(link.seq, line);
        if self.kept.get(&head.seq).is_some_and(|kept| kept.sha256 != head.hex()) {
            return Err("it is not the line that a kept checkpoint covers: the log was written anew".into());
        }
        if self.head.is_none() && self.kept.get(&(link.seq - 1)).is_some_and(|kept| kept.sha256 != link.prev) {
            return Err("what stood before it is not what a kept checkpoint covers: the log was written anew".into());
        }
        self.head = Some(head);
        Ok(())
    }

    /// The line after the last one of an exported log.
    ///
    /// # Errors
    /// The file is not what was exported.
    pub fn export_end(&mut self, end: &ExportEnd) -> Result<(), String> {
        if self.ended {
            return Err("there is something after the end of the exported log".into());
        }
        let head = self.head.unwrap_or(Head::EMPTY);
        if end.last != head.seq || end.sha256 != head.hex() || (end.first != self.first && head.seq > 0) {
            let ExportEnd { first, last, .. } = end;
            return Err(format!("the file should have the lines {first} to {last}; some are missing or were changed"));
        }
        let ExportEnd { home, first, last, sha256, key, signature, rotations } = end;
        for Rotation { home, covers, sha256, key, next, signature } in rotations {
            self.signed(home, key, signature, &Statement::rotation(home, *covers, sha256, next))?;
            self.key = Some(next.clone());
        }
        self.signed(home, key, signature, &Statement::export(home, *first, *last, sha256))?;
        self.signed_to = head.seq;
        // What stood before the first line is said elsewhere: that this is the first one is signed here.
        self.pruned = None;
        // Nor is anything missing that came later.
        self.kept.retain(|covers, _| *covers <= head.seq);
        self.ended = true;
        Ok(())
    }

    /// What all lines together are.
    ///
    /// # Errors
    /// Something is missing.
    pub fn finish(self) -> Result<Verified, String> {
        let head = self.head.ok_or("there is nothing")?;
        if let Some(first) = self.pruned {
            return Err(format!("it begins at {first}, and no entry says that it was pruned there"));
        }
        if let Some((covers, _)) = self.kept.range(head.seq + 1..).next() {
            return Err(format!("it ends here, and a kept checkpoint covers line {covers}: its end was removed"));
        }
        if !self.trusted {
            return Err("the pinned key has not signed anything in it".into());
        }
        Ok(Verified {
            first: self.first,
            last: head.seq,
            sha256: head.hex(),
            signatures: self.signatures,
            signed_to: self.signed_to,
            key: self.key,
            pinned: self.pinned.is_some(),
        })
    }

    /// A signature is about the line before it.
    fn covers(&self, link: &Link, covers: u64, sha256: &str) -> Result<(), String> {
        if covers.checked_add(1) == Some(link.seq) && sha256 == link.prev {
            return Ok(());
        }
        Err("it covers another line than the one before it".into())
    }

    fn signed(&mut self, home: &str, key: &str, signature: &str, statement: &Statement) -> Result<(), String> {
        if !statement.is_signed(key, signature) {
            return Err("its signature is wrong".into());
        }
        if self.home.get_or_insert_with(|| home.to_owned()) != home {
            return Err(format!("it is about another home, {home}"));
        }
        let is_pinned = self.pinned.as_deref() == Some(key);
        // What the pinned key signs, it vouches for, whoever signed before. From there on it is in charge.
        let hands_over = self.key.as_deref() == Some(key) || (is_pinned && !self.trusted);
        if self.key.is_some() && !hands_over {
            return Err(format!("it is signed by the key {key}, and no entry says that this one took over"));
        }
        self.trusted |= is_pinned;
        self.key = Some(key.to_owned());
        self.signatures += 1;
        Ok(())
    }
}

fn parsed<T: for<'de> Deserialize<'de>>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| format!("it is not what it says to be: {error}"))
}

/// The last line of an exported file.
#[derive(Deserialize)]
struct Last {
    export: ExportEnd,
}

/// Verifies an exported file. Reads it once, a line at a time.
///
/// # Errors
/// The first line that is wrong.
pub fn verify_export(file: impl Read, pinned: Option<String>) -> Result<Verified, Invalid> {
    verify_file(file, Verifier::new(pinned, None))
}

/// As [`verify_export`], with whatever the verifier was told.
///
/// # Errors
/// The first line that is wrong.
pub fn verify_file(file: impl Read, mut verifier: Verifier) -> Result<Verified, Invalid> {
    let mut file = std::io::BufReader::new(file);
    let mut number = 0;
    loop {
        number += 1;
        let at = |what: String| Invalid { line: number, what };
        let mut line = Vec::new();
        let read = file.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        if read.map_err(|error| at(format!("it cannot be read: {error}")))? == 0 {
            break;
        }
        let line = std::str::from_utf8(&line).map_err(|_| at("it is not UTF-8".into()))?;
        let line = line.strip_suffix('\n').ok_or_else(|| at("it is cut: it does not end with a newline".into()))?;
        if line.starts_with("{\"export\":") {
            let last: Last = serde_json::from_str(line).map_err(|error| at(format!("it is damaged: {error}")))?;
            // Nothing that is not signed may be in it.
            if last.export.line().ok().as_deref() != Some(line) {
                return Err(at("it was changed".into()));
            }
            verifier.export_end(&last.export).map_err(at)?;
        } else {
            verifier.line(line).map_err(at)?;
        }
    }
    let at = |what: String| Invalid { line: number, what };
    if !verifier.ended {
        return Err(at("the file ends before the end of the exported log: it was cut".into()));
    }
    verifier.finish().map_err(at)
}
