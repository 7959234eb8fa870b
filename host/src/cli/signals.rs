//! Ctrl-C and SIGTERM, on a thread of their own: they work while everything else is busy.
//!
//! Invariant: the first one interrupts what runs, through the same door as every other stop; the second ends the process
//! at once.

use std::sync::{Arc, OnceLock};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::watchdog::Watchdog;
use super::{ExitCode, user};
use crate::{Cause, Host, Interrupt, Scope};

/// What the first signal asked for.
pub(super) struct Signals {
    host: Arc<OnceLock<Host>>,
    asked: watch::Receiver<Option<Cause>>,
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
                watchdog.arm();
                let Some(host) = target.get() else {
                    eprintln!("estop: stopped ({reason}) before anything ran; nothing to discard");
                    std::process::exit(ExitCode::from(cause) as i32);
                };
                let _ = host.interrupt(Scope::Everything, Interrupt::new(cause, user::name()).reason(reason));
                tell.send_replace(Some(cause));
                let (_, reason) = next().await;
                eprintln!("estop: second {reason}: ending at once, without waiting for the stop to be confirmed");
                std::process::exit(ExitCode::Unconfirmed as i32);
            });
        })?;
        Ok(Self { host, asked })
    }

    /// What a signal stops from now on.
    pub(super) fn stop(&self, host: &Host) {
        // One host for one command.
        let _ = self.host.set(host.clone());
    }

    /// Resolves once somebody has asked.
    pub(super) async fn asked(&self) -> Cause {
        let mut asked = self.asked.clone();
        let cause = asked.wait_for(Option::is_some).await.ok().and_then(|cause| *cause);
        match cause {
            Some(cause) => cause,
            // The thread has ended, so nobody will ask any more.
            None => std::future::pending().await,
        }
    }
}
