//! Addresses of the web, as far as a client needs them: to ask a server, and to go where it sends one.
//!
//! Invariant: what is not an `http` or `https` URL with a host is an error here, and not something that a server gets to
//! see.

use std::fmt::{self, Display, Formatter};

/// A URL of a server, without its fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) is_tls: bool,
    /// Host and port.
    pub(crate) authority: String,
    /// Begins with `/`; the query is part of it.
    pub(crate) path: String,
}

impl Url {
    /// Reads it as it is written. The error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or("it does not begin with `https://` or `http://`")?;
        let is_tls = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(format!("the scheme is `https` or `http`, not `{scheme}`")),
        };
        let rest = without_fragment(rest);
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.is_empty() {
            return Err("it has no host".to_owned());
        }
        if authority.contains('@') {
            return Err("it has a user in it; put that into a header".to_owned());
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Self { is_tls, authority: authority.to_ascii_lowercase(), path }.checked()
    }

    /// Where a link on this page leads (RFC 3986, 5.2).
    pub(crate) fn join(&self, link: &str) -> Result<Self, String> {
        let link = without_fragment(link.trim());
        if has_scheme(link) {
            return Self::parse(link);
        }
        if let Some(rest) = link.strip_prefix("//") {
            return Self::parse(&format!("{}://{rest}", self.scheme()));
        }
        let own = self.path.split('?').next().unwrap_or_default();
        let path = if link.is_empty() {
            self.path.clone()
        } else if link.starts_with('/') {
            without_dots(link)
        } else if link.starts_with('?') {
            format!("{own}{link}")
        } else {
            let folder = own.rfind('/').map_or("/", |end| &own[..=end]);
            without_dots(&format!("{folder}{link}"))
        };
        Self { path, ..self.clone() }.checked()
    }

    /// Whether it is the same server.
    pub(crate) fn has_origin_of(&self, other: &Self) -> bool {
        self.is_tls == other.is_tls && self.authority == other.authority
    }

    fn scheme(&self) -> &'static str {
        if self.is_tls { "https" } else { "http" }
    }

    /// What is not plain ASCII is escaped in the path; in a host it would need the tables of Unicode.
    fn checked(mut self) -> Result<Self, String> {
        if !self.authority.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("its host has other characters than ASCII: write it as `xn--…`".to_owned());
        }
        if !self.path.bytes().all(is_plain) {
            let escaped = self.path.bytes().map(|byte| match byte {
                byte if is_plain(byte) => char::from(byte).to_string(),
                byte => format!("%{byte:02X}"),
            });
            self.path = escaped.collect();
        }
        Ok(self)
    }
}

impl Display for Url {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme(), self.authority, self.path)
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte)
}

fn without_fragment(text: &str) -> &str {
    text.split('#').next().unwrap_or_default()
}

fn has_scheme(link: &str) -> bool {
    let scheme = link.split_once(':').map_or("", |(scheme, _)| scheme);
    scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// `path`: begins with `/`, and may have a query.
fn without_dots(path: &str) -> String {
    let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
    let mut kept: Vec<&str> = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let is_last = parts.peek().is_none();
        match part {
            "." | ".." => {
                if part == ".." {
                    kept.pop();
                }
                if is_last {
                    kept.push("");
                }
            }
            part => kept.push(part),
        }
    }
    format!("/{}{query}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> String {
        Url::parse(text).map_or_else(|why| format!("! {why}"), |url| url.to_string())
    }

    #[test]
    fn a_url_is_read_as_it_is_written() {
        for (text, expected) in [
            ("https://example.com", "https://example.com/"),
            ("HTTP://Example.com:8080/a/b?c=d#e", "http://example.com:8080/a/b?c=d"),
            ("https://example.com?a", "https://example.com/?a"),
            ("https://example.com/ä b", "https://example.com/%C3%A4%20b"),
            ("https://[::1]:1/", "https://[::1]:1/"),
        ] {
            assert_eq!(parsed(text), expected);
        }
        for text in ["", "example.com", "ftp://a/", "https://", "https:///a", "https://u@a/", "https://ä/", "mailto:a"]
        {
            assert!(parsed(text).starts_with('!'), "{text}: {}", parsed(text));
        }
    }

    #[test]
    fn a_link_leads_from_its_page() {
        let page = Url::parse("https://a.b/c/d?e").unwrap();
        for (link, expected) in [
            ("http://x/y", "http://x/y"),
            ("//x/y", "https://x/y"),
            ("/y", "https://a.b/y"),
            ("y?z", "https://a.b/c/y?z"),
            ("?z", "https://a.b/c/d?z"),
            ("", "https://a.b/c/d?e"),
            ("#f", "https://a.b/c/d?e"),
            ("../../../y", "https://a.b/y"),
            ("./y/../z/.", "https://a.b/c/z/"),
            ("y:z/..", "! it does not begin"),
            ("./y:z", "https://a.b/c/y:z"),
            ("?a/../b", "https://a.b/c/d?a/../b"),
        ] {
            let led = page.join(link).map_or_else(|why| format!("! {why}"), |url| url.to_string());
            assert!(led.starts_with(expected) && (led == expected || expected.starts_with('!')), "{link}: {led}");
        }
    }
}
