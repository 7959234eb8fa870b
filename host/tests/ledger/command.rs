//! The `estop` command, in processes of its own.

use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use estop::Home;
use estop_tests::output::lines;

/// Generous: a command that needs this long has failed.
const PATIENCE: Duration = Duration::from_secs(180);

/// How a command ended.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// None if it was killed.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A command that runs, read line by line.
pub(crate) struct Running {
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
    said: Ended,
}

impl Running {
    /// `estop`, with nothing of the settings of whoever runs the tests.
    pub(crate) fn start(home: &Home, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_estop"));
        for variable in ["ESTOP_LOG", "ESTOP_HOME", "RUST_BACKTRACE"] {
            command.env_remove(variable);
        }
        command
            .args(args)
            .arg("--home")
            .arg(home.path())
            .env("XDG_RUNTIME_DIR", home.path().parent().unwrap_or(home.path()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the command can be started");
        let stdout = lines(child.stdout.take().expect("it is piped"));
        let stderr = lines(child.stderr.take().expect("it is piped"));
        Self { child, stdout, stderr, said: Ended::default() }
    }

    /// The next line of standard error; none if it has ended.
    pub(crate) fn says(&mut self) -> Option<String> {
        let line = next(&self.stderr, &self.said)?;
        self.said.stderr += &line;
        Some(line)
    }

    /// The next line of standard output; none if it has ended.
    pub(crate) fn answers(&mut self) -> Option<String> {
        let line = next(&self.stdout, &self.said)?;
        self.said.stdout += &line;
        Some(line)
    }

    /// SIGKILL. It may have ended before.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("one's own child can be killed");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its end, once its outputs have ended.
    pub(crate) fn ended(mut self) -> Ended {
        while self.answers().is_some() {}
        while self.says().is_some() {}
        let status = self.child.wait().expect("one's own child can be waited for");
        Ended { code: status.code(), ..std::mem::take(&mut self.said) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn next(lines: &Receiver<String>, said: &Ended) -> Option<String> {
    match lines.recv_timeout(PATIENCE) {
        Ok(line) => Some(line),
        Err(RecvTimeoutError::Disconnected) => None,
        Err(RecvTimeoutError::Timeout) => panic!("nothing more within {PATIENCE:?}: {said:?}"),
    }
}

/// Runs a command to its end.
pub(crate) fn run(home: &Home, args: &[&str]) -> Ended {
    Running::start(home, args).ended()
}

/// What a command prints that succeeds.
pub(crate) fn printed(home: &Home, args: &[&str]) -> String {
    let ended = run(home, args);
    assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}");
    ended.stdout
}
