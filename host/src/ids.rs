//! What things are called in the log, in JSON and on the command line: a word, a dash and a ULID.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use ulid::Ulid;

/// A text is no id of this kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id of this kind is written `{prefix}` and 26 letters and digits")]
pub struct IdError {
    prefix: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Ulid);

        impl $name {
            pub(crate) fn generate() -> Self {
                Self(Ulid::generate())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let ulid = text.strip_prefix($prefix).and_then(|ulid| Ulid::from_string(ulid).ok());
                ulid.map(Self).ok_or(IdError { prefix: $prefix })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id! {
    /// A call's id, written `call-` and a ULID.
    CallId, "call-"
}
id! {
    /// A host's id, written `host-` and a ULID.
    HostId, "host-"
}
id! {
    /// The id of a home, written `home-` and a ULID: what signatures over its log are about.
    HomeId, "home-"
}
id! {
    /// The id of a halt, written `halt-` and a ULID.
    HaltId, "halt-"
}
id! {
    /// The id of one interrupt, written `interrupt-` and a ULID: what the ends of the calls that it stopped refer to.
    InterruptId, "interrupt-"
}

impl HaltId {
    /// The same for whoever derives it from the same time and hash.
    pub(crate) fn derived(at: SystemTime, hash: [u8; 32]) -> Self {
        let at_ms = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let mut random = [0; 16];
        random.copy_from_slice(&hash[..16]);
        Self(Ulid::from_parts(u64::try_from(at_ms).unwrap_or(u64::MAX), u128::from_le_bytes(random)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written_and_nothing_else_is() {
        let id = CallId::generate();
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["", "call-", "call-1", "host-01ARZ3NDEKTSV4RRFFQ69G5FAV", "01ARZ3NDEKTSV4RRFFQ69G5FAV"] {
            assert!(text.parse::<CallId>().is_err(), "{text}");
        }
    }
}
