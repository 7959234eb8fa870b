//! The `estop` command as a process of its own, on a home that the test names.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use estop_tests::output::lines;
use serde_json::Value;

/// Generous: a command that needs this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// The command, with nothing of the terminal and the settings of whoever runs the tests.
pub(crate) fn estop(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_estop"));
    for variable in ["ESTOP_LOG", "RUST_BACKTRACE", "LINES"] {
        command.env_remove(variable);
    }
    command.env("COLUMNS", "100").env("CARGO_NET_OFFLINE", "true").env("ESTOP_HOME", home).args(args);
    // Beside the home: what runs there is seen by this test and by no other.
    command.env("XDG_RUNTIME_DIR", home.parent().unwrap_or(home));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// It ended with this code, and these words are on standard error.
    #[track_caller]
    pub(crate) fn has(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is not in: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked at "), "{}", self.stderr);
        self
    }

    /// Standard output, one JSON value a line.
    #[track_caller]
    pub(crate) fn jsons(&self) -> Vec<Value> {
        let json = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}: {self:?}"));
        self.stdout.lines().map(json).collect()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        match self.jsons().as_slice() {
            [json] => json.clone(),
            _ => panic!("not one line of JSON: {self:?}"),
        }
    }
}

/// A command that runs, read line by line.
pub(crate) struct Running {
    pub(crate) child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

impl Running {
    #[track_caller]
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().map_or_else(|| channel().1, lines);
        let stderr = child.stderr.take().map_or_else(|| channel().1, lines);
        Self { child, stdout, stderr }
    }

    /// The next line that it prints.
    #[track_caller]
    pub(crate) fn prints(&self) -> String {
        match self.stdout.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(error) => {
                panic!("it printed no more: {error}; it said: {:?}", self.stderr.try_iter().collect::<String>())
            }
        }
    }

    /// Until it says a line with this in it on standard error.
    #[track_caller]
    pub(crate) fn says(&self, word: &str) {
        let mut said = String::new();
        while !said.contains(word) {
            match self.stderr.recv_timeout(PATIENCE) {
                Ok(line) => said += &line,
                Err(_) => panic!("it never said `{word}`, but: {said}"),
            }
        }
    }

    /// Its end, once its output has.
    #[track_caller]
    pub(crate) fn ended(mut self) -> Ended {
        let begun = Instant::now();
        let read = |from: &Receiver<String>| {
            let mut text = String::new();
            while let Ok(line) = from.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())) {
                text += &line;
            }
            text
        };
        let (stdout, stderr) = (read(&self.stdout), read(&self.stderr));
        if begun.elapsed() > PATIENCE {
            panic!("it has not ended; it said: {stderr}");
        }
        // Nobody holds its output any more, so it ends.
        let status = self.child.wait().unwrap();
        Ended { code: status.code(), stdout, stderr }
    }

    /// Whether it ends within this. For what should end by itself and has nothing more to say.
    pub(crate) fn ends_within(&mut self, most: Duration) -> bool {
        let begun = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            if begun.elapsed() > most {
                return false;
            }
            thread::yield_now();
        }
        true
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs another program to its end and answers what it printed.
#[track_caller]
pub(crate) fn tool(program: &str, args: &[&str]) -> Ended {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Running::start(command).ended()
}
