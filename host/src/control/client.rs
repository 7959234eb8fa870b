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
/// Before an operator asks again who was not heard.
const AGAIN_AFTER: Duration = Duration::from_millis(5);

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

/// Asks one host something. Whoever is not heard because too many others have connected asks again until the time is over:
/// what an operator asks may be asked twice.
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
    let body = Bytes::from(body.unwrap_or_default());
    let asked = async {
        loop {
            match exchange(&socket, method.clone(), path, body.clone()).await {
                Err(Unanswered { was_sent, .. }) if !was_sent || role == Role::Operator => {
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
                Err(Unanswered { error, .. }) => return Err(error),
                Ok(answer) => return answer,
            }
        }
    };
    let (is_refused, text) = tokio::time::timeout(within, asked).await.map_err(|_| AskError::Silent(within))??;
    let garbled = |error: serde_json::Error| AskError::Garbled(error.to_string());
    if is_refused {
        let Refusal { error } = serde_json::from_slice(&text).map_err(garbled)?;
        return Err(AskError::Refused(error));
    }
    serde_json::from_slice(&text).map_err(garbled)
}

/// The host has let the connection go, or could not take it.
struct Unanswered {
    was_sent: bool,
    error: AskError,
}

/// One request and its answer, and whether that is a refusal.
async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Result<(bool, Bytes), AskError>, Unanswered> {
    let connect = |error| AskError::Connect(socket.display().to_string(), error);
    let garbled = |error: &dyn std::fmt::Display| AskError::Garbled(error.to_string());
    let stream = match UnixStream::connect(socket).await {
        // Too many wait to be taken.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(Unanswered { was_sent: false, error: connect(error) });
        }
        Err(error) => return Ok(Err(connect(error))),
        Ok(stream) => stream,
    };
    let (mut sender, connection) = match http1::handshake(TokioIo::new(stream)).await {
        Ok(connected) => connected,
        Err(error) => return Ok(Err(connect(io::Error::other(error)))),
    };
    let request = Request::builder().method(method).uri(path).header("host", "estop").body(Full::new(body));
    let request = match request {
        Ok(request) => request,
        Err(error) => return Ok(Err(garbled(&error))),
    };
    let exchange = async {
        let answer = match sender.send_request(request).await {
            Ok(answer) => answer,
            Err(error) if error.is_parse() => return Ok(Err(garbled(&error))),
            Err(error) => return Err(Unanswered { was_sent: true, error: garbled(&error) }),
        };
        let is_refused = !answer.status().is_success();
        let text = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok(text.map(|text| (is_refused, text.to_bytes())).map_err(|error| garbled(&error)))
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixSocket;

    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

    async fn asks(folder: &Path, role: Role) -> Result<Nothing, AskError> {
        let host = Found { folder: folder.to_owned(), pid: 1, owner: 0 };
        ask(&host, role, Method::GET, "/v1/status", None::<&Nothing>, Duration::from_secs(60)).await
    }

    /// Whoever asks, and keeps the connection.
    async fn answers(mut stream: UnixStream) {
        if stream.read(&mut [0; 1024]).await.is_ok_and(|bytes| bytes > 0) {
            let _ = stream.write_all(ANSWER).await;
        }
        std::future::pending::<()>().await;
    }

    /// A host that lets connections go, as it does when there are too many.
    #[tokio::test]
    async fn who_is_let_go_asks_again_if_it_may_be_asked_twice() {
        let folder = tempfile::tempdir().unwrap();
        for role in [Role::Operator, Role::Admin] {
            let listener = tokio::net::UnixListener::bind(folder.path().join(role.socket())).unwrap();
            let host = async {
                for _ in 0..3 {
                    drop(listener.accept().await.unwrap());
                }
                let (stream, _) = listener.accept().await.unwrap();
                answers(stream).await;
            };
            tokio::select! {
                () = host => {}
                answer = asks(folder.path(), role) => assert_eq!(answer.is_ok(), role == Role::Operator),
            }
        }
    }

    /// A host that cannot keep up with those who connect.
    #[tokio::test]
    async fn who_cannot_connect_because_others_wait_waits_as_well() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(Role::Admin.socket());
        let socket = UnixSocket::new_stream().unwrap();
        socket.bind(&path).unwrap();
        let listener = socket.listen(1).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let host = async {
            // Not before the first try has failed.
            tokio::task::yield_now().await;
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answers(stream));
            }
        };
        tokio::select! {
            () = host => {}
            answer = asks(folder.path(), Role::Admin) => assert!(answer.is_ok()),
        }
    }
}
