//! Asking hosts from another process.
//!
//! Invariant: no host can hold up whoever asks: every question has a time, and all hosts are asked at once.

#[cfg(feature = "cli")]
pub(crate) mod events;

use std::io;
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
use crate::interrupt::cut;

/// A host that does not answer within this is said not to have answered.
pub const ANSWERS_WITHIN: Duration = Duration::from_millis(500);
/// What stops waits in the host for what it has stopped to be released, and for the disk.
pub const STOPS_WITHIN: Duration = Duration::from_secs(2);
/// What is read of an answer (bytes).
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// What is kept of the words of a refusal (bytes).
const REFUSAL_BYTES_MAX: usize = 4 << 10;
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
    parse(&ask_text(host, role, method, path, body, within).await?)
}

/// The same; the answer as it came.
pub(crate) async fn ask_text(
    host: &Found,
    role: Role,
    method: Method,
    path: &str,
    body: Option<&(impl Serialize + Sync)>,
    within: Duration,
) -> Result<Bytes, AskError> {
    let body = body.map(serde_json::to_vec).transpose().map_err(|error| AskError::Garbled(error.to_string()))?;
    let body = Bytes::from(body.unwrap_or_default());
    let asked = async {
        loop {
            match exchange(host, role, method.clone(), path, body.clone()).await {
                Err(Unanswered { was_sent, .. }) if !was_sent || role == Role::Operator => {
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
                Err(Unanswered { error, .. }) => return Err(error),
                Ok(answer) => return answer,
            }
        }
    };
    let (is_refused, text) = tokio::time::timeout(within, asked).await.map_err(|_| AskError::Silent(within))??;
    if is_refused {
        let Refusal { mut error } = parse(&text)?;
        cut(&mut error, REFUSAL_BYTES_MAX);
        return Err(AskError::Refused(error));
    }
    Ok(text)
}

/// Reads an answer.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, AskError> {
    serde_json::from_slice(text).map_err(|error| {
        let mut why = error.to_string();
        cut(&mut why, REFUSAL_BYTES_MAX);
        AskError::Garbled(why)
    })
}

/// The host has let the connection go, or could not take it.
struct Unanswered {
    was_sent: bool,
    error: AskError,
}

/// One request and its answer, and whether that is a refusal.
async fn exchange(
    host: &Found,
    role: Role,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Result<(bool, Bytes), AskError>, Unanswered> {
    let socket = host.folder.join(role.socket());
    let connect = |error| AskError::Connect(socket.display().to_string(), error);
    let garbled = |error: &dyn std::fmt::Display| AskError::Garbled(error.to_string());
    let stream = match UnixStream::connect(&socket).await {
        Err(error) if is_for_want_of_room(&error) => {
            return Err(Unanswered { was_sent: false, error: connect(error) });
        }
        Err(error) => return Ok(Err(connect(error))),
        Ok(stream) => stream,
    };
    // Anybody can name a folder after somebody else's process. Without a number it is in a place that has others.
    let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
    if let Some(pid) = peer.filter(|pid| *pid != 0 && u32::try_from(*pid).ok() != Some(host.pid)) {
        return Ok(Err(AskError::Garbled(format!("it is process {pid} that answers there, and not {}", host.pid))));
    }
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

/// Too many wait to be taken, or this process has too many files open: neither is for the host to answer for.
fn is_for_want_of_room(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| [Errno::WOULDBLOCK, Errno::MFILE, Errno::NFILE].contains(&errno))
}

/// An empty body.
#[derive(Serialize, Deserialize)]
pub struct Nothing {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixSocket;

    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

    async fn asks(folder: &Path, role: Role) -> Result<Nothing, AskError> {
        asks_process(std::process::id(), folder, role).await
    }

    async fn asks_process(pid: u32, folder: &Path, role: Role) -> Result<Nothing, AskError> {
        let host = Found { folder: folder.to_owned(), pid, owner: 0 };
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

    #[tokio::test]
    async fn whoever_answers_in_the_name_of_another_process_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(folder.path().join(Role::Operator.socket())).unwrap();
        let host = async {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answers(stream));
            }
        };
        let asked = async {
            assert!(asks(folder.path(), Role::Operator).await.is_ok());
            let other = asks_process(std::process::id() + 1, folder.path(), Role::Operator).await;
            assert!(matches!(&other, Err(AskError::Garbled(why)) if why.contains("that answers there")));
        };
        tokio::select! {
            () = host => {}
            () = asked => {}
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
