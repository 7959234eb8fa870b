//! The watchdog: a command that owns its process always ends.
//!
//! Invariant: its thread exists before anything that could hang. Once armed, the process ends within
//! [`ENDS_WITHIN`], whatever hangs.

use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use super::ExitCode;

/// From the first request to stop to the end of the process.
pub(super) const ENDS_WITHIN: Duration = Duration::from_secs(10);

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
            eprintln!(
                "estop: UNCONFIRMED: the stop was not confirmed within {} s; ending the process",
                ENDS_WITHIN.as_secs()
            );
            std::process::exit(ExitCode::Unconfirmed as i32);
        })?;
        Ok(Self { arm })
    }

    /// From now on the process has a bounded time to live.
    pub(super) fn arm(&self) {
        // Armed already, or over: both are fine.
        let _ = self.arm.send(());
    }
}
