//! The control plane: HTTP/1.1 and JSON over Unix sockets, one for each role, on a thread of its own. Agents have a socket
//! too, if the host serves them; that one is not this thread's.
//!
//! Invariants:
//! - The thread runs nothing but this: it answers while every guest worker spins and every other runtime is wedged.
//! - Who asks is the user at the other end of the socket, as the kernel says; never what the request says.
//! - Nobody who connects can hold it up: requests are bounded in size, number and time, and when there are too many
//!   connections those that have not asked for anything make room first, and those that wait to hear of a stop last.

mod agents;
pub mod client;
mod connections;
mod denials;
pub mod drill;
pub(crate) mod events;
mod metrics;
mod patience;
pub mod place;
pub mod protocol;
mod rights;
mod served;
mod server;
mod shared_answer;
mod shelf;
mod show;
mod token;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use self::place::Offer;
pub use self::place::{Mode, PlaceError};
pub use self::served::Served;
#[cfg(feature = "cli")]
pub(crate) use self::served::{Errand, Errands};
use crate::heartbeat::Heartbeat;

/// What kind of host process it is, for whoever looks at `estop ps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostKind {
    /// `estop run`: one call.
    Run,
    /// `estop exec`: an agent's own program.
    Exec,
    /// `estop serve`.
    Serve,
    /// A program with the host in it.
    Embedded,
}

impl std::fmt::Display for HostKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            HostKind::Run => "run",
            HostKind::Exec => "exec",
            HostKind::Serve => "serve",
            HostKind::Embedded => "embedded",
        })
    }
}

/// A host's sockets, from when they can be found until they are closed.
pub(crate) struct Control {
    offer: Mutex<Option<Offer>>,
    /// Where the sockets are while they can be found.
    pub(crate) folder: PathBuf,
    closed: watch::Sender<bool>,
    /// By whoever serves a socket.
    ended: Vec<watch::Receiver<bool>>,
    /// Of the control thread.
    pub(crate) heart: Arc<Heartbeat>,
}

impl Control {
    /// Nobody finds the host any more, and who has asked is answered, within a bound.
    pub(crate) async fn end(&self) {
        self.close();
        for mut ended in self.ended.iter().cloned() {
            // An error says that whoever it is has ended.
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }

    fn close(&self) {
        self.closed.send_replace(true);
        if let Ok(mut offer) = self.offer.lock() {
            drop(offer.take());
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.close();
    }
}
