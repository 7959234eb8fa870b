//! What stands in the brackets of `#[tool(…)]`.

use proc_macro2::Span;
use syn::parse::{Parse, ParseStream};
use syn::{Error, Ident, LitStr, Result, Token};

/// The longest name and version, in bytes.
const MAX_NAME_BYTES: usize = 64;

const HINTS: [&str; 4] = ["read_only", "destructive", "idempotent", "open_world"];
const EXPECTED: &str = "`read_only`, `destructive`, `idempotent`, `open_world`, `name = \"…\"` or `version = \"…\"`";

#[derive(Default)]
pub(crate) struct Options {
    pub(crate) name: Option<String>,
    pub(crate) version: Option<String>,
    seen: Vec<Ident>,
}

impl Options {
    pub(crate) fn has(&self, hint: &str) -> bool {
        self.seen.iter().any(|seen| seen == hint)
    }
}

impl Parse for Options {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut options = Self::default();
        while !input.is_empty() {
            let option: Ident = input.parse()?;
            options.add(&option, input)?;
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(options)
    }
}

impl Options {
    fn add(&mut self, option: &Ident, input: ParseStream<'_>) -> Result<()> {
        if self.has(&option.to_string()) {
            return Err(Error::new(option.span(), format!("`{option}` is already said")));
        }
        match option.to_string().as_str() {
            "name" => self.name = Some(value(option, input, checked_name)?),
            "version" => self.version = Some(value(option, input, checked_version)?),
            hint if HINTS.contains(&hint) => {
                if input.peek(Token![=]) {
                    return Err(input.error(format!("`{hint}` takes no value")));
                }
                let contradiction = match hint {
                    "read_only" => self.has("destructive"),
                    "destructive" => self.has("read_only"),
                    _ => false,
                };
                if contradiction {
                    let message = "a tool that is `read_only` cannot be `destructive`";
                    return Err(Error::new(option.span(), message));
                }
            }
            unknown => {
                let message = format!("unknown option `{unknown}`, expected {EXPECTED}");
                return Err(Error::new(option.span(), message));
            }
        }
        self.seen.push(option.clone());
        Ok(())
    }
}

/// Parses `= "…"` and checks what is between the quotes.
fn value(option: &Ident, input: ParseStream<'_>, checked: fn(String, Span) -> Result<String>) -> Result<String> {
    let example = format!("expected `{option} = \"…\"`");
    if !input.peek(Token![=]) {
        return Err(Error::new(option.span(), example));
    }
    input.parse::<Token![=]>()?;
    let literal: LitStr = input.parse().map_err(|error| Error::new(error.span(), example))?;
    checked(literal.value(), literal.span())
}

/// A name as the contract allows it.
pub(crate) fn checked_name(name: String, span: Span) -> Result<String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.is_empty() || !name.bytes().all(is_allowed) {
        return Err(Error::new(span, "a tool's name consists of `a-z`, `A-Z`, `0-9`, `_` and `-`"));
    }
    if name.len() > MAX_NAME_BYTES {
        let message = format!("a tool's name has at most {MAX_NAME_BYTES} bytes");
        return Err(Error::new(span, message));
    }
    Ok(name)
}

fn checked_version(version: String, span: Span) -> Result<String> {
    let is_allowed = version.bytes().all(|byte| byte.is_ascii_graphic());
    if version.is_empty() || version.len() > MAX_NAME_BYTES || !is_allowed {
        let message = format!("a version has 1 to {MAX_NAME_BYTES} printable ASCII characters");
        return Err(Error::new(span, message));
    }
    Ok(version)
}
