//! The watchdog: a command that owns its process always ends.
//!
//! Invariant: its thread exists before anything that could hang. Once armed, the process ends within
//! [`ENDS_WITHIN`], whatever hangs.

use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use super::{ExitCode, say};

/// From the first request to stop to the end of the process.
pub(super) const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// How long the end of the process waits for its last words to be taken.
const SAID_WITHIN: Duration = Duration::from_millis(200);

/// Arms the watchdog when asked to.
#[derive(Clone)]
pub(super) struct Watchdog {
    arm: Sender<()>,
}

impl Watchdog {
    /// Starts the thread, unarmed.
    pub(super) fn start() -> std::io::Result<Self> {
        let (arm, armed) = channel();
        thread::Builder::new().name("estop-watchdog".into()).spawn(move || {
            // The other end is gone: the command is over.
            if armed.recv().is_err() {
                return;
            }
            thread::sleep(ENDS_WITHIN);
            let within = ENDS_WITHIN.as_secs();
            let why = format!("estop: UNCONFIRMED: the stop was not confirmed within {within} s; ending the process");
            end(ExitCode::Unconfirmed, why);
        })?;
        Ok(Self { arm })
    }

    /// From now on the process has a bounded time to live.
    pub(super) fn arm(&self) {
        // Armed already, or over: both are fine.
        let _ = self.arm.send(());
    }
}

/// Ends the process and says why. Whoever holds standard error, or does not read it, cannot hold up the end.
pub(super) fn end(code: ExitCode, why: String) -> ! {
    let (said, is_said) = channel();
    let speaker = thread::Builder::new().name("estop-end".into()).spawn(move || {
        say(&why);
        // Nobody waits any more.
        let _ = said.send(());
    });
    if speaker.is_ok() {
        let _ = is_said.recv_timeout(SAID_WITHIN);
    }
    std::process::exit(code as i32)
}
