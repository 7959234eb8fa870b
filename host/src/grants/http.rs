//! Requests to hosts.
//!
//! Invariant: what is not named here is refused: another scheme, host, port or method, and an address that is not public.

use std::net::IpAddr;
use std::time::Duration;

use hyper::Method;
use hyper::header::{self, HeaderName, HeaderValue};

use super::{GrantError, Secret};

/// Bounds of the requests that one call makes by one grant. More than that is refused, or cut off with an error that says
/// so; a guest can ask for less time, and never for more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// The body of one request (bytes).
    pub request_bytes_max: u64,
    /// The body of one response, as far as the guest reads it (bytes).
    pub response_bytes_max: u64,
    /// The head of one request, and that of one response (bytes). At least 8 KiB of a response's head are read.
    pub header_bytes_max: usize,
    /// Requests of one call.
    pub requests_max: usize,
    /// Requests of one call at one time. More wait for their turn, for as long as a connection may take.
    pub live_max: usize,
    /// For the turn, the look-up, the connection and TLS together.
    pub connect_within: Duration,
    /// From the request's first byte to the head of the response; sending the request's body is part of it.
    pub first_byte_within: Duration,
    /// From one part of the response's body to the next, while the guest waits for it.
    pub between_bytes_within: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            request_bytes_max: 1 << 20,
            response_bytes_max: 16 << 20,
            header_bytes_max: 32 << 10,
            requests_max: 100,
            live_max: 8,
            connect_within: Duration::from_secs(10),
            first_byte_within: Duration::from_secs(30),
            between_bytes_within: Duration::from_secs(10),
        }
    }
}

/// Requests to a host, for a guest that uses `wasi:http`. Each that is sent is an effect of the call: nothing takes it back.
///
/// Redirects are not followed by the host: a guest that follows one makes another request, which has to be granted as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpGrant {
    host: String,
    methods: Vec<String>,
    private_addresses: bool,
    limits: HttpLimits,
    secrets: Vec<SecretHeader>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct SecretHeader {
    name: String,
    template: String,
    secret: Secret,
}

impl HttpGrant {
    /// `GET` and `HEAD` to `[SCHEME://]HOST[:PORT]`. The scheme is `https` if it is not said, the port that of the scheme.
    /// The host is a name, `*.example.com` for all names under one (not itself), an address (IPv6 in brackets), or `*` for
    /// all.
    pub fn new(host: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            methods: vec!["GET".into(), "HEAD".into()],
            private_addresses: false,
            limits: HttpLimits::default(),
            secrets: Vec::new(),
        }
    }

    /// These methods and no others.
    #[must_use]
    pub fn methods<M: Into<String>>(mut self, methods: impl IntoIterator<Item = M>) -> Self {
        self.methods = methods.into_iter().map(Into::into).collect();
        self
    }

    /// Also if the host has addresses of this machine or of a private network. Without it such a host is refused: after the
    /// look-up, because whoever has a name decides what it resolves to.
    #[must_use]
    pub fn private_addresses(mut self, are_granted: bool) -> Self {
        self.private_addresses = are_granted;
        self
    }

    /// How much, and for how long.
    #[must_use]
    pub fn limits(mut self, limits: HttpLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Sends this header with each request, whatever the guest has set for it: `template` with `{NAME}` in it, where the
    /// secret's value is put. The guest does not see it, unless the server tells it.
    #[must_use]
    pub fn secret_header(mut self, name: impl Into<String>, template: impl Into<String>, secret: Secret) -> Self {
        self.secrets.push(SecretHeader { name: name.into(), template: template.into(), secret });
        self
    }

    /// As it is used, if it can be.
    pub(crate) fn open(&self) -> Result<HttpRule, GrantError> {
        self.check().map_err(|why| GrantError::Host { host: self.host.clone(), why })
    }

    fn check(&self) -> Result<HttpRule, String> {
        let (is_tls, rest) = match self.host.split_once("://") {
            None => (true, self.host.as_str()),
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            Some((scheme, _)) => return Err(format!("the scheme is `https` or `http`, not `{scheme}`")),
        };
        let (host, port) = split(rest).ok_or("write it as [https://]HOST[:PORT], without a path")?;
        let port = port.unwrap_or(default_port(is_tls));
        let methods: Vec<Method> = self.methods.iter().map(|name| method(name)).collect::<Result<_, _>>()?;
        if methods.is_empty() {
            return Err("it grants no method".into());
        }
        let secrets = self.secrets.iter().map(SecretHeader::check).collect::<Result<_, _>>()?;
        let (private_addresses, limits) = (self.private_addresses, self.limits.clone());
        Ok(HttpRule { is_tls, host: HostPattern::parse(host)?, port, methods, private_addresses, limits, secrets })
    }
}

/// The port of a scheme.
pub(crate) fn default_port(is_tls: bool) -> u16 {
    if is_tls { 443 } else { 80 }
}

/// Host and port.
fn split(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']')?;
            (address, rest.strip_prefix(':').or_else(|| rest.is_empty().then_some("")))
        }
        None => text.split_once(':').map_or((text, Some("")), |(host, port)| (host, Some(port))),
    };
    match port? {
        "" if text.ends_with(':') => None,
        "" => Some((host, None)),
        port => Some((host, Some(port.parse().ok().filter(|port| *port != 0)?))),
    }
}

fn method(name: &str) -> Result<Method, String> {
    match Method::from_bytes(name.as_bytes()) {
        // It would make the host a way to wherever the server goes.
        Ok(Method::CONNECT) => Err("the method `CONNECT` cannot be granted".into()),
        Ok(method) if !name.bytes().any(|byte| byte.is_ascii_lowercase()) => Ok(method),
        _ => Err(format!("`{name}` is no method: methods are written as `GET`")),
    }
}

impl SecretHeader {
    /// The errors say nothing of the value.
    fn check(&self) -> Result<(HeaderName, HeaderValue), String> {
        let Self { name, template, secret } = self;
        let known = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{name}` is no name of a header"))?;
        let framing = [header::HOST, header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
        if framing.contains(&known) || wasmtime_wasi_http::DEFAULT_FORBIDDEN_HEADERS.contains(&known) {
            return Err(format!("the header `{name}` belongs to the connection: no secret can be put there"));
        }
        let place = secret.to_string();
        if !template.contains(&place) {
            return Err(format!("the header `{name}` has no place for the secret: write `{place}` where it is to be"));
        }
        let mut value = HeaderValue::from_str(&template.replace(&place, secret.value())).map_err(|_| {
            format!("the secret {place} cannot be in a header: it has characters other than visible ASCII")
        })?;
        value.set_sensitive(true);
        Ok((known, value))
    }
}

/// Which hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HostPattern {
    Any,
    Name(String),
    /// Every name that ends with this, which begins with a dot.
    Under(String),
    Address(IpAddr),
}

/// Length of a host's name (bytes): that of the DNS.
const NAME_BYTES_MAX: usize = 253;

/// Whether this can be a host's name, in small letters.
pub(crate) fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.bytes().all(fits)
    };
    text.len() <= NAME_BYTES_MAX && text.split('.').all(is_label)
}

impl HostPattern {
    fn parse(text: &str) -> Result<Self, String> {
        let name = text.to_ascii_lowercase();
        if let Ok(address) = name.parse() {
            return Ok(Self::Address(address));
        }
        match name.strip_prefix('*') {
            Some("") => Ok(Self::Any),
            Some(under) if under.strip_prefix('.').is_some_and(is_name) => Ok(Self::Under(under.to_owned())),
            None if is_name(&name) => Ok(Self::Name(name)),
            _ => Err(format!("`{text}` is no host: write a name, `*.` and a name, an address, or `*`")),
        }
    }

    /// `host`: a name in small letters.
    pub(crate) fn covers_name(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Name(name) => name == host,
            Self::Under(end) => host.len() > end.len() && host.ends_with(end.as_str()),
            Self::Address(_) => false,
        }
    }

    pub(crate) fn covers_address(&self, host: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Address(address) => *address == host,
            Self::Name(_) | Self::Under(_) => false,
        }
    }

    fn in_words(&self) -> String {
        match self {
            Self::Any => "*".into(),
            Self::Name(name) => name.clone(),
            Self::Under(end) => format!("*{end}"),
            Self::Address(IpAddr::V6(address)) => format!("[{address}]"),
            Self::Address(address) => address.to_string(),
        }
    }
}

/// A grant that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpRule {
    pub(crate) is_tls: bool,
    pub(crate) host: HostPattern,
    pub(crate) port: u16,
    pub(crate) methods: Vec<Method>,
    pub(crate) private_addresses: bool,
    pub(crate) limits: HttpLimits,
    /// Header values that are marked as sensitive.
    pub(crate) secrets: Vec<(HeaderName, HeaderValue)>,
}

impl HttpRule {
    /// As operators see it.
    pub(crate) fn in_words(&self) -> String {
        let methods: Vec<&str> = self.methods.iter().map(Method::as_str).collect();
        let (scheme, host) = (if self.is_tls { "https" } else { "http" }, self.host.in_words());
        let port = if self.port == default_port(self.is_tls) { String::new() } else { format!(":{}", self.port) };
        let private = if self.private_addresses { ", also at private addresses" } else { "" };
        let headers: Vec<&str> = self.secrets.iter().map(|(name, _)| name.as_str()).collect();
        let secrets =
            if headers.is_empty() { String::new() } else { format!(", with the secret {}", headers.join(", ")) };
        format!("{} {scheme}://{host}{port}{private}{secrets}", methods.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(grant: &HttpGrant) -> String {
        grant.open().map_or_else(|error| format!("! {error}"), |rule| rule.in_words())
    }

    #[test]
    fn a_host_is_read_as_it_is_written() {
        for (text, expected) in [
            ("example.com", "GET,HEAD https://example.com"),
            ("https://Example.COM:443", "GET,HEAD https://example.com"),
            ("http://example.com", "GET,HEAD http://example.com"),
            ("http://127.0.0.1:8080", "GET,HEAD http://127.0.0.1:8080"),
            ("https://[::1]:8443", "GET,HEAD https://[::1]:8443"),
            ("[::1]", "GET,HEAD https://[::1]"),
            ("*.example.com", "GET,HEAD https://*.example.com"),
            ("*", "GET,HEAD https://*"),
        ] {
            assert_eq!(words(&HttpGrant::new(text)), expected, "{text}");
        }
        for text in [
            "", "ftp://a", "a/b", "a:0", "a:", "a:x", "a b", "a..b", ".a", "a.", "user@a", "*a", "a.*", "[::1",
            "[::1]x", "*.", "https://", "a:1:2", "::1",
        ] {
            assert!(HttpGrant::new(text).open().is_err(), "{text}");
        }
    }

    #[test]
    fn methods_are_those_that_are_named() {
        let of = |methods: &[&str]| words(&HttpGrant::new("a").methods(methods.iter().copied()));
        assert_eq!(of(&["POST", "PROPFIND"]), "POST,PROPFIND https://a");
        for methods in [&[][..], &["CONNECT"], &["get"], &["A B"]] {
            assert!(of(methods).starts_with("! cannot grant requests to `a`"), "{methods:?}: {}", of(methods));
        }
    }

    #[test]
    fn a_pattern_covers_what_it_names() {
        let covers = |pattern: &str, host: &str| HostPattern::parse(pattern).unwrap().covers_name(host);
        assert!(covers("example.com", "example.com") && covers("*", "a") && covers("*.a.b", "x.y.a.b"));
        for (pattern, host) in
            [("example.com", "www.example.com"), ("*.a.b", "a.b"), ("*.a.b", ".a.b"), ("*.a.b", "xa.b"), ("::1", "::1")]
        {
            assert!(!covers(pattern, host), "{pattern} {host}");
        }
        let address =
            |pattern: &str, host: &str| HostPattern::parse(pattern).unwrap().covers_address(host.parse().unwrap());
        assert!(address("127.0.0.1", "127.0.0.1") && address("::1", "0:0::1") && address("*", "1.1.1.1"));
        assert!(!address("127.0.0.1", "::ffff:127.0.0.1") && !address("*.1", "1.1.1.1"));
    }

    #[test]
    fn a_secret_is_in_its_header_and_in_no_words() {
        let of = |name: &str, template: &str, value: &str| {
            HttpGrant::new("a").secret_header(name, template, Secret::new("KEY", value))
        };
        let rule = of("Authorization", "Bearer {KEY}", "s3cr3t").open().unwrap();
        assert_eq!(rule.secrets[0].1, "Bearer s3cr3t");
        assert_eq!(rule.in_words(), "GET,HEAD https://a, with the secret authorization");
        assert!(!format!("{rule:?}{:?}", of("x", "{KEY}", "s3cr3t")).contains("s3cr3t"));
        for (name, template, value, word) in [
            ("host", "{KEY}", "s3cr3t", "belongs to the connection"),
            ("content-length", "{KEY}", "s3cr3t", "belongs to the connection"),
            ("a b", "{KEY}", "s3cr3t", "no name of a header"),
            ("x", "{OTHER}", "s3cr3t", "write `{KEY}`"),
            ("x", "{KEY}", "s3cr3t\n", "other than visible"),
        ] {
            let error = words(&of(name, template, value));
            assert!(error.contains(word) && !error.contains("s3cr3t"), "{error}");
        }
    }
}
