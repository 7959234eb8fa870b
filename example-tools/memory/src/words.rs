//! What a word is, and when two are alike.
//!
//! Invariant: text and queries pass through the same function, so what was written is found by the same
//! writing. A word has no space and no slash in it, and at most [`MAX_WORD_CHARS`] characters.

/// A word is cut off here, in characters. Longer ones are hashes and encoded data.
const MAX_WORD_CHARS: usize = 64;
/// Words that begin with the same so many characters are kept together, and can be alike.
const STEM_CHARS: usize = 3;
/// What words count that only begin alike, before their lengths are compared; equal ones count 1.
const ALIKE: f64 = 0.5;

/// The words of `text` in lower case, in their order and with repetitions.
///
/// A word is a run of letters and digits: `snake_case` and `v1.2` are two each. In scripts that put no
/// spaces between words, each character is one.
pub(crate) fn of(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for char in text.chars() {
        let alone = stands_alone(char);
        if (alone || !char.is_alphanumeric()) && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if alone {
            words.push(char.to_string());
        } else if char.is_alphanumeric() {
            word.push(char);
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    // Lower case last: it can put marks into a word that would end it.
    words.iter().map(|word| word.to_lowercase().chars().take(MAX_WORD_CHARS).collect()).collect()
}

/// Hiragana, Katakana and Han characters.
fn stands_alone(char: char) -> bool {
    let is_in_script = matches!(char, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}'
        | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}');
    is_in_script && char.is_alphanumeric()
}

/// How `word` begins: the whole of a short word.
pub(crate) fn stem(word: &str) -> &str {
    word.char_indices().nth(STEM_CHARS).map_or(word, |(at, _)| &word[..at])
}

/// How much `word` counts when `wanted` is looked for: 1 if they are equal, less the more one of them
/// goes on where the other ends, 0 otherwise.
pub(crate) fn likeness(wanted: &str, word: &str) -> f64 {
    if wanted == word {
        return 1.0;
    }
    let (short, long) = if wanted.len() < word.len() { (wanted, word) } else { (word, wanted) };
    let (short_chars, long_chars) = (short.chars().count(), long.chars().count());
    if short_chars < STEM_CHARS || !long.starts_with(short) {
        return 0.0;
    }
    ALIKE * short_chars as f64 / long_chars as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_runs_of_letters_and_digits_in_lower_case() {
        for (text, expected) in [
            ("", vec![]),
            (" \n-- 🛑 …", vec![]),
            ("The DEPLOY key, v1.2!", vec!["the", "deploy", "key", "v1", "2"]),
            ("snake_case kebab-case it's", vec!["snake", "case", "kebab", "case", "it", "s"]),
            ("Größe ΟΔΟΣ STRASSE", vec!["größe", "οδος", "strasse"]),
            ("İstanbul", vec!["i\u{307}stanbul"]),
            ("東京のcafé、カメラ", vec!["東", "京", "の", "café", "カ", "メ", "ラ"]),
            ("한국어 문장", vec!["한국어", "문장"]),
        ] {
            assert_eq!(of(text), expected, "{text}");
        }
        assert_eq!(of(&"Ä".repeat(100)), ["ä".repeat(MAX_WORD_CHARS)]);
    }

    #[test]
    fn a_stem_is_in_characters() {
        assert_eq!((stem(""), stem("go"), stem("größe"), stem("東")), ("", "go", "grö", "東"));
    }

    #[test]
    fn words_are_alike_if_one_begins_the_other() {
        assert_eq!(likeness("deploy", "deploy"), 1.0);
        assert_eq!(likeness("deploy", "deployed"), 0.375);
        assert_eq!(likeness("deployed", "deploy"), 0.375);
        assert!(likeness("dep", "deploy") < likeness("deplo", "deploy"));
        assert_eq!(likeness("deploy", "depart"), 0.0);
        assert_eq!(likeness("de", "deploy"), 0.0, "too short");
    }
}
