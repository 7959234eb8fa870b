//! What was found so far.
//!
//! Invariant: an answer has a bounded number of lines of bounded length, however long the lines of the files are.

use std::io;

use grep_searcher::{Searcher, Sink, SinkContext, SinkMatch};

use crate::Line;

/// Length of a line in an answer, in bytes; the rest is cut.
const MAX_LINE_BYTES: usize = 512;

/// Lines that match, and those beside them.
pub(crate) struct Found {
    lines: Vec<Line>,
    files: u64,
    /// How many more may match.
    left: usize,
}

impl Found {
    pub(crate) fn new(limit: usize) -> Self {
        Self { lines: Vec::new(), files: 0, left: limit }
    }

    /// Takes up what is found in this file.
    pub(crate) fn of<'a>(&'a mut self, path: &'a str) -> InFile<'a> {
        InFile { found: self, path, any: false }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.left == 0
    }

    /// The lines, and the number of files that they are in.
    pub(crate) fn end(self) -> (Vec<Line>, u64) {
        (self.lines, self.files)
    }
}

pub(crate) struct InFile<'a> {
    found: &'a mut Found,
    path: &'a str,
    any: bool,
}

impl InFile<'_> {
    fn add(&mut self, number: Option<u64>, bytes: &[u8], context: bool) {
        let cut = &bytes[..bytes.len().min(MAX_LINE_BYTES)];
        let text = String::from_utf8_lossy(cut).trim_end_matches(['\r', '\n']).to_owned();
        let line = number.unwrap_or_default();
        self.found.lines.push(Line { path: self.path.to_owned(), line, text, context });
    }
}

impl Sink for InFile<'_> {
    type Error = io::Error;

    fn matched(&mut self, _: &Searcher, found: &SinkMatch<'_>) -> Result<bool, io::Error> {
        self.found.files += u64::from(!std::mem::replace(&mut self.any, true));
        self.add(found.line_number(), found.bytes(), false);
        self.found.left -= 1;
        Ok(self.found.left > 0)
    }

    fn context(&mut self, _: &Searcher, beside: &SinkContext<'_>) -> Result<bool, io::Error> {
        self.add(beside.line_number(), beside.bytes(), true);
        Ok(true)
    }
}
