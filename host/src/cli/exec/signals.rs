//! What signals to `estop exec` do, on a thread of their own.
//!
//! Invariant: SIGTERM and SIGHUP interrupt the program through the same door as every other stop; a second one ends its
//! grace. What the terminal sends to the program as well (Ctrl-C, Ctrl-\) ends nothing here: it is the program's affair.
//! What was ignored when the command was started stays ignored, as `nohup` has it.

use std::sync::{Arc, OnceLock};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cli::watchdog::{self, Watchdog};
use crate::{Cause, Host, Interrupt, Scope, user};

/// What signals have asked for.
pub(super) struct Signals {
    host: Arc<OnceLock<Host>>,
    asked: watch::Receiver<Option<Interrupt>>,
    hurried: watch::Receiver<bool>,
}

impl Signals {
    /// Installs the handlers.
    pub(super) fn handle(watchdog: Watchdog) -> anyhow::Result<Self> {
        let host = Arc::new(OnceLock::<Host>::new());
        let (tell, asked) = watch::channel(None);
        let (hurry, hurried) = watch::channel(false);
        let ignored = ignored()?;
        let is_ignored = |kind: SignalKind| ignored >> (kind.as_raw_value() - 1) & 1 == 1;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let (mut terminate, mut hang_up) = {
            let _context = runtime.enter();
            // A handler, unlike ignoring, is not handed down to the program.
            for kind in [SignalKind::interrupt(), SignalKind::quit()].into_iter().filter(|kind| !is_ignored(*kind)) {
                drop(signal(kind)?);
            }
            let hang_up = (!is_ignored(SignalKind::hangup())).then(|| signal(SignalKind::hangup())).transpose()?;
            (signal(SignalKind::terminate())?, hang_up)
        };
        let target = Arc::clone(&host);
        thread::Builder::new().name("estop-signals".into()).spawn(move || {
            runtime.block_on(async {
                let mut next = async || {
                    let hung_up = async {
                        match &mut hang_up {
                            Some(hang_up) => hang_up.recv().await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        _ = terminate.recv() => (Cause::Shutdown, "SIGTERM"),
                        _ = hung_up => (Cause::Disconnected, "SIGHUP"),
                    }
                };
                let (cause, reason) = next().await;
                let Some(host) = target.get() else {
                    let why = format!("estop: stopped ({reason}) before anything ran");
                    watchdog::end(cause.into(), why);
                };
                // The program's own grace comes on top, and who supervises it arms it again.
                let interrupt = Interrupt::new(cause, user::own()).reason(reason);
                // Told first: a call that starts too late to be met by the interrupt finds that it was asked for.
                tell.send_replace(Some(interrupt.clone()));
                host.interrupt(Scope::Everything, interrupt);
                next().await;
                watchdog.arm(watchdog::ENDS_WITHIN);
                hurry.send_replace(true);
                // Whoever has a handle on the watchdog keeps it awake.
                std::future::pending::<()>().await;
            });
        })?;
        Ok(Self { host, asked, hurried })
    }

    /// What a signal stops from now on.
    pub(super) fn stop(&self, host: &Host) {
        // One host for one command.
        let _ = self.host.set(host.clone());
    }

    /// What somebody has asked for so far.
    pub(super) fn interrupt(&self) -> Option<Interrupt> {
        self.asked.borrow().clone()
    }

    /// Resolves once somebody has asked a second time.
    pub(super) async fn hurried(&self) {
        if self.hurried.clone().wait_for(|hurried| *hurried).await.is_err() {
            // The thread has ended, so nobody will ask any more.
            std::future::pending::<()>().await;
        }
    }
}

/// The signals that this process ignores, one bit each.
fn ignored() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    Ok(mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0))
}
