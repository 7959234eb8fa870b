//! Asking hosts from another process.
//!
//! Invariant: no host can hold up whoever asks: every question has a time, and all hosts are asked at once.

#[cfg(feature = "cli")]
pub(crate) mod events;

use std::io;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use super::place::Found;
use super::protocol::{Refusal, Role};

/// A host that does not answer within this is said not to have answered.
pub const ANSWERS_WITHIN: Duration = Duration::from_millis(500);
/// What stops waits in the host for what it has stopped to be released, and for the disk.
pub const STOPS_WITHIN: Duration = Duration::from_secs(2);
/// What is read of an answer (bytes).
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The host does not answer: it is frozen, or nobody runs its control thread.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// This user may not ask, or the host has just ended.
    #[error("cannot connect to `{0}`: {1}")]
    Connect(String, io::Error),
    /// What came was no answer.
    #[error("the answer cannot be understood: {0}")]
    Garbled(String),
    /// It was refused.
    #[error("{0}")]
    Refused(String),
}

impl AskError {
    /// This user may not connect: the right is somebody else's.
    pub fn is_shut_out(&self) -> bool {
        matches!(self, AskError::Connect(_, error) if error.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// Asks one host something.
///
/// # Errors
/// See [`AskError`].
pub async fn ask<T: DeserializeOwned>(
    host: &Found,
    role: Role,
    method: Method,
    path: &str,
    body: Option<&(impl Serialize + Sync)>,
    within: Duration,
) -> Result<T, AskError> {
    let socket = host.folder.join(role.socket());
    let body = body.map(serde_json::to_vec).transpose().map_err(|error| AskError::Garbled(error.to_string()))?;
    let asked = exchange(&socket, method, path, body.unwrap_or_default());
    let (is_refused, text) = tokio::time::timeout(within, asked).await.map_err(|_| AskError::Silent(within))??;
    let garbled = |error: serde_json::Error| AskError::Garbled(error.to_string());
    if is_refused {
        let Refusal { error } = serde_json::from_slice(&text).map_err(garbled)?;
        return Err(AskError::Refused(error));
    }
    serde_json::from_slice(&text).map_err(garbled)
}

/// One request and its answer, and whether that is a refusal.
async fn exchange(socket: &Path, method: Method, path: &str, body: Vec<u8>) -> Result<(bool, Bytes), AskError> {
    let connect = |error| AskError::Connect(socket.display().to_string(), error);
    let garbled = |error: &dyn std::fmt::Display| AskError::Garbled(error.to_string());
    let stream = UnixStream::connect(socket).await.map_err(connect)?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| connect(io::Error::other(error)))?;
    let request = Request::builder().method(method).uri(path).header("host", "estop");
    let request = request.body(Full::new(Bytes::from(body))).map_err(|error| garbled(&error))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| garbled(&error))?;
        let is_refused = !answer.status().is_success();
        let text = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok((is_refused, text.map_err(|error| garbled(&error))?.to_bytes()))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection is driven until the answer is there; if it ends before, the exchange says how.
        _ = connection => exchange.await,
    }
}

/// An empty body.
#[derive(Serialize, Deserialize)]
pub struct Nothing {}
