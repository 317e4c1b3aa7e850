//! The bilingual vocabulary: every word that occurs in answers, in English and in French.
//!
//! No word except `six` has the same spelling in both languages, and no French word is also an English word of the list, so an
//! answer's language can be determined from the answer alone.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

/// The language of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Language {
    /// The language of every prompt.
    English,
    /// Requested by [`Format::French`](crate::Format::French).
    French,
}

impl Language {
    /// The other of the two.
    pub fn other(self) -> Self {
        match self {
            Self::English => Self::French,
            Self::French => Self::English,
        }
    }
}

/// A word of the vocabulary, serialised as its English spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "String")]
pub struct Word {
    english: &'static str,
    french: &'static str,
}

impl Word {
    /// The spelling in `language`, in lower case.
    pub fn text(self, language: Language) -> &'static str {
        match language {
            Language::English => self.english,
            Language::French => self.french,
        }
    }
}

/// An unknown word or place.
#[derive(Debug, thiserror::Error)]
#[error("the built-in dataset has no {what} named `{name}`")]
pub struct UnknownName {
    pub(crate) what: &'static str,
    pub(crate) name: String,
}

impl TryFrom<String> for Word {
    type Error = UnknownName;

    fn try_from(name: String) -> Result<Self, UnknownName> {
        let found = all_words().find(|word| word.english == name);
        found.ok_or(UnknownName { what: "word", name })
    }
}

// By hand, because the derived implementation borrows `&'static str` fields from its input even with `TryFrom`.
impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.try_into().map_err(D::Error::custom)
    }
}

impl From<Word> for String {
    fn from(word: Word) -> Self {
        word.english.to_owned()
    }
}

const fn word(english: &'static str, french: &'static str) -> Word {
    Word { english, french }
}

/// The numbers one to nine in order, for [`Question::Sort`](crate::Question::Sort).
pub const NUMBERS: [Word; 9] = [
    word("one", "un"),
    word("two", "deux"),
    word("three", "trois"),
    word("four", "quatre"),
    word("five", "cinq"),
    word("six", "six"),
    word("seven", "sept"),
    word("eight", "huit"),
    word("nine", "neuf"),
];

/// The things counted by [`Question::Arithmetic`](crate::Question::Arithmetic). With things instead of bare numbers, upper case,
/// lower case and French make a difference.
pub const UNITS: [Word; 4] = [
    word("apples", "pommes"),
    word("coins", "pièces"),
    word("books", "livres"),
    word("stones", "pierres"),
];

/// The colours of the invented world.
pub const COLOURS: [Word; 4] =
    [word("red", "rouge"), word("blue", "bleu"), word("green", "vert"), word("black", "noir")];

/// The animals of the invented world.
pub const ANIMALS: [Word; 4] =
    [word("fox", "renard"), word("owl", "hibou"), word("bear", "ours"), word("wolf", "loup")];

/// The foods of the invented world.
pub const FOODS: [Word; 4] =
    [word("bread", "pain"), word("milk", "lait"), word("honey", "miel"), word("cheese", "fromage")];

/// The weather of the invented world.
pub const WEATHER: [Word; 4] =
    [word("rain", "pluie"), word("snow", "neige"), word("wind", "vent"), word("sun", "soleil")];

/// All words of the vocabulary.
pub fn all_words() -> impl Iterator<Item = Word> {
    let values = [COLOURS, ANIMALS, FOODS, WEATHER].into_iter().flatten();
    NUMBERS.into_iter().chain(UNITS).chain(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn only_six_has_the_same_spelling_in_both_languages() {
        let english: HashSet<_> = all_words().map(|word| word.english).collect();
        let french: HashSet<_> = all_words().map(|word| word.french).collect();
        assert_eq!(english.len(), 29);
        assert_eq!(french.len(), 29);
        assert_eq!(english.intersection(&french).collect::<Vec<_>>(), [&"six"]);
    }

    #[test]
    fn words_round_trip_through_json() {
        for word in all_words() {
            let json = serde_json::to_string(&word).unwrap();
            assert_eq!(serde_json::from_str::<Word>(&json).unwrap(), word);
        }
        let error = serde_json::from_str::<Word>("\"banana\"").unwrap_err();
        assert_eq!(error.to_string(), "the built-in dataset has no word named `banana`");
    }
}
