//! What agents are told while they wait: one call, from its id to its outcome; and whether they are halted.
//!
//! Invariants:
//! - A call whose reader goes away before its outcome is stopped, with cause `disconnected`.
//! - A stream does not keep a host alive that has nothing else to do.

use std::convert::Infallible;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{Stream, unfold};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::places::Place;
use crate::call::{Call, Outcome, Progress};
use crate::control::connections::Asked;
use crate::control::protocol::{CallBegun, HaltedNow};
use crate::control::server::Peer;
use crate::host::Core;
use crate::interrupt::{Cause, Interrupt};

/// While there is nothing to say, something is said this often: so a reader that has vanished is noticed.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(5);
/// A tool may say how far it is as often as it likes; the newest of it is told at this pace.
const PROGRESS_EVERY: Duration = Duration::from_millis(10);

type Told<S> = Sse<axum::response::sse::KeepAliveStream<S>>;

/// A call that is stopped when nobody waits for it any more.
struct Held {
    call: Option<Call>,
    peer: Arc<str>,
}

impl Held {
    /// There until this is dropped.
    async fn outcome(&self) -> Arc<Outcome> {
        match &self.call {
            Some(call) => call.outcome().await,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(call) = self.call.take().filter(|call| call.try_outcome().is_none()) else { return };
        let gone = Interrupt::new(Cause::Disconnected, &*self.peer).reason("the connection was closed");
        call.interrupt_with(gone);
        // It is stopped, and entered: the handle has nothing to add.
        call.detach();
    }
}

struct OfCall {
    held: Held,
    /// Until it is told, or nobody listens.
    _place: Place,
    /// Once it is told, the connection may make room for others.
    asked: Asked,
    begun: Option<CallBegun>,
    progress: watch::Receiver<Option<Progress>>,
    not_before: Instant,
    outcome: Option<Arc<Outcome>>,
    over: bool,
}

/// Tells a call to the end.
pub(super) fn of_call(call: Call, begun: CallBegun, peer: Peer, place: Place) -> Told<impl Stream<Item = Said>> {
    let mut progress = call.progress();
    // What it has said before somebody listened.
    progress.mark_changed();
    let held = Held { call: Some(call), peer: peer.name() };
    let (begun, not_before) = (Some(begun), Instant::now());
    let state =
        OfCall { held, _place: place, asked: peer.asked, begun, progress, not_before, outcome: None, over: false };
    tell(unfold(state, |mut state| async {
        let event = state.next().await?;
        Some((Ok(event), state))
    }))
}

impl OfCall {
    async fn next(&mut self) -> Option<Event> {
        if let Some(begun) = self.begun.take() {
            return Some(event("call", &begun));
        }
        if self.over {
            return None;
        }
        while self.outcome.is_none() {
            tokio::select! {
                biased;
                outcome = self.held.outcome() => self.outcome = Some(outcome),
                said = said(&mut self.progress, self.not_before) => match said {
                    Some(said) => {
                        self.not_before = Instant::now() + PROGRESS_EVERY;
                        return Some(event("progress", &said));
                    }
                    // It says no more, so it ends.
                    None => self.outcome = Some(self.held.outcome().await),
                },
            }
        }
        // The last that it has said, if it has said anything since.
        if self.progress.has_changed().unwrap_or(false)
            && let Some(said) = self.progress.borrow_and_update().clone()
        {
            return Some(event("progress", &said));
        }
        self.over = true;
        self.asked.is_told();
        self.outcome.as_ref().map(|outcome| event("outcome", &outcome.to_json()))
    }
}

/// The newest, when it is time for it. None if nothing more will come.
async fn said(progress: &mut watch::Receiver<Option<Progress>>, not_before: Instant) -> Option<Progress> {
    loop {
        sleep_until(not_before).await;
        progress.changed().await.ok()?;
        if let Some(said) = progress.borrow_and_update().clone() {
            return Some(said);
        }
    }
}

struct OfHalts {
    core: Weak<Core>,
    agent: String,
    changes: watch::Receiver<u64>,
    closed: watch::Receiver<bool>,
    said: Option<HaltedNow>,
}

/// Tells whether a halt covers the agent, at once and at every change, until the host is gone.
pub(super) fn of_halts(
    core: &Arc<Core>,
    agent: String,
    closed: watch::Receiver<bool>,
) -> Told<impl Stream<Item = Said> + use<>> {
    let changes = core.halts.changes();
    let state = OfHalts { core: Arc::downgrade(core), agent, changes, closed, said: None };
    tell(unfold(state, |mut state| async {
        let event = state.next().await?;
        Some((Ok(event), state))
    }))
}

impl OfHalts {
    async fn next(&mut self) -> Option<Event> {
        loop {
            // Before the look: a change after it is met by the next turn.
            self.changes.mark_unchanged();
            let why = self.core.upgrade()?.halts.on_agent(&self.agent);
            let now = HaltedNow { halted: why.is_some(), why };
            if self.said.as_ref() != Some(&now) {
                self.said = Some(now.clone());
                return Some(event("halted", &now));
            }
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                _ = self.closed.wait_for(|closed| *closed) => return None,
            }
        }
    }
}

/// Nothing that is told can fail.
type Said = Result<Event, Infallible>;

fn tell<S: Stream<Item = Said> + Send + 'static>(events: S) -> Told<S> {
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE_EVERY))
}

/// One line of JSON.
fn event(name: &'static str, data: &impl Serialize) -> Event {
    Event::default().event(name).data(serde_json::to_string(data).unwrap_or_default())
}
