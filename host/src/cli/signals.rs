//! Ctrl-C and SIGTERM, on a thread of their own: they work while everything else is busy.
//!
//! Invariant: the first one stops what runs, through the same door as every other stop; the second ends the process at
//! once.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

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
    hangups: watch::Receiver<u64>,
}

/// Who does what the first signal asks for.
#[derive(Clone, Copy)]
enum First {
    /// This thread: it interrupts whatever the host runs.
    Here,
    /// Whoever waits for it, within a time; perhaps somebody who also reloads.
    There { ends_within: Duration, reloads: bool },
}

impl Signals {
    /// Installs the handlers. The first signal interrupts what the host runs.
    pub(super) fn handle(watchdog: Watchdog) -> anyhow::Result<Self> {
        Self::start(watchdog, First::Here)
    }

    /// Installs the handlers. The first signal is told to whoever waits for it; then the process has to end within this.
    pub(super) fn tell(watchdog: Watchdog, ends_within: Duration) -> anyhow::Result<Self> {
        Self::start(watchdog, First::There { ends_within, reloads: false })
    }

    /// The same for whoever reloads at SIGHUP.
    pub(super) fn tell_and_reload(watchdog: Watchdog, ends_within: Duration) -> anyhow::Result<Self> {
        Self::start(watchdog, First::There { ends_within, reloads: true })
    }

    fn start(watchdog: Watchdog, first: First) -> anyhow::Result<Self> {
        let host = Arc::new(OnceLock::<Host>::new());
        let (tell, asked) = watch::channel(None);
        let (hang_up, hangups) = watch::channel(0);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let (mut ctrl_c, mut terminate) = {
            let _context = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        if let First::There { reloads: true, .. } = first {
            // Others are ended by it, as ever.
            let mut hangup = {
                let _context = runtime.enter();
                signal(SignalKind::hangup())?
            };
            runtime.spawn(async move {
                while hangup.recv().await.is_some() {
                    hang_up.send_modify(|count| *count += 1);
                }
            });
        }
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
                watchdog.arm(match first {
                    First::Here => watchdog::ENDS_WITHIN,
                    First::There { ends_within, .. } => ends_within,
                });
                let interrupt = Interrupt::new(cause, user::own()).reason(reason);
                if matches!(first, First::Here) {
                    let Some(host) = target.get() else {
                        let why = format!("estop: stopped ({reason}) before anything ran; nothing to discard");
                        watchdog::end(cause.into(), why);
                    };
                    // Told first: a call that starts too late to be met by the interrupt finds that it was asked for.
                    tell.send_replace(Some(interrupt.clone()));
                    host.interrupt(Scope::Everything, interrupt);
                } else {
                    tell.send_replace(Some(interrupt));
                }
                let (_, reason) = next().await;
                let why =
                    format!("estop: second {reason}: ending at once, without waiting for the stop to be confirmed");
                watchdog::end(ExitCode::Unconfirmed, why);
            });
        })?;
        Ok(Self { host, asked, hangups })
    }

    /// What a signal stops from now on.
    pub(super) fn stop(&self, host: &Host) {
        // One host for one command.
        let _ = self.host.set(host.clone());
    }

    /// Counts what asks for a reload.
    pub(super) fn hangups(&self) -> watch::Receiver<u64> {
        self.hangups.clone()
    }

    /// What somebody has asked for so far.
    pub(super) fn interrupt(&self) -> Option<Interrupt> {
        self.asked.borrow().clone()
    }

    /// Resolves once somebody has asked.
    pub(super) async fn asked(&self) -> Interrupt {
        let mut asked = self.asked.clone();
        let interrupt = asked.wait_for(Option::is_some).await.ok().and_then(|interrupt| interrupt.clone());
        match interrupt {
            Some(interrupt) => interrupt,
            // The thread has ended, so nobody will ask any more.
            None => std::future::pending().await,
        }
    }
}
