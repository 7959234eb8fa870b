//! The watchdog: a command that owns its process always ends.
//!
//! Invariant: its thread exists before anything that could hang. Once armed, the process ends within the time that was
//! said, whatever hangs; it can be armed again to end sooner, never later.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::{ExitCode, say};

/// From the first request to stop to the end of the process.
pub(super) const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// How long the end of the process waits for its last words to be taken.
const SAID_WITHIN: Duration = Duration::from_millis(200);

/// Arms the watchdog when asked to.
#[derive(Clone)]
pub(super) struct Watchdog {
    arm: Sender<Instant>,
}

impl Watchdog {
    /// Starts the thread, unarmed.
    pub(super) fn start() -> std::io::Result<Self> {
        let (arm, armed) = channel::<Instant>();
        thread::Builder::new().name("estop-watchdog".into()).spawn(move || {
            // The other end is gone: the command is over.
            let Ok(mut ends_at) = armed.recv() else { return };
            loop {
                match armed.recv_timeout(ends_at.saturating_duration_since(Instant::now())) {
                    Ok(at) => ends_at = ends_at.min(at),
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            let why = "estop: UNCONFIRMED: the call or its answer hangs; ending the process".to_owned();
            end(ExitCode::Unconfirmed, why);
        })?;
        Ok(Self { arm })
    }

    /// From now on the process has this long to live, unless it was given less before.
    pub(super) fn arm(&self, within: Duration) {
        let far = Duration::from_secs(365 * 24 * 3600);
        // Over already: fine.
        let _ = self.arm.send(Instant::now() + within.min(far));
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
