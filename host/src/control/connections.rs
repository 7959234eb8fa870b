//! Connections to one socket: how many there may be, and who makes room.
//!
//! Invariant: whoever connects and asks at once is heard, however many others have connected and say nothing. Whether one
//! that is being answered makes room for the next is the socket's affair: an operator's question does, an agent's call
//! never.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinHandle;

/// Oldest first.
pub(super) struct Connections {
    open: VecDeque<Connection>,
    connections_max: usize,
    busy_give_way: bool,
}

struct Connection {
    task: JoinHandle<()>,
    asked: Asked,
}

/// Set once a connection has brought a whole request: then it is answered.
#[derive(Clone, Default)]
pub(super) struct Asked(Arc<AtomicBool>);

impl Asked {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Connections {
    /// `busy_give_way`: when all are being answered, the oldest makes room.
    pub(super) fn new(connections_max: usize, busy_give_way: bool) -> Self {
        Self { open: VecDeque::new(), connections_max, busy_give_way }
    }

    /// Whether there is room for one more; whoever has not asked for anything makes it.
    pub(super) fn make_room(&mut self) -> bool {
        self.open.retain(|connection| !connection.task.is_finished());
        if self.open.len() < self.connections_max {
            return true;
        }
        let idle = self.open.iter().position(|connection| !connection.asked.is_set());
        // If all are being answered, the oldest has had the most time.
        let leaves = idle.or(self.busy_give_way.then_some(0));
        leaves.and_then(|leaves| self.open.remove(leaves)).inspect(|connection| connection.task.abort()).is_some()
    }

    /// Serves one more, on this thread's runtime.
    pub(super) fn add<F: Future<Output = ()> + Send + 'static>(&mut self, serve: impl FnOnce(Asked) -> F) {
        let asked = Asked::default();
        let task = tokio::spawn(serve(asked.clone()));
        self.open.push_back(Connection { task, asked });
    }

    /// Waits until those that have asked are answered; the others are let go.
    pub(super) async fn finish(self) {
        for connection in self.open {
            if connection.asked.is_set() {
                // Whether it went well is for whoever asked to see.
                let _ = connection.task.await;
            } else {
                connection.task.abort();
            }
        }
    }
}
