//! Shutting a host down: refuse, stop, discard, clean up, close the log.
//!
//! Invariants:
//! - Slow clean-up begins when everything that ran has been stopped and released, or is known not to be: whoever kills the
//!   process meanwhile finds no child of a call alive.
//! - Nothing that hangs keeps it: each step has a bound, and what did not come to its end is named.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::runtime;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::Host;
use crate::host::Core;
use crate::ids::CallId;
use crate::interrupt::{Cause, HOST_ACTOR, Interrupt, Interruption, Scope, TEXT_BYTES_MAX, cut};
use crate::log::{EntryKind, Record};

/// How long a shutdown waits, after the grace, for what it has stopped to be released. Half-way it stops again what is not.
pub const SHUTDOWN_RELEASED_WITHIN: Duration = Duration::from_secs(5);
/// How long a shutdown waits for the log to be written, signed and closed.
pub const SHUTDOWN_LOGGED_WITHIN: Duration = Duration::from_secs(20);
/// Hooks of one host; see [`HostBuilder::on_shutdown`](crate::HostBuilder::on_shutdown).
pub const SHUTDOWN_HOOKS_MAX: usize = 64;
/// Calls that an entry names.
const CALLS_NAMED_MAX: usize = 100;

/// What is run when a host is shut down.
pub(crate) struct Hook {
    name: String,
    budget: Duration,
    run: Box<dyn FnOnce() -> io::Result<()> + Send>,
}

impl Hook {
    pub(crate) fn new<F: Future<Output = ()> + 'static>(
        mut name: String,
        budget: Duration,
        hook: impl FnOnce() -> F + Send + 'static,
    ) -> Self {
        cut(&mut name, TEXT_BYTES_MAX);
        let run = move || {
            // Of its own: whatever it does there blocks nobody else.
            runtime::Builder::new_current_thread().enable_all().build()?.block_on(hook());
            Ok(())
        };
        Self { name, budget, run: Box::new(run) }
    }
}

/// What a shutdown waits for, in this order.
pub(crate) struct Closing {
    pub(crate) grace: Duration,
    pub(crate) hooks: Mutex<Vec<Hook>>,
}

/// How a host was shut down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shutdown {
    /// Calls that were stopped and not released within the bound, for example because a host function blocks its thread. No
    /// guest instruction of theirs runs any more once that function returns, and nothing of theirs is committed.
    pub unconfirmed: Vec<CallId>,
    /// Hooks that did not come to their end.
    pub hooks_cut: Vec<HookCut>,
    /// Whether the log is complete, signed and closed. Otherwise the next host that opens the home finds this one dead, and
    /// enters what became of its calls.
    pub log_closed: bool,
}

impl Shutdown {
    /// Everything came to its end.
    pub fn is_complete(&self) -> bool {
        self.unconfirmed.is_empty() && self.hooks_cut.is_empty() && self.log_closed
    }
}

/// A hook that did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HookCut {
    /// Its name.
    pub hook: String,
    /// What happened: its budget was used up, it panicked, or it could not be started.
    pub why: String,
}

impl Host {
    /// Lets nothing new begin, stops what runs, waits until it is released, runs the hooks, and closes the log: in this
    /// order. Calls get the [grace](crate::HostBuilder::shutdown_grace) of the builder.
    ///
    /// Always ends: after the grace, [`SHUTDOWN_RELEASED_WITHIN`], the budgets of the hooks one after the other, and
    /// [`SHUTDOWN_LOGGED_WITHIN`]. What did not come to its end by then is in the answer. Dropping the future does not end
    /// what it has begun.
    pub async fn shutdown(&self) -> Shutdown {
        self.shutdown_with(self.core().closing_down.grace).await
    }

    /// The same, with a grace of its own: time for cooperative tools to tidy up. They cannot commit in it.
    pub async fn shutdown_with(&self, grace: Duration) -> Shutdown {
        let core = Arc::clone(self.core());
        // At once, and on the thread that asks: the rest waits.
        let interruption = core.close(grace).unwrap_or_default();
        let (done, ended) = oneshot::channel();
        // A thread with timers of its own: whoever asks may have none, and those of host functions may be held up by them.
        let run = move || {
            let timers = runtime::Builder::new_current_thread().enable_time().build()?;
            // Whoever asked may have gone away.
            let _ = done.send(timers.block_on(core.end(interruption, grace)));
            io::Result::Ok(())
        };
        let thread = thread::Builder::new().name("estop-shutdown".into()).spawn(run);
        match ended.await {
            Ok(ended) => ended,
            Err(_) => {
                let error = thread.err().map_or_else(String::new, |error| format!(": {error}"));
                tracing::error!("a shutdown has stopped everything and could not wait for it{error}");
                self.core().log.stop();
                Shutdown::default()
            }
        }
    }
}

impl Core {
    /// Lets nobody in any more, and stops what is in.
    pub(crate) fn close(&self, grace: Duration) -> Option<Interruption> {
        self.closing.swap(true, Ordering::AcqRel);
        // Whoever registers after this look finds the host closing. There is nothing to stop, and nothing to enter.
        (self.inventory.live() > 0).then(|| self.stop_all(grace))
    }

    fn stop_all(&self, grace: Duration) -> Interruption {
        self.interrupt(Scope::Everything, Interrupt::new(Cause::Shutdown, HOST_ACTOR).grace(grace))
    }

    /// Everything after the stop.
    async fn end(&self, interruption: Interruption, grace: Duration) -> Shutdown {
        let unconfirmed = self.released(&interruption, grace).await;
        let mut hooks_cut = Vec::new();
        let hooks = std::mem::take(&mut *self.closing_down.hooks.lock().unwrap_or_else(PoisonError::into_inner));
        for hook in hooks {
            let name = hook.name.clone();
            if let Err(why) = run(hook).await {
                tracing::error!(hook = name, why, "a hook of the shutdown did not come to its end");
                hooks_cut.push(HookCut { hook: name, why });
            }
        }
        if !unconfirmed.is_empty() || !hooks_cut.is_empty() {
            let named = unconfirmed.iter().copied().take(CALLS_NAMED_MAX).collect();
            let cut = EntryKind::Cut { unconfirmed: unconfirmed.len() as u64, calls: named, hooks: hooks_cut.clone() };
            self.log.record(Record::Noted(cut));
        }
        // What still runs will not be entered by this host: it may not say that nothing is left.
        self.log.stop_with(unconfirmed.is_empty());
        let log_closed = timeout(SHUTDOWN_LOGGED_WITHIN, self.log.ended()).await.unwrap_or(false);
        // Operators see it until nothing of it is left to see.
        #[cfg(feature = "control")]
        self.end_control().await;
        Shutdown { unconfirmed, hooks_cut, log_closed }
    }

    /// Waits for what was stopped to be released and entered. What is not by then.
    async fn released(&self, interruption: &Interruption, grace: Duration) -> Vec<CallId> {
        let all = || async {
            for (call, _) in interruption.calls() {
                call.outcome().await;
            }
        };
        if timeout(grace.saturating_add(SHUTDOWN_RELEASED_WITHIN / 2), all()).await.is_err() {
            // Also if it is the end of the grace that did not come: whatever tells the time may be what is broken.
            drop(self.stop_all(Duration::ZERO));
            let _ = timeout(SHUTDOWN_RELEASED_WITHIN / 2, all()).await;
        }
        let unconfirmed: Vec<CallId> = interruption.unconfirmed().collect();
        if !unconfirmed.is_empty() {
            tracing::error!(calls = unconfirmed.len(), "the host shuts down with calls that are not released");
        }
        unconfirmed
    }
}

/// On a thread of its own, which is left behind when the budget is used up.
async fn run(hook: Hook) -> Result<(), String> {
    let Hook { budget, run, .. } = hook;
    let (done, ended) = oneshot::channel();
    let started = thread::Builder::new().name("estop-hook".into()).spawn(move || {
        // Nobody waits any more if it comes too late.
        let _ = done.send(catch_unwind(AssertUnwindSafe(run)));
    });
    started.map_err(|error| format!("no thread for it: {error}"))?;
    match timeout(budget, ended).await {
        Ok(Ok(Ok(ran))) => ran.map_err(|error| format!("no runtime for it: {error}")),
        Ok(Ok(Err(_)) | Err(_)) => Err("it panicked".into()),
        Err(_) => Err(format!("its budget of {budget:?} is used up; it was left behind")),
    }
}
