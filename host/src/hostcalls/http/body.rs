//! The bodies of requests and responses, with their bounds.
//!
//! Invariant: nothing is kept here; whoever reads more slowly holds up whoever writes.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use wasmtime_wasi_http::{Error, WasiBody};

use super::connections::Socket;
use crate::call::live::{HostCall, Live};

/// What the guest sends. Also sets a mark if it is too much, because what becomes of the error is the connection's affair.
pub(super) struct RequestBody {
    pub(super) body: WasiBody,
    pub(super) left_bytes: u64,
    pub(super) live: Arc<Live>,
    pub(super) is_too_large: Arc<AtomicBool>,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let bytes =
            frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref).map_or(0, Bytes::len);
        match self.left_bytes.checked_sub(bytes as u64).filter(|_| self.live.may_transfer(bytes)) {
            Some(left_bytes) => {
                self.left_bytes = left_bytes;
                Poll::Ready(frame)
            }
            None => {
                self.is_too_large.store(true, Ordering::Release);
                Poll::Ready(Some(Err(Error::HttpRequestBodySize(None))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What the guest reads. Dropped before its end, it closes the connection.
pub(super) struct ResponseBody {
    body: Incoming,
    socket: Arc<Socket>,
    bytes_max: u64,
    left_bytes: u64,
    within: Duration,
    timer: Pin<Box<Sleep>>,
    /// While somebody waits, and since the timer was set.
    waiting: Option<Box<dyn Any + Send>>,
    live: Arc<Live>,
    has_ended: bool,
}

impl ResponseBody {
    pub(super) fn new(body: Incoming, socket: Arc<Socket>, bytes_max: u64, within: Duration, live: Arc<Live>) -> Self {
        let has_ended = body.is_end_stream();
        if has_ended {
            socket.give_way();
        }
        let timer = Box::pin(sleep_until(Instant::now()));
        Self { body, socket, bytes_max, left_bytes: bytes_max, within, timer, waiting: None, live, has_ended }
    }

    fn failed(&mut self, error: Error) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.has_ended = true;
        self.socket.close();
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            if self.waiting.is_none() {
                // Before that the guest was busy with something else: that is not the server's fault.
                let at = Instant::now() + self.within;
                self.timer.as_mut().reset(at);
                self.waiting = Some(Box::new(self.live.enter(HostCall::Http)));
            }
            ready!(self.timer.as_mut().poll(cx));
            self.waiting = None;
            return self.failed(Error::ConnectionReadTimeout);
        };
        self.waiting = None;
        match frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Buf::remaining);
                match self.left_bytes.checked_sub(bytes as u64).filter(|_| self.live.may_transfer(bytes)) {
                    Some(left_bytes) => self.left_bytes = left_bytes,
                    None => {
                        let bytes_max = self.bytes_max;
                        return self.failed(Error::HttpResponseBodySize(Some(bytes_max)));
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => self.failed(super::send::told(&error)),
            None => {
                self.has_ended = true;
                self.socket.give_way();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if !self.has_ended && !self.body.is_end_stream() {
            self.socket.close();
        } else {
            self.socket.give_way();
        }
    }
}
