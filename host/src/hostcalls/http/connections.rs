//! The connections of one call.
//!
//! Invariant: once they are closed, nothing of the call is connected or gets connected, and nothing is said to be performed
//! any more. Closing does not wait, and does not depend on the thread that drives the connections: it speaks to the system
//! directly.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

/// What one call has open.
#[derive(Default)]
pub(super) struct Connections {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_closed: bool,
    /// At most as many as there are places for, and those that were not looked after since.
    open: Vec<Weak<Socket>>,
}

impl Connections {
    /// Begins to connect.
    pub(super) fn begin(&self, to: SocketAddr, open: OwnedSemaphorePermit) -> io::Result<Arc<Socket>> {
        let family = match to.ip() {
            IpAddr::V4(_) => AddressFamily::INET,
            IpAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        // What is small is sent at once, as by every client that asks and then waits.
        sockopt::set_tcp_nodelay(&socket, true)?;
        // Under the lock: whoever closes comes before, and there is no connection, or after, and finds it.
        let mut state = self.state();
        if state.is_closed {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        match rustix::net::connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let stream = TcpStream::from_std(socket.into())?;
        let socket = Arc::new(Socket { stream, place: Mutex::default(), _open: open });
        state.open.retain(|open| open.strong_count() > 0);
        state.open.push(Arc::downgrade(&socket));
        Ok(socket)
    }

    /// Does this, unless the call is over.
    pub(super) fn unless_closed(&self, act: impl FnOnce()) {
        let state = self.state();
        if !state.is_closed {
            act();
        }
    }

    pub(super) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        state.open.drain(..).filter_map(|open| open.upgrade()).for_each(|socket| socket.close());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection.
pub(super) struct Socket {
    stream: TcpStream,
    /// Among those that the call may have at one time.
    place: Mutex<Option<OwnedSemaphorePermit>>,
    /// Among those that the host may have at one time; for as long as there is a descriptor.
    _open: OwnedSemaphorePermit,
}

impl Socket {
    /// Until it is connected.
    pub(super) async fn connected(&self) -> io::Result<()> {
        self.stream.ready(Interest::WRITABLE).await?;
        self.stream.take_error()?.map_or(Ok(()), Err)
    }

    /// Keeps this place until the connection ends.
    pub(super) fn keep(&self, place: OwnedSemaphorePermit) {
        *self.place() = Some(place);
    }

    /// Somebody else may have its place.
    pub(super) fn give_way(&self) {
        drop(self.place().take());
    }

    /// At once: what was not sent yet is thrown away, and the other side is told.
    pub(super) fn close(&self) {
        self.give_way();
        // It can only fail if there is no connection any more.
        let _ = sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
        let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Both);
    }

    fn place(&self) -> MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection as a stream of bytes.
pub(super) struct Stream(pub(super) Arc<Socket>);

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = &self.0.stream;
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(|bytes| buffer.advance(bytes))),
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = &self.0.stream;
        loop {
            ready!(stream.poll_write_ready(cx))?;
            match stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(rustix::net::shutdown(&self.0.stream, rustix::net::Shutdown::Write)?))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn permit() -> OwnedSemaphorePermit {
        Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap()
    }

    #[tokio::test]
    async fn what_is_closed_is_closed_and_stays_so() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Connections::default();
        let socket = connections.begin(address, permit()).unwrap();
        socket.connected().await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        Stream(Arc::clone(&socket)).write_all(b"hello").await.unwrap();
        let mut told = [0; 5];
        server.read_exact(&mut told).await.unwrap();

        connections.unless_closed(|| told = *b"HELLO");
        assert_eq!(&told, b"HELLO");
        connections.close();
        // Somebody still holds it, and yet the other side is told.
        assert_eq!(server.read(&mut told).await.unwrap_or(0), 0);
        assert!(Stream(socket).write_all(b"more").await.is_err());
        assert_eq!(connections.begin(address, permit()).err().unwrap().kind(), io::ErrorKind::ConnectionAborted);
        connections.unless_closed(|| panic!("it is closed"));
    }
}
