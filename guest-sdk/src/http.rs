//! Requests to hosts that the tool was granted, by `wasi:http`.
//!
//! ```
//! use estop_tool::testing::{Answered, Run};
//! use estop_tool::{ToolError, http};
//!
//! fn title() -> Result<String, ToolError> {
//!     let page = http::get("https://example.com/")?.successful()?;
//!     Ok(page.text().lines().next().unwrap_or_default().to_owned())
//! }
//!
//! let run = Run::new().answer("GET https://example.com/", Answered::new(200).body("Example\nmore"));
//! assert_eq!(run.call(title).result.unwrap(), "Example");
//! ```
//!
//! Invariant: nothing is asked again of itself. A request that was sent is an effect that no rollback takes back, and a
//! request that failed may have been carried out all the same.
//!
//! # Errors
//!
//! Every function here fails with one of these codes:
//! - `bad-request`: the URL or a header is not a valid one;
//! - `bad-answer`: the answer is not what was asked for;
//! - `denied`: the host or the method is not granted, or there were too many requests;
//! - `private-address`: the host's address is not public, and that is not granted;
//! - `dns`, `connection`, `tls`, `timeout`, `protocol`: what failed on the way;
//! - `too-large`: a request or a response is larger than it may be;
//! - `too-many-redirects`;
//! - `status`: the server's answer says that it failed ([`Response::successful`]).

mod url;

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::ToolError;
use crate::host;
pub(crate) use url::Url;

/// What is read of a response if nothing is said (bytes).
const RESPONSE_BYTES_MAX: u64 = 4 << 20;
/// How many redirects are followed if nothing is said.
const REDIRECTS_MAX: u32 = 5;
/// Headers that are for one server only.
const PRIVATE_HEADERS: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

/// Asks for a page, and follows redirects.
///
/// # Errors
///
/// See the [module](self).
pub fn get(url: &str) -> Result<Response, ToolError> {
    Request::new(Method::Get, url).send()
}

/// What is asked of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are those of HTTP")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Patch,
    Options,
}

impl Method {
    /// As it is sent.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Patch => "PATCH",
            Self::Options => "OPTIONS",
        }
    }

    /// Whether asking changes nothing.
    fn is_safe(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Options)
    }
}

/// A request, to be sent.
#[derive(Clone, Debug)]
#[must_use = "it is not sent yet"]
pub struct Request {
    pub(crate) method: Method,
    url: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    redirects_max: u32,
    pub(crate) response_bytes_max: u64,
    pub(crate) may_be_cut: bool,
    pub(crate) within: Option<Duration>,
}

impl Request {
    /// Follows a few redirects, and reads at most 4 MiB, if nothing else is said.
    pub fn new(method: Method, url: impl Into<String>) -> Self {
        Self {
            method,
            url: url.into(),
            headers: Vec::new(),
            body: Vec::new(),
            redirects_max: REDIRECTS_MAX,
            response_bytes_max: RESPONSE_BYTES_MAX,
            may_be_cut: false,
            within: None,
        }
    }

    /// Sends this header, too.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sends these bytes.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends this as JSON.
    ///
    /// # Errors
    ///
    /// It cannot be written as JSON.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Result<Self, ToolError> {
        let body = serde_json::to_vec(value).map_err(|why| ToolError::failed("bad-request", why.to_string()))?;
        Ok(self.header("content-type", "application/json").body(body))
    }

    /// Goes on to where the server says, at most so many times. Each of these is a request that has to be granted. The
    /// headers `authorization` and `cookie` are not taken along to another server.
    pub fn follow(mut self, redirects_max: u32) -> Self {
        self.redirects_max = redirects_max;
        self
    }

    /// A body that is larger than this is an error.
    pub fn response_bytes_max(mut self, bytes: u64) -> Self {
        (self.response_bytes_max, self.may_be_cut) = (bytes, false);
        self
    }

    /// Reads only so many bytes of the body; [`Response::is_cut`] tells whether there were more.
    pub fn cut_after(mut self, bytes: u64) -> Self {
        (self.response_bytes_max, self.may_be_cut) = (bytes, true);
        self
    }

    /// Gives up if nothing is heard for so long: of the connection, of the head, of the next part of the body. The host has
    /// bounds of its own.
    pub fn within(mut self, time: Duration) -> Self {
        self.within = Some(time);
        self
    }

    /// Sends it, and reads the response.
    ///
    /// # Errors
    ///
    /// See the [module](self). A status such as 404 is none.
    pub fn send(mut self) -> Result<Response, ToolError> {
        let bad = |why| ToolError::failed("bad-request", format!("`{}`: {why}", shown(&self.url)));
        let mut url = Url::parse(&self.url).map_err(bad)?;
        for followed in 0.. {
            let received = host::send(&self, &url).map_err(|problem| failure(self.method, &url, problem))?;
            let response = Response { url: url.to_string(), ..received };
            let Some(next) = redirect(&response) else { return Ok(response) };
            if self.redirects_max == 0 {
                return Ok(response);
            }
            if followed == self.redirects_max {
                let message = format!("more than {followed} redirects; the last one is at {}", shown(&response.url));
                return Err(ToolError::failed("too-many-redirects", message));
            }
            let bad = |why| {
                ToolError::failed("bad-request", format!("{} leads to `{}`: {why}", shown(&response.url), shown(next)))
            };
            let next = url.join(next).map_err(bad)?;
            if !next.has_origin_of(&url) {
                self.headers.retain(|(name, _)| !PRIVATE_HEADERS.contains(&name.to_ascii_lowercase().as_str()));
            }
            self.redirected(response.status);
            url = next;
        }
        unreachable!("the loop ends when there are too many redirects")
    }

    /// As all browsers do: what was not asked to stay as it is becomes a `GET`.
    fn redirected(&mut self, status: u16) {
        let stays = matches!(status, 307 | 308) || self.method.is_safe();
        if !stays && (status == 303 || self.method == Method::Post) {
            self.method = Method::Get;
            self.body.clear();
            self.headers.retain(|(name, _)| !name.to_ascii_lowercase().starts_with("content-"));
        }
    }
}

/// Where the server sends one.
fn redirect(response: &Response) -> Option<&str> {
    matches!(response.status, 301 | 302 | 303 | 307 | 308).then(|| response.header("location")).flatten()
}

/// What a server has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    pub(crate) is_cut: bool,
    pub(crate) url: String,
}

impl Response {
    /// Such as 200 or 404.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Who has answered, after all redirects.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The first header of this name, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        str::from_utf8(&found.1).ok()
    }

    /// All headers, in the order in which the host gives them.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// The body.
    pub fn bytes(&self) -> &[u8] {
        &self.body
    }

    /// The body as text, with a sign in the place of what is not UTF-8.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether there was more of the body than what was asked for by [`Request::cut_after`].
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// The body, if it is JSON of this type.
    ///
    /// # Errors
    ///
    /// It is not (`bad-answer`).
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ToolError> {
        serde_json::from_slice(&self.body).map_err(|why| {
            ToolError::failed("bad-answer", format!("{} did not answer as expected: {why}", shown(&self.url)))
        })
    }

    /// This, unless the server says that it failed.
    ///
    /// # Errors
    ///
    /// The status is 400 or more (`status`).
    pub fn successful(self) -> Result<Self, ToolError> {
        if self.status < 400 {
            return Ok(self);
        }
        let error = ToolError::failed("status", format!("{} answered {}", shown(&self.url), self.status));
        Err(if matches!(self.status, 429 | 500..) { error.retryable() } else { error })
    }
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The host or the method is not granted, or there were too many requests.
    Denied,
    /// The host's address is not public.
    PrivateAddress,
    /// The host's name has no address.
    Dns,
    /// The server cannot be reached, or has gone away.
    Connection,
    /// The server is not who it says, or does not speak TLS.
    Tls,
    /// Something took too long.
    Timeout,
    /// This is larger than it may be.
    TooLarge(&'static str),
    /// It is no HTTP.
    Protocol,
    /// The request cannot be sent.
    BadRequest(String),
}

/// What follows the `?` may be secret, and errors are written down.
fn shown(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

fn failure(method: Method, url: &Url, problem: Problem) -> ToolError {
    let to = format!("{} {}://{}", method.as_str(), if url.is_tls { "https" } else { "http" }, url.authority);
    let failed = |code: &str, why: &str| ToolError::failed(code, format!("{to}: {why}"));
    let passes = |error: ToolError| if method.is_safe() { error.retryable() } else { error };
    match problem {
        Problem::Denied => failed("denied", "this host or this method is not granted, or it was asked too often"),
        Problem::PrivateAddress => failed("private-address", "the host has a private address, and that is not granted"),
        Problem::Dns => passes(failed("dns", "the name of the host could not be resolved")),
        Problem::Connection => {
            passes(failed("connection", "the server cannot be reached, or has closed the connection"))
        }
        Problem::Tls => failed("tls", "there is no connection that could be trusted"),
        Problem::Timeout => passes(failed("timeout", "the server took too long")),
        Problem::TooLarge(what) => failed("too-large", &format!("{what} is too large")),
        Problem::Protocol => failed("protocol", "the server does not speak HTTP as it should"),
        Problem::BadRequest(why) => failed("bad-request", &why),
    }
}
