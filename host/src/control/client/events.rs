//! An answer that comes bit by bit: server-sent events.
//!
//! Invariant: a host that says nothing at all for a while, not even that it has nothing to say, is not waited for.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixStream;

use super::{ANSWER_BYTES_MAX, AskError};
use crate::control::protocol::Refusal;

/// A host says something every few seconds, if only that it is there.
const SILENT_MAX: Duration = Duration::from_secs(20);

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EventsError {
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The host says why not.
    #[error("{error}")]
    Turned { status: u16, error: String },
}

/// One event.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: String,
}

/// The events of one answer. Dropping it closes the connection.
pub(crate) struct Events {
    body: Incoming,
    /// What has come and is not a whole line yet.
    line: Vec<u8>,
    event: Event,
    lines: std::collections::VecDeque<String>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Events {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Events {
    /// Asks for something whose answer is a stream.
    pub(crate) async fn ask(socket: &Path, path: &str, body: &impl Serialize) -> Result<Self, EventsError> {
        let garbled = |error: &dyn std::fmt::Display| AskError::Garbled(error.to_string());
        let body = serde_json::to_vec(body).map_err(|error| garbled(&error))?;
        let asked = async {
            let connect = |error| AskError::Connect(socket.display().to_string(), error);
            let stream = UnixStream::connect(socket).await.map_err(connect)?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| garbled(&e))?;
            // Its errors are those of whoever reads the answer.
            let driver = tokio::spawn(async move { drop(connection.await) });
            let request = Request::builder().method(Method::POST).uri(path).header("host", "estop");
            let request = request.body(Full::new(Bytes::from(body))).map_err(|error| garbled(&error))?;
            let answer = sender.send_request(request).await.map_err(|error| garbled(&error))?;
            let status = answer.status().as_u16();
            if answer.status().is_success() {
                let event = Event { name: String::new(), data: String::new() };
                let (body, lines) = (answer.into_body(), std::collections::VecDeque::new());
                return Ok(Self { body, line: Vec::new(), event, lines, driver });
            }
            let text = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let text = text.map_err(|error| garbled(&error))?.to_bytes();
            let Refusal { error } = serde_json::from_slice(&text).map_err(|error| garbled(&error))?;
            Err(EventsError::Turned { status, error })
        };
        tokio::time::timeout(SILENT_MAX, asked).await.map_err(|_| AskError::Silent(SILENT_MAX))?
    }

    /// The next one; none when the answer is over. Can be dropped and asked again.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, AskError> {
        loop {
            while let Some(line) = self.lines.pop_front() {
                if let Some(event) = self.read(&line) {
                    return Ok(Some(event));
                }
            }
            let frame = tokio::time::timeout(SILENT_MAX, self.body.frame()).await;
            let frame = match frame.map_err(|_| AskError::Silent(SILENT_MAX))? {
                Some(frame) => frame.map_err(|error| AskError::Garbled(error.to_string()))?,
                None => return Ok(None),
            };
            let Ok(bytes) = frame.into_data() else { continue };
            if self.line.len() + self.event.data.len() + bytes.len() > ANSWER_BYTES_MAX {
                return Err(AskError::Garbled(format!("an event has more than {ANSWER_BYTES_MAX} bytes")));
            }
            for byte in bytes {
                if byte == b'\n' {
                    self.lines.push_back(String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned());
                } else {
                    self.line.push(byte);
                }
            }
        }
    }

    /// One line. The event, if it ends one.
    fn read(&mut self, line: &str) -> Option<Event> {
        let Event { name, data } = &mut self.event;
        match line.split_once(':') {
            _ if line.is_empty() => {
                let event = Event { name: std::mem::take(name), data: std::mem::take(data) };
                return (!event.data.is_empty()).then_some(event);
            }
            Some(("event", value)) => *name = value.trim_start().to_owned(),
            Some(("data", value)) => data.push_str(value.strip_prefix(' ').unwrap_or(value)),
            // A sign of life, or something of a newer version.
            _ => {}
        }
        None
    }
}
