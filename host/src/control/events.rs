//! Watchers: whoever looks on, by server-sent events, at what the log records.
//!
//! The writer of the log drops a copy of each entry into a queue, if anybody watches; the control thread comes by for them
//! at its own pace, and gives them to the watchers.
//!
//! Invariants:
//! - Whoever writes the log shares no lock with the control thread, and waits for nobody: what does not fit is lost.
//! - A watcher that does not read loses events, and is told how many; it holds up nobody. So does it with its place: there
//!   are few, and whoever comes late takes that of the oldest.
//! - What is said in one turn is bounded, so watchers take a small part of the control thread's time.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use crossbeam_queue::ArrayQueue;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::{Notify, broadcast, watch};

use super::connections::Asked;
use super::server::{Desk, Peer, Refused};
use crate::ids::HaltId;
use crate::log::{Entry, EntryKind};
use crate::metrics::Counter;

/// Who may watch at one time.
const WATCHERS_MAX: usize = 16;
/// Entries that wait for the control thread, and events that wait for a watcher; more are lost.
const EVENTS_MAX: usize = 512;
/// The control thread comes by this often while anybody watches.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Halts that are remembered, to tell of each once.
const HALTS_TOLD_MAX: usize = 64;
/// A watcher who is told nothing for this long is told that.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(5);

/// The side of the log.
#[derive(Default)]
pub(crate) struct Feed {
    is_watched: AtomicBool,
    /// Made for the first watcher.
    entries: OnceLock<ArrayQueue<Entry>>,
    lost: Counter,
}

impl Feed {
    /// Something was entered. Never waits.
    pub(crate) fn entry(&self, entry: &Entry) {
        if !self.is_watched.load(Ordering::Acquire) {
            return;
        }
        if let Some(entries) = self.entries.get()
            && entries.push(entry.clone()).is_err()
        {
            self.lost.add(1);
        }
    }

    fn watched(&self) {
        self.entries.get_or_init(|| ArrayQueue::new(EVENTS_MAX));
        self.is_watched.store(true, Ordering::Release);
    }
}

/// With how many entries were told or lost so far, this one included.
#[derive(Clone)]
enum Event {
    Told(u64, Bytes),
    Lost(u64),
    /// The host ends.
    Last,
}

/// One who watches.
struct Watcher {
    events: broadcast::Receiver<Event>,
    /// As in [`Event`].
    so_far: u64,
    /// To be said once it is said what was lost before it.
    next: Option<Bytes>,
}

/// The side of the control thread.
pub(super) struct Watchers {
    feed: Arc<Feed>,
    events: broadcast::Sender<Event>,
    /// Entries that were told or lost; and of the lost ones, those that watchers know of.
    so_far: Counter,
    lost_told: Counter,
    /// Oldest first.
    places: Mutex<VecDeque<Asked>>,
    arrived: Notify,
    /// Newest first.
    halts_told: Mutex<VecDeque<HaltId>>,
}

pub(super) fn routes() -> Router<Arc<Desk>> {
    Router::new().route("/v1/events", get(watch))
}

async fn watch(State(desk): State<Arc<Desk>>, Extension(peer): Extension<Peer>) -> Result<Response, Refused> {
    let host = desk.core()?.id;
    let watcher = desk.watchers.place(&peer.asked);
    let watching = text("watching", &json!({ "kind": "watching", "host": host }));
    let begins = stream::once(async { Ok::<_, Infallible>(watching) });
    let told = stream::unfold(watcher, |mut watcher| async move { Some((Ok(watcher.next().await?), watcher)) });
    let head = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
    Ok((head, Body::from_stream(stream::StreamExt::chain(begins, told))).into_response())
}

impl Watcher {
    /// What it is told next; none at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(text) = self.next.take() {
            return Some(text);
        }
        loop {
            match tokio::time::timeout(KEEP_ALIVE_EVERY, self.events.recv()).await {
                Err(_) => return Some(Bytes::from_static(b": nothing new\n\n")),
                Ok(Ok(Event::Told(so_far, text))) => {
                    let lost = so_far - self.so_far - 1;
                    self.so_far = so_far;
                    if lost == 0 {
                        return Some(text);
                    }
                    self.next = Some(text);
                    return Some(lagged(lost));
                }
                Ok(Ok(Event::Lost(so_far))) => {
                    let lost = so_far - self.so_far;
                    self.so_far = so_far;
                    return Some(lagged(lost));
                }
                // How many entries that were is seen by the next one.
                Ok(Err(broadcast::error::RecvError::Lagged(_))) => {}
                Ok(Ok(Event::Last) | Err(broadcast::error::RecvError::Closed)) => return None,
            }
        }
    }
}

fn lagged(lost: u64) -> Bytes {
    text("lagged", &json!({ "kind": "lagged", "lost": lost }))
}

fn text(kind: &str, value: &Value) -> Bytes {
    format!("event: {kind}\ndata: {value}\n\n").into()
}

impl Watchers {
    pub(super) fn new(feed: Arc<Feed>) -> Self {
        Self {
            feed,
            events: broadcast::Sender::new(EVENTS_MAX),
            so_far: Counter::default(),
            lost_told: Counter::default(),
            places: Mutex::default(),
            arrived: Notify::new(),
            halts_told: Mutex::default(),
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.events.receiver_count()
    }

    /// One more. If there are too many, the oldest is let go.
    fn place(&self, asked: &Asked) -> Watcher {
        asked.watches();
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(Asked::is_open);
        while places.len() >= WATCHERS_MAX
            && let Some(oldest) = places.pop_front()
        {
            oldest.let_go();
        }
        places.push_back(asked.clone());
        let watcher = Watcher { events: self.events.subscribe(), so_far: self.so_far.get(), next: None };
        // From here on nothing is missed, and only then is the watcher told that it watches.
        self.feed.watched();
        self.arrived.notify_one();
        watcher
    }

    /// Tells the watchers what was entered, until the host ends.
    pub(super) async fn tell(&self, mut closed: watch::Receiver<bool>) {
        loop {
            let look = async {
                match self.count() {
                    0 => self.arrived.notified().await,
                    _ => tokio::time::sleep(LOOK_EVERY).await,
                }
            };
            let is_closed = tokio::select! {
                () = look => false,
                _ = closed.wait_for(|closed| *closed) => true,
            };
            self.turn();
            if is_closed {
                // Whoever comes from here on finds nobody to tell anything, and is let go with the others.
                let _ = self.events.send(Event::Last);
                return;
            }
        }
    }

    fn turn(&self) {
        let Some(entries) = self.feed.entries.get() else { return };
        if self.count() == 0 {
            self.feed.is_watched.store(false, Ordering::Release);
        }
        // Read before the queue: what was lost by now was lost before there was room again.
        let lost = self.feed.lost.get() - self.lost_told.get();
        for entry in std::iter::from_fn(|| entries.pop()).take(EVENTS_MAX) {
            if !self.is_news(&entry) {
                continue;
            }
            let entry = entry.to_json();
            let text = text(entry["kind"].as_str().unwrap_or("unknown"), &entry);
            self.so_far.add(1);
            self.say(Event::Told(self.so_far.get(), text));
        }
        if lost > 0 {
            self.lost_told.add(lost);
            self.so_far.add(lost);
            self.say(Event::Lost(self.so_far.get()));
        }
    }

    /// A halt that comes by several ways is told once.
    fn is_news(&self, entry: &Entry) -> bool {
        let EntryKind::Halt { halt, .. } = &entry.kind else { return true };
        let mut told = self.halts_told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.contains(halt) {
            return false;
        }
        told.truncate(HALTS_TOLD_MAX - 1);
        told.push_front(*halt);
        true
    }

    fn say(&self, event: Event) {
        // An error says that nobody watches.
        let _ = self.events.send(event);
    }
}
