//! Which notes have a word or a tag.
//!
//! | bucket | key | value |
//! | --- | --- | --- |
//! | `words/dep` | `deploy n12 2 31`: the word, the note, how often, words in the note | `null` |
//! | `tags/ops` | `n12` | `null` |
//!
//! Invariant: the index is changed by blind writes of keys that belong to one note. A list of notes
//! under each word would make all notes conflict that have a common word; here no two notes write the
//! same key, and none is read in order to write. What a search wants to know stands in the key, so it
//! lists and reads nothing else.
//!
//! A listing is of a whole bucket, hence a bucket for each way in which a word can begin: small enough
//! to be listed for one word, and large enough to hold the words that are alike. Five thousand notes
//! that all have the same word are as many keys, listed in a few milliseconds. A host allows 100 000
//! keys in one call by default; a search that would list more, such as one for ten words that ten
//! thousand notes have all of, fails and says which word was one too many.

use std::collections::{BTreeMap, BTreeSet};

use estop_tool::{ToolError, checkpoint, kv};

use crate::notes::{NoteId, Stored, Tag};
use crate::words;

/// A word in a tag counts as often as so many in the text.
const TAG_WORD_COUNT: usize = 3;
/// Number of keys listed between two looks whether the call is to stop.
const KEYS_PER_CHECKPOINT: usize = 1000;

/// That a note has a word.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Posting {
    pub(crate) word: String,
    pub(crate) note: NoteId,
    /// How often, where tags count more.
    pub(crate) count: usize,
    /// Number of words in the note's text.
    pub(crate) length: usize,
}

impl Posting {
    fn key(&self) -> String {
        let Self { word, note, count, length } = self;
        format!("{word} {note} {count} {length}")
    }

    fn parse(key: &str) -> Option<Self> {
        let mut parts = key.split(' ');
        let posting = Self {
            word: parts.next()?.to_owned(),
            note: NoteId::parse(parts.next()?)?,
            count: parts.next()?.parse().ok()?,
            length: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(posting)
    }
}

/// What was found for one word of a query.
pub(crate) struct Found {
    pub(crate) posting: Posting,
    /// How like the word is to the wanted one, above 0 and up to 1.
    pub(crate) likeness: f64,
}

/// Makes the index say of the note `id` what `after` says, where it says what `before` says.
pub(crate) fn replace(id: NoteId, before: Option<&Stored>, after: Option<&Stored>) -> Result<(), ToolError> {
    let before = before.map_or_else(BTreeMap::new, |note| entries(id, note));
    let mut after = after.map_or_else(BTreeMap::new, |note| entries(id, note));
    for (bucket, old) in &before {
        checkpoint()?;
        let new = after.remove(bucket).unwrap_or_default();
        write(bucket, old.difference(&new), new.difference(old))?;
    }
    for (bucket, new) in &after {
        checkpoint()?;
        write(bucket, [].iter(), new.iter())?;
    }
    Ok(())
}

fn write<'a>(
    bucket: &str,
    gone: impl Iterator<Item = &'a String>,
    new: impl Iterator<Item = &'a String>,
) -> Result<(), ToolError> {
    let bucket = kv::open(bucket)?;
    bucket.delete_many(&gone.collect::<Vec<_>>())?;
    bucket.set_many(new.map(|key| (key.as_str(), &())))
}

/// All keys that the index has for a note, by bucket.
fn entries(id: NoteId, note: &Stored) -> BTreeMap<String, BTreeSet<String>> {
    let in_text = words::of(&note.text);
    let length = in_text.len();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for word in in_text {
        *counts.entry(word).or_default() += 1;
    }
    for word in note.tags.iter().flat_map(|tag| words::of(tag.as_str())) {
        *counts.entry(word).or_default() += TAG_WORD_COUNT;
    }
    let mut entries: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (word, count) in counts {
        let key = Posting { word: word.clone(), note: id, count, length }.key();
        entries.entry(words_bucket(&word)).or_default().insert(key);
    }
    for tag in &note.tags {
        entries.entry(tag_bucket(tag)).or_default().insert(id.to_string());
    }
    entries
}

/// Everything that is like one of `wanted`, for each of them.
pub(crate) fn look_up(wanted: &BTreeSet<String>) -> Result<Vec<Vec<Found>>, ToolError> {
    let found = wanted.iter().map(|wanted| {
        let bucket = words_bucket(wanted);
        let mut found = Vec::new();
        each_key(&bucket, |key| {
            let posting = Posting::parse(key).ok_or_else(|| {
                let message = format!("the bucket `{bucket}` has the key {key:?}, which is no entry; remove it");
                ToolError::failed("damaged", message)
            })?;
            let likeness = words::likeness(wanted, &posting.word);
            if likeness > 0.0 {
                found.push(Found { posting, likeness });
            }
            Ok(())
        })
        .map_err(|why| refused(wanted, why))?;
        Ok(found)
    });
    found.collect()
}

/// The store says that its limit is reached, and not what a search can do about it.
fn refused(wanted: &str, why: ToolError) -> ToolError {
    if why.code() != "store" {
        return why;
    }
    let advice = "if it stands in very many notes, search without it or with fewer words";
    ToolError::failed("store", format!("`{wanted}` was not looked up, because of {}; {advice}", why.message()))
}

/// The notes that have a tag, in the store's order.
pub(crate) fn tagged(tag: &Tag) -> Result<Vec<NoteId>, ToolError> {
    let bucket = tag_bucket(tag);
    let mut notes = Vec::new();
    each_key(&bucket, |key| {
        notes.push(NoteId::of_key(&bucket, key)?);
        Ok(())
    })?;
    Ok(notes)
}

fn each_key(bucket: &str, mut act: impl FnMut(&str) -> Result<(), ToolError>) -> Result<(), ToolError> {
    for (index, key) in kv::open(bucket)?.keys().enumerate() {
        if index % KEYS_PER_CHECKPOINT == 0 {
            checkpoint()?;
        }
        act(&key?)?;
    }
    Ok(())
}

fn words_bucket(word: &str) -> String {
    format!("words/{}", words::stem(word))
}

fn tag_bucket(tag: &Tag) -> String {
    format!("tags/{}", tag.as_str())
}

#[cfg(test)]
mod tests {
    use estop_tool::testing::Run;

    use super::*;

    #[test]
    fn a_posting_is_its_key() {
        let posting = Posting { word: "größe".into(), note: NoteId::parse("n12").unwrap(), count: 2, length: 31 };
        assert_eq!(posting.key(), "größe n12 2 31");
        assert_eq!(Posting::parse(&posting.key()), Some(posting));
        for damaged in ["", "größe", "größe 12 2 31", "größe n12 2", "größe n12 2 31 1"] {
            assert_eq!(Posting::parse(damaged), None, "{damaged}");
        }
    }

    /// However notes were changed, the index is what it would be if they had always been so.
    #[test]
    fn changes_leave_what_the_notes_say() {
        let note = |seed: u64| {
            let words = ["deploy", "deployed", "deaf", "key", "go"];
            let text = (0..seed % 7).map(|at| words[(seed >> (3 * at)) as usize % words.len()]);
            let tags = ["ops", "deploy ops", "key"].into_iter().take((seed >> 40) as usize % 4);
            let tags = tags.map(|tag| Tag::try_from(tag.to_owned()).unwrap()).collect();
            Stored { text: text.collect::<Vec<_>>().join(" "), tags, revision: 1 }
        };
        let id = |number: u64| NoteId::parse(&format!("n{number}")).unwrap();
        let mut notes: BTreeMap<NoteId, Stored> = BTreeMap::new();
        let (mut run, mut seed) = (Run::new(), 1_u64);
        for _ in 0..300 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let changed = id(1 + (seed >> 33) % 4);
            let after = ((seed >> 20) % 4 > 0).then(|| note(seed >> 8));
            let ended = run.call(|| replace(changed, notes.get(&changed), after.as_ref()));
            assert_eq!(ended.result, Ok(()));
            match after {
                Some(after) => notes.insert(changed, after),
                None => notes.remove(&changed),
            };
            let mut expected: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for (bucket, keys) in notes.iter().flat_map(|(id, note)| entries(*id, note)) {
                expected.entry(bucket).or_default().extend(keys);
            }
            for bucket in [
                "words/dep",
                "words/dea",
                "words/key",
                "words/go",
                "words/ops",
                "tags/ops",
                "tags/deploy ops",
                "tags/key",
            ] {
                let expected = expected.remove(bucket).unwrap_or_default();
                assert_eq!(ended.keys(bucket), expected.into_iter().collect::<Vec<_>>());
            }
            assert!(expected.is_empty(), "{expected:?}");
            run = ended.and_then();
        }
    }
}
