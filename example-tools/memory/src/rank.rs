//! Which notes fit a query best: Okapi BM25, with words that are only alike counting less.
//!
//! Invariant: of two notes that differ in one word only, the one whose word is rarer, or is the query's
//! own and not merely like it, does not score less.
//!
//! A word of the query counts once for a note, by its best word: a note with `deploy`, `deployed` and
//! `deployment` is no better than one with `deploy` twice. The sum over the query's words is the score,
//! so notes that have more of them come first unless they are all common.

use std::collections::BTreeMap;

use crate::index::Found;
use crate::notes::NoteId;

/// How soon more of the same word counts no more, as usual for BM25.
const SATURATION: f64 = 1.2;
/// How much longer notes are held back, from 0 to 1, as usual for BM25.
const LENGTH_WEIGHT: f64 = 0.75;

/// A note and how well it fits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Hit {
    pub(crate) note: NoteId,
    pub(crate) score: f64,
}

/// The notes in `found`, the best first; of equals the newer first. `given` is the number of notes,
/// or more: notes that are forgotten may be counted.
pub(crate) fn rank(found: &[Vec<Found>], given: u64) -> Vec<Hit> {
    let mean_length = mean_length(found);
    let mut scores: BTreeMap<NoteId, f64> = BTreeMap::new();
    for found in found {
        let mut notes_with: BTreeMap<&str, usize> = BTreeMap::new();
        for Found { posting, .. } in found {
            *notes_with.entry(&posting.word).or_default() += 1;
        }
        // A word that is like a common one is not worth more than it, however rare.
        let itself = found.iter().filter(|found| found.likeness >= 1.0).count();
        let mut best: BTreeMap<NoteId, f64> = BTreeMap::new();
        for Found { posting, likeness } in found {
            let with = notes_with.get(posting.word.as_str()).copied().unwrap_or(1);
            let rarity = rarity(with.max(itself), given);
            let count = posting.count as f64;
            let length = 1.0 - LENGTH_WEIGHT + LENGTH_WEIGHT * posting.length as f64 / mean_length;
            let score = likeness * rarity * count * (SATURATION + 1.0) / (count + SATURATION * length);
            let best = best.entry(posting.note).or_default();
            *best = best.max(score);
        }
        for (note, score) in best {
            *scores.entry(note).or_default() += score;
        }
    }
    let mut hits: Vec<Hit> = scores.into_iter().map(|(note, score)| Hit { note, score: rounded(score) }).collect();
    hits.sort_by(|one, other| other.score.total_cmp(&one.score).then(other.note.cmp(&one.note)));
    hits
}

/// How much a word says that so many notes have: close to 0 if all of them do.
fn rarity(notes_with: usize, given: u64) -> f64 {
    let (with, all) = (notes_with as f64, given as f64);
    let without = (all - with).max(0.0);
    (1.0 + (without + 0.5) / (with + 0.5)).ln()
}

/// Of the notes that were found, in words.
fn mean_length(found: &[Vec<Found>]) -> f64 {
    let postings = found.iter().flatten().map(|found| &found.posting);
    let lengths: BTreeMap<NoteId, usize> = postings.map(|posting| (posting.note, posting.length)).collect();
    let sum: usize = lengths.values().sum();
    // At least 1: a note may have words in its tags only.
    (sum as f64 / lengths.len().max(1) as f64).max(1.0)
}

/// To three digits, as they are told.
fn rounded(score: f64) -> f64 {
    (score * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Posting;

    fn found(word: &str, note: &str, count: usize, length: usize, likeness: f64) -> Found {
        let note = NoteId::parse(note).unwrap();
        Found { posting: Posting { word: word.into(), note, count, length }, likeness }
    }

    fn order(found: &[Vec<Found>], given: u64) -> Vec<String> {
        rank(found, given).iter().map(|hit| hit.note.to_string()).collect()
    }

    #[test]
    fn a_rare_word_counts_more_than_a_common_one() {
        let common = (1..=9).map(|note| found("the", &format!("n{note}"), 1, 5, 1.0)).collect();
        let rare = vec![found("harbour", "n10", 1, 5, 1.0)];
        assert_eq!(order(&[common, rare], 10)[0], "n10");
    }

    #[test]
    fn more_of_a_word_counts_more_and_less_each_time() {
        let score = |count| rank(&[vec![found("a", "n1", count, 10, 1.0), found("a", "n2", 1, 10, 1.0)]], 2)[0].score;
        let (one, two, three) = (score(1), score(2), score(3));
        assert!(one < two && two < three && three - two < two - one);
    }

    #[test]
    fn a_short_note_is_before_a_long_one_and_a_new_one_before_an_old_one() {
        assert_eq!(order(&[vec![found("a", "n1", 1, 5, 1.0), found("a", "n2", 1, 50, 1.0)]], 2), ["n1", "n2"]);
        assert_eq!(order(&[vec![found("a", "n9", 1, 5, 1.0), found("a", "n10", 1, 5, 1.0)]], 10), ["n10", "n9"]);
    }

    #[test]
    fn words_that_are_alike_count_less_and_only_once() {
        let alike = || vec![found("deploys", "n2", 1, 5, 0.4), found("deployed", "n2", 1, 5, 0.4)];
        let mut all = alike();
        all.push(found("deploy", "n1", 1, 5, 1.0));
        assert_eq!(order(&[all], 3), ["n1", "n2"]);
        let once = rank(&[vec![found("deploys", "n2", 1, 5, 0.4)]], 3);
        assert_eq!(rank(&[alike()], 3), once);
    }

    #[test]
    fn a_word_that_is_like_a_common_one_is_not_worth_more() {
        let mut all: Vec<Found> = (1..=20).map(|note| found("deploy", &format!("n{note}"), 1, 5, 1.0)).collect();
        all.push(found("deployment", "n21", 1, 5, 0.3));
        assert_eq!(order(&[all], 21).last().unwrap(), "n21");
    }

    #[test]
    fn nothing_found_is_nothing_ranked_and_no_score_is_below_zero() {
        assert_eq!(rank(&[vec![], vec![]], 0), []);
        let all = vec![found("a", "n1", 1, 0, 1.0), found("a", "n2", 1, 0, 1.0)];
        assert!(rank(&[all], 1).iter().all(|hit| hit.score > 0.0 && hit.score.is_finite()));
    }
}
