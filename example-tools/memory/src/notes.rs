//! The notes themselves.
//!
//! | bucket | key | value |
//! | --- | --- | --- |
//! | `memory` | `given` | `12`, how many ids were given out |
//! | `notes` | `n12` | `{"text":"…","tags":["ops"],"revision":1}` |
//!
//! Invariant: an id is given out once. `given` never gets smaller, also when notes are forgotten.

use std::fmt::{self, Display, Formatter};

use estop_tool::ToolError;
use estop_tool::kv::{self, Bucket};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest tag, in bytes.
const MAX_TAG_BYTES: usize = 64;

const GIVEN: &str = "given";

/// What a note is called: `n1`, `n2`, … in the order in which they were first written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NoteId(u64);

impl NoteId {
    /// `None` if no note was ever called so.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let id = Self(text.strip_prefix('n')?.parse().ok()?);
        // `n+1` and `n01` are numbers as well, and no ids.
        (id.to_string() == text).then_some(id)
    }

    /// The id that is a key of `bucket`.
    pub(crate) fn of_key(bucket: &str, key: &str) -> Result<Self, ToolError> {
        Self::parse(key).ok_or_else(|| {
            let message = format!("the bucket `{bucket}` has the key {key:?}, which is no note's id; remove it");
            ToolError::failed("damaged", message)
        })
    }
}

impl Display for NoteId {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// A topic, in up to 64 bytes. Case does not matter: it is kept in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

impl Tag {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Tag {
    type Error = String;

    fn try_from(tag: String) -> Result<Self, String> {
        let tag = tag.trim().to_lowercase();
        if tag.is_empty() || tag.len() > MAX_TAG_BYTES {
            return Err(format!("a tag of {} bytes; it can have from 1 to {MAX_TAG_BYTES}", tag.len()));
        }
        Ok(Self(tag))
    }
}

impl From<Tag> for String {
    fn from(tag: Tag) -> Self {
        tag.0
    }
}

/// A note as it is stored.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Stored {
    pub(crate) text: String,
    pub(crate) tags: Vec<Tag>,
    pub(crate) revision: u64,
}

/// The buckets of the notes.
pub(crate) struct Notes {
    memory: Bucket,
    notes: Bucket,
}

impl Notes {
    pub(crate) fn open() -> Result<Self, ToolError> {
        Ok(Self { memory: kv::open("memory")?, notes: kv::open("notes")? })
    }

    /// How many ids were given out.
    pub(crate) fn given(&self) -> Result<u64, ToolError> {
        Ok(self.memory.get(GIVEN)?.unwrap_or(0))
    }

    pub(crate) fn new_id(&self) -> Result<NoteId, ToolError> {
        let id = NoteId(self.given()? + 1);
        self.memory.set(GIVEN, &id.0)?;
        Ok(id)
    }

    /// The note that a caller means by `id`.
    pub(crate) fn find(&self, id: &str) -> Result<(NoteId, Stored), ToolError> {
        let found = match NoteId::parse(id) {
            Some(id) => self.notes.get(&id.to_string())?.map(|stored| (id, stored)),
            None => None,
        };
        found.ok_or_else(|| {
            let message = format!("there is no note {id:?}; `recall` and `list` tell the ids, and new notes need none");
            ToolError::failed("not-found", message)
        })
    }

    pub(crate) fn put(&self, id: NoteId, note: &Stored) -> Result<(), ToolError> {
        self.notes.set(&id.to_string(), note)
    }

    pub(crate) fn delete(&self, id: NoteId) -> Result<(), ToolError> {
        self.notes.delete(&id.to_string())
    }

    /// Of all notes, in the store's order.
    pub(crate) fn ids(&self) -> Result<Vec<NoteId>, ToolError> {
        self.notes.keys().map(|key| NoteId::of_key("notes", &key?)).collect()
    }

    /// One of them is missing if it was removed while this call looked elsewhere. The answer then never
    /// leaves: the commit at the end is a conflict.
    pub(crate) fn get_many(&self, ids: &[NoteId]) -> Result<Vec<Option<Stored>>, ToolError> {
        let keys: Vec<String> = ids.iter().map(NoteId::to_string).collect();
        self.notes.get_many(&keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_in_one_way() {
        assert_eq!(NoteId::parse("n12").map(|id| id.to_string()), Some("n12".to_owned()));
        for no_id in ["", "n", "12", "n012", "n+1", "n-1", "n 1", "N1", "n99999999999999999999"] {
            assert_eq!(NoteId::parse(no_id), None, "{no_id}");
        }
    }

    #[test]
    fn a_tag_is_lower_case_and_bounded() {
        let tag = |text: &str| Tag::try_from(text.to_owned());
        assert_eq!(tag(" Größe/ÄÖ ").unwrap().as_str(), "größe/äö");
        assert_eq!(tag("  ").unwrap_err(), "a tag of 0 bytes; it can have from 1 to 64");
        assert!(tag(&"x".repeat(64)).is_ok() && tag(&"x".repeat(65)).is_err());
    }
}
