//! Connections to one socket: how many there may be, and who makes room.
//!
//! Invariant: whoever connects and asks at once is heard, however many others have connected and say nothing.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinHandle;

/// Connections to one socket at one time.
pub(super) const CONNECTIONS_MAX: usize = 64;

/// Oldest first.
#[derive(Default)]
pub(super) struct Connections {
    open: VecDeque<Connection>,
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

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Connections {
    /// Serves one more, on this thread's runtime.
    pub(super) fn add<F: Future<Output = ()> + Send + 'static>(&mut self, serve: impl FnOnce(Asked) -> F) {
        self.open.retain(|connection| !connection.task.is_finished());
        if self.open.len() >= CONNECTIONS_MAX {
            let idle = self.open.iter().position(|connection| !connection.asked.is_set());
            // If all are being answered, the oldest has had the most time.
            if let Some(connection) = self.open.remove(idle.unwrap_or(0)) {
                connection.task.abort();
            }
        }
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
