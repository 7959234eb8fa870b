//! One request, from the look-up to the head of its response.
//!
//! Invariants:
//! - Every address that a name has is checked before anything is connected, and only a checked address is connected to.
//! - A request is an effect of its call before its first byte is sent.
//! - Every step has a bound in time, and dropping the future is the end of it.

use std::error::Error as _;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::FusedFuture;
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper::header::HeaderMap;
use hyper::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, WasiBody};

use super::addresses::is_public;
use super::body::{RequestBody, ResponseBody};
use super::connections::{Connections, Socket, Stream};
use super::target::{Host, Target};
use super::{HttpClient, tls};
use crate::call::CallState;
use crate::call::live::HostCall;
use crate::grants::http::HttpRule;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;
/// The least that hyper reads of a head (bytes).
const READ_BYTES_MIN: usize = 8 << 10;

/// What goes on with a connection after the head has come.
pub(super) type Driver = Box<dyn Future<Output = Result<(), Error>> + Send>;

/// A request that was granted.
pub(super) struct Outgoing {
    pub(super) target: Target,
    pub(super) rule: Arc<HttpRule>,
    pub(super) places: Arc<Semaphore>,
    pub(super) client: Arc<HttpClient>,
    pub(super) call: Arc<CallState>,
    pub(super) connections: Arc<Connections>,
    pub(super) effects_max: usize,
    pub(super) connect_within: Duration,
    pub(super) first_byte_within: Duration,
    pub(super) between_bytes_within: Duration,
}

impl Outgoing {
    pub(super) async fn send(self, request: Request<WasiBody>) -> Result<(Response<WasiBody>, Driver), Error> {
        let _in = self.call.live.enter(HostCall::Http);
        let until = Instant::now() + self.connect_within;
        let turn = timeout_at(until, Arc::clone(&self.places).acquire_owned()).await;
        let Ok(Ok(place)) = turn else { return Err(Error::ConnectionLimitReached) };
        let addresses = timeout_at(until, self.addresses()).await.map_err(|_| Error::DnsTimeout)??;
        let socket = self.connect(&addresses, until).await?;
        socket.keep(place);
        let stream = Stream(Arc::clone(&socket));
        if self.target.is_tls {
            let name = self.target.server_name();
            let shaken = tls::connect(&self.client.tls, &name, stream);
            let stream = timeout_at(until, shaken).await.map_err(|_| Error::ConnectionTimeout)??;
            self.exchange(request, stream, socket).await
        } else {
            self.exchange(request, stream, socket).await
        }
    }

    /// All that the host has, checked.
    async fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let found = match &self.target.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => self.client.resolver.resolve(name).await.map_err(|_| Error::DnsError {
                rcode: Some("the name could not be resolved".into()),
                info_code: None,
            })?,
        };
        if found.is_empty() {
            return Err(Error::DestinationNotFound);
        }
        // One that is not public among others is no accident either.
        if !self.rule.private_addresses && !found.iter().all(|address| is_public(*address)) {
            return Err(Error::DestinationIpProhibited);
        }
        Ok(found)
    }

    /// To the first address that answers.
    async fn connect(&self, addresses: &[IpAddr], until: Instant) -> Result<Arc<Socket>, Error> {
        let mut failed = Error::DestinationUnavailable;
        let count = addresses.len().min(ADDRESSES_MAX);
        for (tried, address) in addresses.iter().take(count).enumerate() {
            let left = until.saturating_duration_since(Instant::now());
            // One that is silent leaves time for the others.
            let share = left / (count - tried) as u32;
            let to = SocketAddr::new(*address, self.target.port);
            let connected = async {
                // Closed by nobody while the host lives.
                let open = Arc::clone(&self.client.sockets).acquire_owned().await.map_err(io::Error::other)?;
                let socket = self.connections.begin(to, open)?;
                socket.connected().await?;
                io::Result::Ok(socket)
            };
            match timeout(share, connected).await {
                Ok(Ok(socket)) => return Ok(socket),
                Ok(Err(error)) => failed = unreachable(&error),
                Err(_) => failed = Error::ConnectionTimeout,
            }
        }
        Err(failed)
    }

    /// Sends it, and waits for the head of the response.
    async fn exchange(
        self,
        request: Request<WasiBody>,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        socket: Arc<Socket>,
    ) -> Result<(Response<WasiBody>, Driver), Error> {
        let limits = &self.rule.limits;
        let mut http = http1::Builder::new();
        http.max_buf_size(limits.header_bytes_max.max(READ_BYTES_MIN));
        let (mut sender, connection) = http.handshake(TokioIo::new(stream)).await.map_err(|error| told(&error))?;
        let is_too_large = Arc::new(AtomicBool::new(false));
        let request = request.map(|body| RequestBody {
            body,
            left_bytes: limits.request_bytes_max,
            live: Arc::clone(&self.call.live),
            is_too_large: Arc::clone(&is_too_large),
        });
        let (name, mut effect) = (format!("{} {}", request.method(), self.target), None);
        self.connections.unless_closed(|| effect = self.call.add_effect(&name, self.effects_max));
        let performed = effect.ok_or(Error::HttpRequestDenied)?;

        let mut connection = Box::pin(connection.fuse());
        let answered = async {
            let mut sent = std::pin::pin!(sender.send_request(request));
            tokio::select! {
                biased;
                response = &mut sent => response,
                ended = &mut connection => match ended {
                    Ok(()) => sent.await,
                    Err(error) => Err(error),
                }
            }
        };
        let answered = timeout(self.first_byte_within, answered).await.map_err(|_| Error::HttpResponseTimeout)?;
        let response = answered.map_err(|error| match is_too_large.load(Ordering::Acquire) {
            true => Error::HttpRequestBodySize(Some(limits.request_bytes_max)),
            false => told(&error),
        })?;
        self.connections.unless_closed(|| performed.store(true, Ordering::Release));
        let head_bytes = headers_bytes(response.headers());
        if head_bytes > limits.header_bytes_max {
            return Err(Error::HttpResponseHeaderSectionSize(u32::try_from(head_bytes).ok()));
        }
        let response = response.map(|body| {
            let (bytes_max, within) = (limits.response_bytes_max, self.between_bytes_within);
            ResponseBody::new(body, socket, bytes_max, within, Arc::clone(&self.call.live)).boxed_unsync()
        });
        let driver = async move {
            if !connection.is_terminated() {
                // Whoever reads the body is told by the body.
                let _ = connection.await;
            }
            Ok(())
        };
        Ok((response, Box::new(driver)))
    }
}

/// Names and values, with what stands between them (bytes).
pub(super) fn headers_bytes(headers: &HeaderMap) -> usize {
    const BETWEEN_BYTES: usize = ": \r\n".len();
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + BETWEEN_BYTES).sum()
}

/// What a guest is told of a connection that was not made.
fn unreachable(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Error::ConnectionRefused,
        io::ErrorKind::TimedOut => Error::ConnectionTimeout,
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => Error::DestinationIpUnroutable,
        _ => Error::DestinationUnavailable,
    }
}

/// What a guest is told of a connection that failed.
pub(super) fn told(error: &hyper::Error) -> Error {
    if error.is_parse_too_large() {
        return Error::HttpResponseHeaderSectionSize(None);
    }
    if error.is_parse() {
        return Error::HttpProtocolError;
    }
    if error.is_incomplete_message() {
        return Error::HttpResponseIncomplete;
    }
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    source.and_then(tls::told).unwrap_or(Error::ConnectionTerminated)
}
