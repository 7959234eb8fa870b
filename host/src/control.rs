//! The control plane: HTTP/1.1 and JSON over Unix sockets, one for each role, on a thread of its own.
//!
//! Invariants:
//! - The thread runs nothing but this: it answers while every guest worker spins and every other runtime is wedged.
//! - Who asks is the user at the other end of the socket, as the kernel says; never what the request says.
//! - Nobody who connects can hold it up: requests are bounded in size, number and time, and when there are too many
//!   connections the oldest one that has not asked for anything makes room.

pub mod client;
mod connections;
pub mod place;
pub mod protocol;
mod server;

use std::sync::Mutex;

use tokio::sync::watch;

use self::place::Offer;
pub use self::place::PlaceError;

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
    closed: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
}

impl Control {
    /// Nobody finds the host any more, and who has asked is answered, within a bound.
    pub(crate) async fn end(&self) {
        self.close();
        // An error says that the thread has ended.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
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
