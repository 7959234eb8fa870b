//! Notes that an agent keeps between its calls, and finds again by their words.
//!
//! Invariant: the index says of each note exactly what the note says now. A note, its words and its
//! tags change in one transaction, so a call that is stopped between any two of them leaves none.
//!
//! ```text
//! estop run example-tools/memory remember -i '{"text":"Deploys go through the staging server","tags":["ops"]}'
//! ```
//!
//! # Which calls conflict
//!
//! - Two new notes, because their ids are numbers in order and so come from one counter.
//! - Changes of the same note. Changes of different notes do not conflict: the index is written blindly.
//! - A search, with whatever changes its answer meanwhile: a new note, or one that gets or loses a word
//!   that begins like a word of the query. Of all that it reads the host makes sure that it was so at
//!   one moment, hence no answer mixes the old and the new.

mod index;
mod notes;
mod rank;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeSet;

use estop_tool::ToolError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use notes::{NoteId, Notes, Stored, Tag};

/// The longest text of a note, in bytes. An answer is whole notes, and fifty of these stay below the
/// 2 MiB that a call may answer by default, however they are escaped.
const MAX_TEXT_BYTES: usize = 4096;
/// Number of tags of one note, or of one query.
const MAX_TAGS: usize = 16;
/// The longest query, in bytes.
const MAX_QUERY_BYTES: usize = 4096;
/// Number of different words in one query. Each is a listing, and a word in every note lists them all.
const MAX_QUERY_WORDS: usize = 32;
/// Number of notes in one answer if the caller does not say.
const DEFAULT_LIMIT: usize = 10;
/// Number of notes in one answer at most.
const MAX_LIMIT: usize = 50;

/// A note to be kept.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewNote {
    /// What to remember, in up to 4096 bytes.
    text: String,
    /// Up to 16. If they are left out, a new note has none and an old one keeps its own.
    tags: Option<Vec<Tag>>,
    /// Of the note to replace. Leave it out for a new note, which is given an id.
    id: Option<String>,
}

/// What to look for.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Up to 32 different words. A note need not have all of them.
    query: String,
    /// Only notes that have all of these tags.
    #[serde(default)]
    tags: Vec<Tag>,
    /// Number of notes to answer, from 1 to 50; 10 if it is left out.
    limit: Option<usize>,
}

/// Which notes to list.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// Only notes that have this tag.
    tag: Option<Tag>,
    /// Only notes after the one of this id. For the next page: what `next` was.
    after: Option<String>,
    /// Number of notes to answer, from 1 to 50; 10 if it is left out.
    limit: Option<usize>,
}

/// Which note.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// Of the note, for example `n12`.
    id: String,
}

/// A note.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Note {
    id: String,
    text: String,
    tags: Vec<Tag>,
    /// How often it was written: 1 for a new note.
    revision: u64,
}

impl Note {
    fn of(id: NoteId, stored: Stored) -> Self {
        let Stored { text, tags, revision } = stored;
        Self { id: id.to_string(), text, tags, revision }
    }
}

/// A note that was found.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Match {
    /// How well it fits. To be compared within one answer only.
    score: f64,
    #[serde(flatten)]
    note: Note,
}

/// What a search found.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Recalled {
    /// The best first, with their whole text.
    matches: Vec<Match>,
    /// Number of notes that fit, of which these are the best.
    found: usize,
}

/// One page of notes.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Page {
    /// In the order in which they were first written.
    notes: Vec<Note>,
    /// There are more: repeat the call with this as `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Keep a note, to be found later by `recall`. Answers the note with its id.
///
/// Write one fact to a note, in words that you will search for, and tag it by topic. To correct a note
/// give its `id`: the text is replaced. Fails with `not-found` if there is no note of that id.
#[estop_tool::tool(destructive)]
pub fn remember(input: NewNote) -> Result<Note, ToolError> {
    let text = input.text;
    if text.trim().is_empty() || text.len() > MAX_TEXT_BYTES {
        let bytes = text.len();
        let message = format!("`text` is empty or too long ({bytes} bytes); a note has up to {MAX_TEXT_BYTES} bytes");
        return Err(ToolError::invalid_input(message));
    }
    let tags = input.tags.map(distinct).transpose()?;
    let notes = Notes::open()?;
    let (id, before) = match input.id {
        Some(id) => notes.find(&id).map(|(id, before)| (id, Some(before)))?,
        None => (notes.new_id()?, None),
    };
    let (old_tags, revision) = before.as_ref().map_or((Vec::new(), 0), |note| (note.tags.clone(), note.revision));
    let after = Stored { text, tags: tags.unwrap_or(old_tags), revision: revision + 1 };
    index::replace(id, before.as_ref(), Some(&after))?;
    notes.put(id, &after)?;
    Ok(Note::of(id, after))
}

/// Search the notes by words, the best first.
///
/// Case does not matter. Rare words count more than common ones, words in tags more than words in the
/// text, and words that only begin alike (`deploy`, `deployment`) less. No need for all to match: give
/// every word that may help. Answers whole notes, and none if nothing fits.
#[estop_tool::tool(read_only, idempotent)]
pub fn recall(input: Query) -> Result<Recalled, ToolError> {
    if input.query.len() > MAX_QUERY_BYTES {
        let bytes = input.query.len();
        return Err(ToolError::invalid_input(format!(
            "`query` has {bytes} bytes; up to {MAX_QUERY_BYTES} are allowed"
        )));
    }
    let words: BTreeSet<String> = words::of(&input.query).into_iter().collect();
    if words.is_empty() || words.len() > MAX_QUERY_WORDS {
        let message = format!("`query` has {} different words; give 1 to {MAX_QUERY_WORDS}", words.len());
        return Err(ToolError::invalid_input(message));
    }
    let (tags, limit) = (distinct(input.tags)?, checked(input.limit)?);
    let notes = Notes::open()?;
    let mut hits = rank::rank(&index::look_up(&words)?, notes.given()?);
    for tag in tags {
        let tagged: BTreeSet<NoteId> = index::tagged(&tag)?.into_iter().collect();
        hits.retain(|hit| tagged.contains(&hit.note));
    }
    let found = hits.len();
    hits.truncate(limit);
    let ids: Vec<NoteId> = hits.iter().map(|hit| hit.note).collect();
    let stored = hits.iter().zip(notes.get_many(&ids)?);
    let matches =
        stored.filter_map(|(hit, stored)| Some(Match { score: hit.score, note: Note::of(hit.note, stored?) }));
    Ok(Recalled { matches: matches.collect(), found })
}

/// List the notes in the order in which they were first written, page by page.
#[estop_tool::tool(read_only, idempotent)]
pub fn list(input: Selection) -> Result<Page, ToolError> {
    let limit = checked(input.limit)?;
    let after = input.after.map(|id| {
        NoteId::parse(&id).ok_or_else(|| ToolError::invalid_input(format!("`after` is {id:?}, which is no note's id")))
    });
    let after = after.transpose()?;
    let notes = Notes::open()?;
    let mut ids = match input.tag {
        Some(tag) => index::tagged(&tag)?,
        None => notes.ids()?,
    };
    // The store has them in the order of text, where n10 is before n9.
    ids.sort_unstable();
    ids.retain(|id| after.is_none_or(|after| *id > after));
    let more = ids.len() > limit;
    ids.truncate(limit);
    let next = ids.last().filter(|_| more).map(NoteId::to_string);
    let stored = ids.iter().zip(notes.get_many(&ids)?);
    let notes = stored.filter_map(|(id, stored)| Some(Note::of(*id, stored?)));
    Ok(Page { notes: notes.collect(), next })
}

/// Remove a note for good. Answers the note as it was.
///
/// Fails with `not-found` if there is no note of that id. Ids are never used again.
#[estop_tool::tool(destructive)]
pub fn forget(input: Which) -> Result<Note, ToolError> {
    let notes = Notes::open()?;
    let (id, before) = notes.find(&input.id)?;
    index::replace(id, Some(&before), None)?;
    notes.delete(id)?;
    Ok(Note::of(id, before))
}

fn checked(limit: Option<usize>) -> Result<usize, ToolError> {
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(ToolError::invalid_input(format!("`limit` is {limit}; it can be from 1 to {MAX_LIMIT}")));
    }
    Ok(limit)
}

/// The tags without repetitions, in their order.
fn distinct(tags: Vec<Tag>) -> Result<Vec<Tag>, ToolError> {
    if tags.len() > MAX_TAGS {
        return Err(ToolError::invalid_input(format!("{} `tags`; up to {MAX_TAGS} are allowed", tags.len())));
    }
    let mut seen = BTreeSet::new();
    Ok(tags.into_iter().filter(|tag| seen.insert(tag.clone())).collect())
}

estop_tool::export!(remember, recall, list, forget);
