//! What ties the entries of a log together: each line carries the hash of the line before it.
//!
//! Invariant: a line is written once and never changed, and its bytes, with the newline that ends it in an exported file,
//! are what is hashed. So `sha256sum` alone confirms the chain, and changing, removing, inserting or swapping a line
//! breaks it at that line.

use std::io::{self, Read, Write as _};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::Entry;
use crate::tools::Hex;

/// What the first line of a log has as the hash of the line before it.
const BEGINNING: [u8; 32] = [0; 32];

/// Most lines are no longer, so that one is written without being moved (bytes).
const LINE_BYTES: usize = 1024;

/// The newest line of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// The line's number, from one. Zero: there is none yet.
    pub(crate) seq: u64,
    /// SHA-256 of the line and its newline.
    pub(crate) sha256: [u8; 32],
}

impl Head {
    /// Of an empty log.
    pub(crate) const EMPTY: Head = Head { seq: 0, sha256: BEGINNING };

    pub(crate) fn of(seq: u64, line: &str) -> Self {
        Self { seq, sha256: hash(line) }
    }

    pub(crate) fn hex(&self) -> String {
        Hex::of(&self.sha256).as_str().to_owned()
    }

    /// The next line, and the head moves to it.
    pub(crate) fn follow(&mut self, entry: &Entry) -> serde_json::Result<String> {
        let seq = self.seq + 1;
        let mut line = Vec::with_capacity(LINE_BYTES);
        write!(line, "{{\"seq\":{seq},\"prev\":\"{}\"", Hex::of(&self.sha256).as_str())
            .map_err(serde_json::Error::io)?;
        let at = line.len();
        serde_json::to_writer(&mut line, entry)?;
        // The brace that opens the entry: the line's has been written.
        line[at] = b',';
        let line = String::from_utf8(line).map_err(serde::ser::Error::custom)?;
        *self = Self::of(seq, &line);
        Ok(line)
    }
}

/// SHA-256 of a line and the newline that ends it.
pub(crate) fn hash(line: &str) -> [u8; 32] {
    let mut sha256 = Sha256::new();
    sha256.update(line.as_bytes());
    sha256.update(b"\n");
    sha256.finalize().into()
}

/// SHA-256 of all that can be read, in hexadecimal, as `sha256sum` tells it.
pub(crate) fn sha256_of(mut from: impl Read) -> io::Result<String> {
    struct Hashed(Sha256);

    impl io::Write for Hashed {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut hashed = Hashed(Sha256::new());
    io::copy(&mut from, &mut hashed)?;
    Ok(Hex::of(&hashed.0.finalize().into()).as_str().to_owned())
}

/// What ties a line to the one before it.
#[derive(Deserialize)]
pub(crate) struct Link {
    pub(crate) seq: u64,
    pub(crate) prev: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::HostId;
    use crate::log::EntryKind;

    #[test]
    fn a_line_is_the_entry_with_its_place_before_it() {
        let entry = Entry::new(0, HostId::generate(), EntryKind::Lost { entries: 7 });
        let mut head = Head::EMPTY;
        let first = head.follow(&entry).expect("an entry is JSON");
        let second = head.follow(&entry).expect("an entry is JSON");
        assert!(first.starts_with(&format!("{{\"seq\":1,\"prev\":\"{}\",\"at\":\"1970-", "0".repeat(64))), "{first}");
        let link: Link = serde_json::from_str(&second).expect("a line is JSON");
        assert_eq!((link.seq, link.prev.as_str()), (2, Hex::of(&hash(&first)).as_str()));
        let read: Entry = serde_json::from_str(&second).expect("a line is an entry");
        assert_eq!(read.to_json(), entry.to_json());
    }
}
