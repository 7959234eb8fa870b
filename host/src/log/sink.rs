//! Where checkpoints are sent, so that the log can be checked against whoever has its key.
//!
//! Invariant: sending is on a thread of its own and holds up nobody. What cannot be sent is said; the checkpoint stays in
//! the log.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::Checkpoint;

/// Checkpoints that wait to be sent; the newest covers what the others cover, so more are dropped.
const WAITING_MAX: usize = 16;
/// How long a command may take for one checkpoint.
const COMMAND_MAX: Duration = Duration::from_secs(10);
/// Between two looks whether it has ended.
const COMMAND_LOOK_EVERY: Duration = Duration::from_millis(20);
/// The socket of systemd's journal (systemd.io/JOURNAL_NATIVE_PROTOCOL).
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Somewhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointTo {
    /// Appended to a file, one line of JSON each: preferably on another machine's disk.
    File(PathBuf),
    /// To systemd's journal, or whoever listens at this socket as it does.
    Journald(PathBuf),
    /// A program, run anew for each checkpoint, which it gets as one line of JSON on its standard input.
    Command(PathBuf),
}

impl FromStr for CheckpointTo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || "say `file:PATH`, `journald` or `command:PROGRAM`, with absolute paths".to_owned();
        if text == "journald" {
            return Ok(CheckpointTo::Journald(JOURNAL.into()));
        }
        let (kind, path) = text.split_once(':').ok_or_else(usage)?;
        let path = PathBuf::from(path);
        match kind {
            "file" if path.is_absolute() => Ok(CheckpointTo::File(path)),
            "command" if path.is_absolute() => Ok(CheckpointTo::Command(path)),
            "journald" if path.is_absolute() => Ok(CheckpointTo::Journald(path)),
            _ => Err(usage()),
        }
    }
}

impl CheckpointTo {
    fn send(&self, checkpoint: &Checkpoint) -> io::Result<()> {
        let line = serde_json::to_string(checkpoint)?;
        match self {
            CheckpointTo::File(path) => {
                let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
                file.write_all(format!("{line}\n").as_bytes())?;
                file.sync_data()
            }
            CheckpointTo::Journald(socket) => journal(socket, checkpoint, &line),
            CheckpointTo::Command(program) => command(program, &line),
        }
    }
}

/// No value has a newline in it, so the protocol's simple form does.
fn journal(socket: &Path, checkpoint: &Checkpoint, line: &str) -> io::Result<()> {
    let Checkpoint { home, covers, sha256, .. } = checkpoint;
    let message = format!(
        "MESSAGE=estop checkpoint of {home}: {covers} entries, sha256 {sha256}\nPRIORITY=5\nSYSLOG_IDENTIFIER=estop\n\
         ESTOP_CHECKPOINT={line}\n"
    );
    UnixDatagram::unbound()?.send_to(message.as_bytes(), socket).map(drop)
}

fn command(program: &Path, line: &str) -> io::Result<()> {
    let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // Less than a pipe holds, so this waits for nobody; a program that does not read it may do without.
        let _ = stdin.write_all(format!("{line}\n").as_bytes());
    }
    let began = Instant::now();
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(io::Error::other(format!("`{}` ended with {status}", program.display()))),
            None if began.elapsed() < COMMAND_MAX => thread::sleep(COMMAND_LOOK_EVERY),
            None => {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::other(format!("`{}` took longer than {COMMAND_MAX:?}", program.display())));
            }
        }
    }
}

/// How long whoever ends waits for what has not been sent.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// The thread that sends. Dropping it sends what waits, within [`SETTLE_MAX`].
pub(crate) struct Checkpoints {
    waiting: SyncSender<Job>,
}

enum Job {
    Send(Checkpoint),
    /// Everything before it has been sent, or said to have failed.
    Tell(SyncSender<()>),
}

impl Checkpoints {
    pub(crate) fn start(to: CheckpointTo) -> io::Result<Self> {
        let (waiting, next) = sync_channel(WAITING_MAX);
        thread::Builder::new().name("estop-checkpoint".into()).spawn(move || {
            for job in next {
                match job {
                    Job::Send(checkpoint) => {
                        if let Err(error) = to.send(&checkpoint) {
                            tracing::error!(%error, ?to, covers = checkpoint.covers, "a checkpoint could not be sent");
                        }
                    }
                    // Whoever asked may have given up.
                    Job::Tell(told) => drop(told.try_send(())),
                }
            }
        })?;
        Ok(Self { waiting })
    }

    pub(crate) fn send(&self, checkpoint: Checkpoint) {
        let covers = checkpoint.covers;
        if let Err(TrySendError::Full(_)) = self.waiting.try_send(Job::Send(checkpoint)) {
            tracing::error!(covers, "a checkpoint was not sent: too many wait");
        }
    }

    /// Waits until what was to be sent is, for a bounded time. What hangs may be sent later, if the process lives.
    pub(crate) fn settle(&self) {
        let (tell, told) = sync_channel(1);
        let asked = self.waiting.try_send(Job::Tell(tell)).is_ok();
        if !asked || told.recv_timeout(SETTLE_MAX).is_err() {
            tracing::error!("a checkpoint could not be sent within {SETTLE_MAX:?}; it is in the log");
        }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.settle();
    }
}
