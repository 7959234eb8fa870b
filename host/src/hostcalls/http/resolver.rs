//! From the name of a host to its addresses.
//!
//! Invariant: a name is looked up once for a request, and what is checked is what is connected to. A look-up that is no
//! longer wanted goes on without any effect, and there are never more than [`LOOKUPS_MAX`] of them.

use std::future::Future;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::Semaphore;

/// Look-ups of one host at one time, those that nobody waits for any more included; more wait. The system's resolver cannot
/// be cancelled, and the threads that it blocks are also those of files.
pub const LOOKUPS_MAX: usize = 4;

/// What [`HttpResolver::resolve`] gives.
pub type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Finds the addresses of hosts. The system's by default.
pub trait HttpResolver: Send + Sync + 'static {
    /// The addresses of a host, by its name in small letters. The future is polled on the host's own runtime and may be
    /// dropped at any moment. The addresses are checked as all are.
    fn resolve(&self, name: &str) -> Resolving;
}

/// That of the system.
pub(super) struct SystemResolver {
    places: Arc<Semaphore>,
}

impl SystemResolver {
    pub(super) fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(LOOKUPS_MAX)) }
    }

    fn look_up(&self, look_up: impl FnOnce() -> io::Result<Vec<IpAddr>> + Send + 'static) -> Resolving {
        let places = Arc::clone(&self.places);
        Box::pin(async move {
            let place = places.acquire_owned().await.map_err(io::Error::other)?;
            let looked_up = tokio::task::spawn_blocking(move || {
                // For as long as the thread is blocked, and not only for as long as somebody waits.
                let _place = place;
                look_up()
            });
            looked_up.await.map_err(io::Error::other)?
        })
    }
}

impl HttpResolver for SystemResolver {
    fn resolve(&self, name: &str) -> Resolving {
        let name = name.to_owned();
        // The port is none of its business; it only has to be there.
        self.look_up(move || Ok((name, 0).to_socket_addrs()?.map(|found| found.ip()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn look_ups_that_nobody_waits_for_are_counted_until_they_end() {
        let resolver = SystemResolver::new();
        let (mut ends, (began, begins)) = (Vec::new(), mpsc::channel());
        for _ in 0..LOOKUPS_MAX {
            let (end, ended) = mpsc::channel::<()>();
            let began = began.clone();
            let looking = resolver.look_up(move || {
                began.send(()).unwrap();
                // Until the sender is dropped.
                let _ = ended.recv();
                Ok(Vec::new())
            });
            assert!(looking.now_or_never().is_none());
            begins.recv().unwrap();
            ends.push(end);
        }
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let mut one_more = resolver.look_up(move || Ok(vec![address]));
        assert!(one_more.as_mut().now_or_never().is_none());
        assert_eq!(resolver.places.available_permits(), 0);
        ends.pop();
        assert_eq!(one_more.await.unwrap(), [address]);
    }

    #[tokio::test]
    async fn the_system_knows_this_machine() {
        let found = SystemResolver::new().resolve("localhost").await.unwrap();
        assert!(found.iter().all(IpAddr::is_loopback) && !found.is_empty(), "{found:?}");
    }
}
