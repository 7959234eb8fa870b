//! Programs of the machine, where the call is granted some. What a program does is outside of the call's
//! transaction: it is not undone when the call fails or is stopped.
//!
//! ```
//! use estop_tool::testing::Run;
//! use estop_tool::{ToolError, process};
//!
//! /// Which revision is checked out?
//! #[estop_tool::tool]
//! fn revision() -> Result<String, ToolError> {
//!     let output = process::Command::new("git").args(["rev-parse", "HEAD"]).run()?;
//!     Ok(output.success()?.stdout_text().trim().to_owned())
//! }
//!
//! let ended = Run::new()
//!     .program("git", |_, _| process::Output::new(process::Exit::Code(0), "4fe1c\n", ""))
//!     .call(revision);
//! assert_eq!(ended.result.as_deref(), Ok("4fe1c"));
//! ```

use std::borrow::Cow;

use crate::error::ToolError;
use crate::host;

/// What is kept of a program's output if nothing is said (bytes).
const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// A program to be started.
#[derive(Clone, Debug)]
pub struct Command {
    program: String,
    arguments: Vec<String>,
    stdin: Vec<u8>,
    output_bytes_max: usize,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// By itself; zero means success.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

/// Where a program says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// What it answers.
    Stdout,
    /// What it says about that.
    Stderr,
}

/// What a program has said, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

/// Why a program gives no answer.
pub(crate) enum Error {
    Denied(String),
    #[cfg_attr(not(target_arch = "wasm32"), expect(dead_code, reason = "the fake has no limits"))]
    Limit(String),
    Failed(String),
}

impl From<Error> for ToolError {
    fn from(error: Error) -> Self {
        match error {
            Error::Denied(why) => Self::failed("denied", why),
            Error::Limit(why) => Self::failed("limit", why),
            Error::Failed(why) => Self::failed("program", why),
        }
    }
}

impl Command {
    /// By its absolute path as it was granted, or by the last part of that.
    pub fn new(program: impl Into<String>) -> Self {
        Self { program: program.into(), arguments: Vec::new(), stdin: Vec::new(), output_bytes_max: OUTPUT_BYTES_MAX }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<T: Into<String>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// What it reads from its standard input. Nothing if nothing is said.
    #[must_use]
    pub fn stdin(mut self, data: impl Into<Vec<u8>>) -> Self {
        self.stdin = data.into();
        self
    }

    /// How much it may say for [`run`](Self::run), standard output and error together (bytes). 1 MiB if nothing is said.
    #[must_use]
    pub fn output_bytes_max(mut self, bytes_max: usize) -> Self {
        self.output_bytes_max = bytes_max;
        self
    }

    /// Starts it. It is killed with everything that it has started when the answer is dropped, or the call ends.
    ///
    /// # Errors
    ///
    /// `denied`: the call is not granted that program with these arguments, or this host starts none. `limit`: it has as
    /// many programs as it may. `program`: it could not be started.
    pub fn start(self) -> Result<Child, ToolError> {
        Ok(Child(host::start_program(&self.program, &self.arguments, &self.stdin)?))
    }

    /// Starts it and waits for its end.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start), and `limit`: it has said more than it may, or has reached a limit of its grant.
    /// That it ends with another code than zero is no error here; see [`Output::success`].
    pub fn run(self) -> Result<Output, ToolError> {
        let bytes_max = self.output_bytes_max;
        let mut child = self.start()?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some((source, data)) = child.read()? {
            if stdout.len() + stderr.len() + data.len() > bytes_max {
                return Err(ToolError::failed("limit", format!("the program has said more than {bytes_max} bytes")));
            }
            match source {
                Source::Stdout => stdout.extend(data),
                Source::Stderr => stderr.extend(data),
            }
        }
        Ok(Output { exit: child.wait()?, stdout, stderr })
    }
}

/// A program that was started. Dropping it kills the program.
#[derive(Debug)]
pub struct Child(host::Child);

impl Child {
    /// Waits until the program says something, and gives that; `None` when its output has ended.
    ///
    /// # Errors
    ///
    /// `limit`: it has said more than its grant allows, and was killed.
    pub fn read(&mut self) -> Result<Option<(Source, Vec<u8>)>, ToolError> {
        Ok(self.0.read()?)
    }

    /// Waits until it has ended and nothing that it has started is left. A program may wait for its output to be read.
    ///
    /// # Errors
    ///
    /// `limit`: it was killed for a limit of its grant. `program`: it was killed.
    pub fn wait(&mut self) -> Result<Exit, ToolError> {
        Ok(self.0.wait()?)
    }

    /// Asks it and everything that it has started to end, by SIGTERM.
    pub fn terminate(&mut self) {
        self.0.terminate();
    }

    /// Kills it with everything that it has started.
    pub fn kill(&mut self) {
        self.0.kill();
    }
}

impl Output {
    /// For tests.
    pub fn new(exit: Exit, stdout: impl Into<Vec<u8>>, stderr: impl Into<Vec<u8>>) -> Self {
        Self { exit, stdout: stdout.into(), stderr: stderr.into() }
    }

    /// Itself, if the program ended well.
    ///
    /// # Errors
    ///
    /// `exit`: it did not. The message has how it ended, and the end of what it said about that.
    pub fn success(self) -> Result<Self, ToolError> {
        let how = match self.exit {
            Exit::Code(0) => return Ok(self),
            Exit::Code(code) => format!("ended with code {code}"),
            Exit::Signal(signal) => format!("was ended by signal {signal}"),
        };
        let said = self.stderr_text();
        let said = said.trim();
        let from = said.len().saturating_sub(SAID_BYTES_MAX);
        let said = &said[said.ceil_char_boundary(from)..];
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        Err(ToolError::failed("exit", format!("the program {how}{said}")))
    }

    /// Its standard output as text; what is no UTF-8 is replaced.
    pub fn stdout_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }

    /// Its standard error as text; what is no UTF-8 is replaced.
    pub fn stderr_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stderr)
    }
}

/// What of a program's words is in an error (bytes).
const SAID_BYTES_MAX: usize = 512;
