//! Ctrl-C and SIGTERM, on a thread of their own: they work while everything else is busy.
//!
//! Invariant: the first one interrupts what runs, through the same door as every other stop; the second ends the process
//! at once.

use std::sync::{Arc, OnceLock};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::ExitCode;
use super::watchdog::{self, Watchdog};
use crate::user;
use crate::{Cause, Host, Interrupt, Scope};

/// What the first signal asked for.
pub(super) struct Signals {
    host: Arc<OnceLock<Host>>,
    asked: watch::Receiver<Option<Interrupt>>,
}

impl Signals {
    /// Installs the handlers.
    pub(super) fn handle(watchdog: Watchdog) -> anyhow::Result<Self> {
        let host = Arc::new(OnceLock::<Host>::new());
        let (tell, asked) = watch::channel(None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let (mut ctrl_c, mut terminate) = {
            let _context = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        let target = Arc::clone(&host);
        thread::Builder::new().name("estop-control".into()).spawn(move || {
            runtime.block_on(async {
                let mut next = async || {
                    tokio::select! {
                        _ = ctrl_c.recv() => (Cause::Operator, "Ctrl-C"),
                        _ = terminate.recv() => (Cause::Shutdown, "SIGTERM"),
                    }
                };
                let (cause, reason) = next().await;
                watchdog.arm(watchdog::ENDS_WITHIN);
                let Some(host) = target.get() else {
                    let why = format!("estop: stopped ({reason}) before anything ran; nothing to discard");
                    watchdog::end(cause.into(), why);
                };
                let interrupt = Interrupt::new(cause, user::own()).reason(reason);
                // Told first: a call that starts too late to be met by the interrupt finds that it was asked for.
                tell.send_replace(Some(interrupt.clone()));
                host.interrupt(Scope::Everything, interrupt);
                let (_, reason) = next().await;
                let why =
                    format!("estop: second {reason}: ending at once, without waiting for the stop to be confirmed");
                watchdog::end(ExitCode::Unconfirmed, why);
            });
        })?;
        Ok(Self { host, asked })
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
}
