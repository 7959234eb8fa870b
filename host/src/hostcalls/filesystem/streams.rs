//! Files as streams.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustix::io::Errno;
use wasmtime_wasi_io::async_trait;
use wasmtime_wasi_io::poll::Pollable;
use wasmtime_wasi_io::streams::{InputStream, OutputStream, StreamError, StreamResult};

use super::Opened;
use super::convert::moment;
use crate::host::Core;
use crate::workspace::READ_BYTES_MAX;

/// Read ahead for whoever only waits until there is something (bytes).
const AHEAD_BYTES: usize = 64 << 10;

fn failed(error: Errno) -> StreamError {
    StreamError::LastOperationFailed(error.into())
}

/// Reads from an offset on.
pub(super) struct Input {
    file: Arc<Opened>,
    at: u64,
    state: Reading,
}

enum Reading {
    Idle,
    Begun(BoxFuture<'static, Result<Vec<u8>, Errno>>),
    Read(Bytes),
    Failed(Errno),
    Ended,
}

impl Input {
    pub(super) fn new(file: Arc<Opened>, at: u64, may_read: bool) -> Self {
        let state = if may_read { Reading::Idle } else { Reading::Failed(Errno::BADF) };
        Self { file, at, state }
    }

    fn begin(&self, bytes: usize) -> Reading {
        let (file, at) = (Arc::clone(&self.file), self.at);
        Reading::Begun(Box::pin(async move { file.files.read(file.node, at, bytes).await }))
    }

    async fn settle(&mut self) {
        if let Reading::Begun(reading) = &mut self.state {
            self.state = match reading.await {
                Ok(data) if data.is_empty() => Reading::Ended,
                Ok(data) => Reading::Read(data.into()),
                Err(error) => Reading::Failed(error),
            };
        }
    }
}

#[async_trait]
impl Pollable for Input {
    async fn ready(&mut self) {
        if matches!(self.state, Reading::Idle) {
            self.state = self.begin(AHEAD_BYTES);
        }
        self.settle().await;
    }
}

#[async_trait]
impl InputStream for Input {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        match &mut self.state {
            Reading::Idle if size == 0 => Ok(Bytes::new()),
            Reading::Idle => {
                // What is kept until the guest asks again.
                self.state = self.begin(size.min(AHEAD_BYTES));
                Ok(Bytes::new())
            }
            Reading::Begun(_) => Ok(Bytes::new()),
            Reading::Read(data) => {
                let part = data.split_to(size.min(data.len()));
                self.at += part.len() as u64;
                if data.is_empty() {
                    self.state = Reading::Idle;
                }
                Ok(part)
            }
            Reading::Failed(error) => {
                let error = *error;
                self.state = Reading::Ended;
                Err(failed(error))
            }
            Reading::Ended => Err(StreamError::Closed),
        }
    }

    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        if matches!(self.state, Reading::Idle) && size > 0 {
            self.state = self.begin(size);
        }
        self.settle().await;
        self.read(size)
    }
}

/// Writes from an offset on, or at the end.
pub(super) struct Output {
    file: Arc<Opened>,
    at: Option<u64>,
    core: Arc<Core>,
    state: Writing,
}

enum Writing {
    Idle,
    Begun(BoxFuture<'static, Result<(), Errno>>),
    Failed(Errno),
    Ended,
}

impl Output {
    pub(super) fn new(file: Arc<Opened>, at: Option<u64>, core: Arc<Core>) -> Self {
        Self { file, at, core, state: Writing::Idle }
    }

    fn begin(&mut self, data: Bytes) {
        let (file, at, now) = (Arc::clone(&self.file), self.at, moment(self.core.clock.wall()));
        self.at = at.map(|at| at.saturating_add(data.len() as u64));
        self.state = Writing::Begun(Box::pin(async move {
            file.files.run(|overlay| overlay.write(file.node, at, &data, now)).await.map(drop)
        }));
        // Usually that is all; a guest may drop the stream without waiting.
        self.settle().now_or_never();
    }

    async fn settle(&mut self) {
        if let Writing::Begun(writing) = &mut self.state {
            self.state = match writing.await {
                Ok(()) => Writing::Idle,
                Err(error) => Writing::Failed(error),
            };
        }
    }
}

#[async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        self.settle().await;
    }
}

#[async_trait]
impl OutputStream for Output {
    fn check_write(&mut self) -> StreamResult<usize> {
        match self.state {
            Writing::Idle => Ok(READ_BYTES_MAX),
            Writing::Begun(_) => Ok(0),
            Writing::Failed(error) => {
                self.state = Writing::Ended;
                Err(failed(error))
            }
            Writing::Ended => Err(StreamError::Closed),
        }
    }

    fn write(&mut self, data: Bytes) -> StreamResult<()> {
        match self.state {
            Writing::Idle if data.len() <= READ_BYTES_MAX => {
                self.begin(data);
                Ok(())
            }
            Writing::Idle | Writing::Begun(_) => Err(StreamError::trap("more was written than was allowed")),
            Writing::Failed(_) | Writing::Ended => self.check_write().map(drop),
        }
    }

    fn flush(&mut self) -> StreamResult<()> {
        match self.state {
            Writing::Idle | Writing::Begun(_) => Ok(()),
            Writing::Failed(_) | Writing::Ended => self.check_write().map(drop),
        }
    }

    async fn cancel(&mut self) {
        self.settle().await;
    }

    async fn blocking_write_and_flush(&mut self, data: Bytes) -> StreamResult<()> {
        self.settle().await;
        if matches!(self.state, Writing::Idle) {
            self.begin(data);
            self.settle().await;
        }
        self.check_write().map(drop)
    }
}
