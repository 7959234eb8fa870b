//! `wasi:http` to the hosts that a call was granted: Wasmtime's own types, and a way of sending that is estop's.
//!
//! Invariants:
//! - A request that no grant covers leaves nothing: no look-up, no connection, no effect.
//! - Each request has a connection of its own, and no connection outlives its call.
//! - A secret is put into a request when it is sent, and is nowhere else.

mod addresses;
mod body;
mod connections;
mod errors;
mod resolver;
mod send;
mod target;
mod tls;

use std::sync::Arc;

use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, Uri};
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use wasmtime::component::Linker;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

#[cfg(feature = "cli")]
pub(crate) use self::addresses::is_public;
use self::connections::Connections;
use self::resolver::SystemResolver;
pub use self::resolver::{HttpResolver, LOOKUPS_MAX, Resolving};
use self::send::{Driver, Outgoing, headers_bytes};
use self::target::Target;
use crate::call::CallState;
use crate::grants::http::HttpRule;
use crate::sandbox::CallCtx;

/// Parts of a request's body that wait between the guest and the connection.
const BODY_CHUNKS_MAX: usize = 1;
/// The largest of them (bytes). A guest may have as many bodies as it may have resources, and need not send them.
const BODY_CHUNK_BYTES_MAX: usize = 16 << 10;
/// Headers that a guest may put together without a grant (bytes).
const FIELDS_BYTES_MIN: usize = 8 << 10;
/// What headers take in memory, for each byte of them.
const FIELDS_FACTOR: usize = 2;

/// Links the part of `wasi:http` that a guest imports. Without a grant it is empty: every request is refused.
pub(super) fn add_to_linker(linker: &mut Linker<CallCtx>) -> wasmtime::Result<()> {
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    errors::add_to_linker(linker)
}

/// What an embedder gives to all requests of a host.
#[derive(Default)]
pub(crate) struct HttpSetup {
    pub(crate) resolver: Option<Arc<dyn HttpResolver>>,
    /// Certificates in DER that are trusted beside those of the list.
    pub(crate) roots: Vec<Vec<u8>>,
}

/// What all calls of a host share.
pub(crate) struct HttpClient {
    resolver: Arc<dyn HttpResolver>,
    tls: TlsConnector,
    /// Connections at one time.
    sockets: Arc<Semaphore>,
}

/// Connections of one host at one time: others of its process need descriptors as well.
const SOCKETS_MAX: usize = 256;

impl HttpClient {
    pub(crate) fn new(setup: HttpSetup) -> Result<Self, rustls::Error> {
        let resolver = setup.resolver.unwrap_or_else(|| Arc::new(SystemResolver::new()));
        Ok(Self { resolver, tls: tls::connector(setup.roots)?, sockets: Arc::new(Semaphore::new(SOCKETS_MAX)) })
    }
}

/// The requests of one call.
pub(crate) struct Http {
    ctx: WasiHttpCtx,
    hooks: Hooks,
}

struct Hooks {
    client: Arc<HttpClient>,
    call: Arc<CallState>,
    effects_max: usize,
    granted: Vec<Granted>,
    connections: Arc<Connections>,
}

struct Granted {
    rule: Arc<HttpRule>,
    requests_left: usize,
    /// For requests at one time.
    places: Arc<Semaphore>,
}

impl Http {
    /// Lets the guest make the requests that these rules cover, and no others.
    pub(crate) fn new(
        client: &Arc<HttpClient>,
        call: &Arc<CallState>,
        effects_max: usize,
        rules: &[Arc<HttpRule>],
    ) -> Self {
        let (client, call) = (Arc::clone(client), Arc::clone(call));
        let headers = rules.iter().map(|rule| rule.limits.header_bytes_max.saturating_mul(FIELDS_FACTOR));
        let mut ctx = WasiHttpCtx::new();
        ctx.set_field_size_limit(headers.fold(FIELDS_BYTES_MIN, usize::max));
        let granted = rules.iter().map(|rule| Granted {
            requests_left: rule.limits.requests_max,
            places: Arc::new(Semaphore::new(rule.limits.live_max.min(Semaphore::MAX_PERMITS))),
            rule: Arc::clone(rule),
        });
        let granted = granted.collect();
        Self { ctx, hooks: Hooks { client, call, effects_max, granted, connections: Arc::default() } }
    }

    /// Ends every request, at once and for good: connections are closed, and what was not answered is left `unknown`.
    pub(crate) fn close(&mut self) {
        self.hooks.granted.clear();
        self.hooks.connections.close();
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.close();
    }
}

impl WasiHttpView for CallCtx {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.http.hooks, table: &mut self.table, ctx: &mut self.http.ctx }
    }
}

type Sending = Box<dyn Future<Output = Result<(Response<WasiBody>, Driver), Error>> + Send>;

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        mut request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Sending {
        match self.granted(&mut request, options.unwrap_or_default()) {
            Ok(outgoing) => Box::new(outgoing.send(request)),
            Err(error) => Box::new(std::future::ready(Err(error))),
        }
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        BODY_CHUNKS_MAX
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES_MAX
    }
}

impl Hooks {
    /// How this request is sent, if it may be; and the request is made ready for that.
    fn granted(&mut self, request: &mut Request<WasiBody>, options: RequestOptions) -> Result<Outgoing, Error> {
        let target = Target::of(request.uri())?;
        let covers = |granted: &&mut Granted| {
            target.is_covered_by(&granted.rule) && granted.rule.methods.contains(request.method())
        };
        let granted = self.granted.iter_mut().find(covers).ok_or(Error::HttpRequestDenied)?;
        let rule = Arc::clone(&granted.rule);
        let limits = &rule.limits;

        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let head_bytes = path.len() + headers_bytes(request.headers());
        if head_bytes > limits.header_bytes_max {
            return Err(Error::HttpRequestHeaderSectionSize(u32::try_from(head_bytes).ok()));
        }
        let length =
            request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: u64| length > limits.request_bytes_max) {
            return Err(Error::HttpRequestBodySize(Some(limits.request_bytes_max)));
        }
        if self.call.live.account.as_ref().is_some_and(|account| !account.use_request()) {
            return Err(Error::HttpRequestDenied);
        }
        granted.requests_left = granted.requests_left.checked_sub(1).ok_or(Error::HttpRequestDenied)?;

        // A server is asked for a path, not for a whole address, and is told its name as it was checked.
        *request.uri_mut() = Uri::try_from(path).map_err(|_| Error::HttpRequestUriInvalid)?;
        let host = HeaderValue::try_from(target.authority()).map_err(|_| Error::HttpRequestUriInvalid)?;
        request.headers_mut().insert(header::HOST, host);
        for (name, value) in &rule.secrets {
            request.headers_mut().insert(name, value.clone());
        }
        let within = |asked: Option<_>, most| asked.map_or(most, |asked| std::cmp::min(asked, most));
        Ok(Outgoing {
            connect_within: within(options.connect_timeout, limits.connect_within),
            first_byte_within: within(options.first_byte_timeout, limits.first_byte_within),
            between_bytes_within: within(options.between_bytes_timeout, limits.between_bytes_within),
            target,
            places: Arc::clone(&granted.places),
            client: Arc::clone(&self.client),
            call: Arc::clone(&self.call),
            connections: Arc::clone(&self.connections),
            effects_max: self.effects_max,
            rule: Arc::clone(&rule),
        })
    }
}
