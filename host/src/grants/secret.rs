//! What a guest may use without seeing it.
//!
//! Invariant: a secret's value is in no text that this type makes of itself; whoever needs the value asks for it by a
//! function of that name.

use std::fmt;

/// A value with a name. Only the name is ever shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    name: String,
    value: String,
}

impl Secret {
    /// A secret that is called `name` wherever it has to be spoken of.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into() }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Not to be shown to anybody.
    pub(crate) fn value(&self) -> &str {
        &self.value
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{}}}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_is_shown() {
        let secret = Secret::new("TOKEN", "s3cr3t");
        assert_eq!(format!("{secret} {secret:?}"), "{TOKEN} {TOKEN}");
    }
}
