//! The log as a file: the lines as they are in the database, and a signed line that says where they end.
//!
//! Invariant: what is exported is what was verified on the way; a damaged log is not exported as if it were none.

use std::io::{self, Write};

use super::chain::Head;
use super::checkpoint::{ExportEnd, KeyError, Rotation, Signer};
use super::verify::{Invalid, Verified, Verifier};
use super::{Entry, EntryKind};
use crate::store::StoreError;
use crate::store::sqlite::Look;

/// Lines that are read at once.
const LINES_AT_ONCE: usize = 1024;

/// The log could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The database cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log is not as it was written.
    #[error(transparent)]
    Damaged(#[from] Invalid),
    /// The end of the file cannot be signed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The file cannot be written.
    #[error("cannot write the exported log: {0}")]
    Io(#[from] io::Error),
}

/// Writes the lines up to the number `last`, and the line that ends the file.
///
/// # Errors
/// See [`ExportError`]. What was written by then has no end, and is not accepted as an exported log.
pub fn export(look: &Look, last: u64, to: impl Write) -> Result<ExportEnd, ExportError> {
    let _moment = look.moment()?;
    write_lines(look, last, to)
}

/// The same for whoever holds a moment of the database.
pub(super) fn write_lines(look: &Look, last: u64, mut to: impl Write) -> Result<ExportEnd, ExportError> {
    let home = look.home_id()?;
    let (mut first, mut head) = (0, Head::EMPTY);
    let mut verifier = Verifier::new(None, Some(home.clone()));
    walk(look, last, |seq, line| {
        verifier.line(line).map_err(|what| Invalid { line: seq, what })?;
        if first == 0 {
            first = seq;
        }
        head = Head::of(seq, line);
        to.write_all(line.as_bytes())?;
        to.write_all(b"\n")?;
        Ok::<_, ExportError>(())
    })?;
    let signer = Signer::load(look.folder(), &home, look.key()?.as_deref())?;
    let end = signer.export(first, &head, rotations_after(look, last)?);
    writeln!(to, "{}", end.line().map_err(io::Error::from)?)?;
    to.flush()?;
    Ok(end)
}

/// What was signed with another key than the end of a file is vouched for by these.
fn rotations_after(look: &Look, last: u64) -> Result<Vec<Rotation>, ExportError> {
    let mut rotations = Vec::new();
    walk_after(look, last, look.newest()?, |seq, line| {
        // Most lines are not, and looking is cheaper than reading.
        if line.contains("\"kind\":\"key-rotated\"") {
            let damaged = |error: serde_json::Error| Invalid { line: seq, what: error.to_string() };
            let entry: Entry = serde_json::from_str(line).map_err(damaged)?;
            if let EntryKind::KeyRotated(rotation) = entry.kind {
                rotations.push(rotation);
            }
        }
        Ok::<_, ExportError>(())
    })?;
    Ok(rotations)
}

/// Verifies the log in the database.
///
/// # Errors
/// It cannot be read, or is not as it was written.
pub fn verify(look: &Look, mut verifier: Verifier) -> Result<Verified, ExportError> {
    let _moment = look.moment()?;
    let last = look.newest()?;
    walk(look, last, |seq, line| {
        verifier.line(line).map_err(|what| ExportError::Damaged(Invalid { line: seq, what }))
    })?;
    verifier.finish().map_err(|what| ExportError::Damaged(Invalid { line: last, what }))
}

/// Hands every line up to the number `last` to `each`.
pub(crate) fn walk<E: From<StoreError>>(
    look: &Look,
    last: u64,
    each: impl FnMut(u64, &str) -> Result<(), E>,
) -> Result<(), E> {
    walk_after(look, 0, last, each)
}

fn walk_after<E: From<StoreError>>(
    look: &Look,
    mut after: u64,
    last: u64,
    mut each: impl FnMut(u64, &str) -> Result<(), E>,
) -> Result<(), E> {
    while after < last {
        let lines = look.lines(after, LINES_AT_ONCE)?;
        let Some((newest, _)) = lines.last() else { break };
        after = *newest;
        for (seq, line) in lines.iter().filter(|(seq, _)| *seq <= last) {
            each(*seq, line)?;
        }
    }
    Ok(())
}
