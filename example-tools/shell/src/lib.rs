//! Runs a program of the machine. Which ones, with which arguments, is for whoever grants them.
//!
//! ```text
//! estop run example-tools/shell --allow-program git -i '{"program":"git","arguments":["--version"]}'
//! ```

#[cfg(test)]
mod tests;

use estop_tool::process::{Command, Exit, Source};
use estop_tool::{ToolError, checkpoint, progress};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is kept of each stream if the caller does not say, in bytes.
const DEFAULT_OUTPUT_BYTES: usize = 64 << 10;
/// What is kept of each stream at most, in bytes.
const MAX_OUTPUT_BYTES: usize = 256 << 10;

/// A program and what it is given.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The absolute path of a program, or its name if only one program of that name is granted.
    program: String,
    #[serde(default)]
    arguments: Vec<String>,
    /// What it reads from its standard input.
    #[serde(default)]
    stdin: String,
    /// How much of each stream to keep, in bytes: the beginning and the end. 65536 if left out, at most 262144.
    output_bytes: Option<usize>,
}

/// What became of it.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Ran {
    /// Zero means success. Not there if a signal ended it.
    code: Option<i32>,
    /// The signal that ended it.
    signal: Option<i32>,
    stdout: String,
    stderr: String,
    /// Something was left out of `stdout` or `stderr`, where it says so.
    truncated: bool,
}

/// The beginning and the end of what a stream says.
struct Kept {
    head: Vec<u8>,
    tail: Vec<u8>,
    /// Of each.
    half_bytes: usize,
    left_out_bytes: usize,
}

impl Kept {
    fn new(bytes: usize) -> Self {
        Self { head: Vec::new(), tail: Vec::new(), half_bytes: bytes / 2, left_out_bytes: 0 }
    }

    fn add(&mut self, said: &[u8]) {
        let room = self.half_bytes - self.head.len();
        let (head, rest) = said.split_at(room.min(said.len()));
        self.head.extend_from_slice(head);
        self.tail.extend_from_slice(rest);
        let excess = self.tail.len().saturating_sub(self.half_bytes);
        self.tail.drain(..excess);
        self.left_out_bytes += excess;
    }

    fn text(self) -> String {
        let mut text = String::from_utf8_lossy(&self.head).into_owned();
        if self.left_out_bytes > 0 {
            text += &format!("\n… {} bytes left out …\n", self.left_out_bytes);
        }
        text + &String::from_utf8_lossy(&self.tail)
    }
}

/// Run a program of this machine and get what it says. What the program does is not undone, also if this is stopped.
/// Only programs that were granted can be run, without a shell: arguments are passed as they are.
#[estop_tool::tool(destructive, open_world)]
pub fn run(input: Run) -> Result<Ran, ToolError> {
    let bytes = input.output_bytes.unwrap_or(DEFAULT_OUTPUT_BYTES).min(MAX_OUTPUT_BYTES);
    let mut child = Command::new(input.program).args(input.arguments).stdin(input.stdin).start()?;
    let (mut stdout, mut stderr, mut said_bytes) = (Kept::new(bytes), Kept::new(bytes), 0);
    while let Some((source, said)) = child.read()? {
        match source {
            Source::Stdout => stdout.add(&said),
            Source::Stderr => stderr.add(&said),
        }
        said_bytes += said.len() as u64;
        progress(said_bytes, None, "bytes of output");
        // The program is killed when its handle is dropped.
        checkpoint()?;
    }
    let (code, signal) = match child.wait()? {
        Exit::Code(code) => (Some(code), None),
        Exit::Signal(signal) => (None, Some(signal)),
    };
    let truncated = stdout.left_out_bytes + stderr.left_out_bytes > 0;
    Ok(Ran { code, signal, stdout: stdout.text(), stderr: stderr.text(), truncated })
}

estop_tool::export!(run);
