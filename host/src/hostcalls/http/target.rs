//! Where a request goes, read in one way only.
//!
//! Invariant: what is compared with the grants, what is looked up, what TLS checks and what the server reads in the header
//! `host` is the same text.

use std::fmt;
use std::net::IpAddr;

use hyper::Uri;
use wasmtime_wasi_http::Error;

use crate::grants::http::{HttpRule, default_port, is_name};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    /// In small letters.
    Name(String),
    Address(IpAddr),
}

/// The server that a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) is_tls: bool,
    pub(super) host: Host,
    pub(super) port: u16,
}

impl Target {
    /// Where this leads, if it is written as it should be.
    pub(super) fn of(uri: &Uri) -> Result<Self, Error> {
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(Error::HttpProtocolError),
        };
        let authority =
            uri.authority().filter(|all| !all.as_str().contains('@')).ok_or(Error::HttpRequestUriInvalid)?;
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => default_port(is_tls),
            Some(_) => authority.port_u16().filter(|port| *port != 0).ok_or(Error::HttpRequestUriInvalid)?,
            None => return Err(Error::HttpRequestUriInvalid),
        };
        let host = authority.host().to_ascii_lowercase();
        let address = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) => Some(IpAddr::V6(inner.parse().map_err(|_| Error::HttpRequestUriInvalid)?)),
            None => host.parse().ok().map(IpAddr::V4),
        };
        let host = match address {
            Some(address) => Host::Address(address),
            None if is_name(&host) => Host::Name(host),
            None => return Err(Error::HttpRequestUriInvalid),
        };
        Ok(Self { is_tls, host, port })
    }

    /// Whether it is one of those that are granted.
    pub(super) fn is_covered_by(&self, rule: &HttpRule) -> bool {
        let covers = match &self.host {
            Host::Name(name) => rule.host.covers_name(name),
            Host::Address(address) => rule.host.covers_address(*address),
        };
        covers && rule.is_tls == self.is_tls && rule.port == self.port
    }

    /// As TLS wants it.
    pub(super) fn server_name(&self) -> String {
        match &self.host {
            Host::Name(name) => name.clone(),
            Host::Address(address) => address.to_string(),
        }
    }

    /// As it is in the header `host`.
    pub(super) fn authority(&self) -> String {
        let host = match &self.host {
            Host::Address(IpAddr::V6(address)) => format!("[{address}]"),
            _ => self.server_name(),
        };
        if self.port == default_port(self.is_tls) { host } else { format!("{host}:{}", self.port) }
    }
}

/// Without path and query: they may hold what nobody should read.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.is_tls { "https" } else { "http" }, self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(uri: &str) -> String {
        let uri = uri.parse::<Uri>().map_err(|error| error.to_string());
        match uri.map(|uri| Target::of(&uri)) {
            Ok(Ok(target)) => target.to_string(),
            Ok(Err(error)) => format!("! {error}"),
            Err(error) => format!("! {error}"),
        }
    }

    #[test]
    fn a_server_is_written_in_one_way() {
        for (uri, expected) in [
            ("https://Example.com:443/a?b", "https://example.com"),
            ("http://example.com:443", "http://example.com:443"),
            ("https://[0:0::1]:8443/", "https://[::1]:8443"),
            ("http://127.0.0.1", "http://127.0.0.1"),
            ("http://[::ffff:127.0.0.1]/", "http://[::ffff:127.0.0.1]"),
            // A name, whatever the system's resolver makes of it: then that is checked.
            ("http://127.1/", "http://127.1"),
            ("http://0x7f000001/", "http://0x7f000001"),
        ] {
            assert_eq!(target(uri), expected, "{uri}");
        }
        for uri in [
            "https://user@example.com/",
            "https://user:word@example.com/",
            "https://example.com./",
            "https://example.com:0/",
            "https://example.com:/",
            "https://example.com:99999/",
            "ftp://example.com/",
            "/a",
            "https://a..b/",
            "https://[::1%25lo]/",
            "https://[127.0.0.1]/",
            "https://a%62/",
            "https://[::1]x/",
        ] {
            assert!(target(uri).starts_with('!'), "{uri}: {}", target(uri));
        }
    }
}
