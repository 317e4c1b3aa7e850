//! Questions: four kinds, with their wording and the items of their answers.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::sample::pick;
use crate::task::Phrasing;
use crate::words::{Language, NUMBERS, Word};
use crate::world::{Attribute, Place};

/// A question with one right answer, without a format.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Question {
    /// How many `unit` are `left` plus or minus `right`.
    Arithmetic {
        /// The first operand.
        left: u8,
        /// Addition or subtraction.
        operation: Operation,
        /// The second operand, less than `left` in a subtraction.
        right: u8,
        /// The things counted.
        unit: Word,
    },
    /// Sort number words, smallest first.
    Sort {
        /// Distinct words of [`NUMBERS`], in the order of the prompt.
        items: Vec<Word>,
    },
    /// Repeat words in reverse order.
    Reverse {
        /// Distinct words, in the order of the prompt.
        items: Vec<Word>,
    },
    /// Recall a fact of the invented world.
    Fact {
        /// The place in question.
        place: Place,
        /// The attribute in question.
        attribute: Attribute,
    },
}

/// An operation of [`Question::Arithmetic`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// `left + right`
    Add,
    /// `left - right`
    Subtract,
}

/// An item of an answer: a word, or a count of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    count: Option<i32>,
    word: Word,
}

impl Item {
    fn text(self, language: Language) -> String {
        let word = self.word.text(language);
        self.count.map_or_else(|| word.to_owned(), |count| format!("{count} {word}"))
    }
}

impl From<Word> for Item {
    fn from(word: Word) -> Self {
        Self { count: None, word }
    }
}

/// The items as lower-case text.
pub(crate) fn texts(items: &[Item], language: Language) -> Vec<String> {
    items.iter().map(|item| item.text(language)).collect()
}

impl Question {
    /// The items of the right answer.
    pub(crate) fn answer(&self) -> Vec<Item> {
        match self {
            Self::Arithmetic { left, operation, right, unit } => {
                let (left, right) = (i32::from(*left), i32::from(*right));
                let count = match operation {
                    Operation::Add => left + right,
                    Operation::Subtract => left - right,
                };
                vec![Item { count: Some(count), word: *unit }]
            }
            Self::Sort { items } => {
                let mut sorted = items.clone();
                sorted.sort_by_key(|item| NUMBERS.iter().position(|number| number == item));
                sorted.into_iter().map(Item::from).collect()
            }
            Self::Reverse { items } => items.iter().rev().copied().map(Item::from).collect(),
            Self::Fact { place, attribute } => vec![place.value(*attribute).into()],
        }
    }

    /// The items of a plausible wrong answer: a count that is slightly off, a list with two items swapped, or another value of the
    /// same attribute.
    pub(crate) fn wrong_answer(&self, rng: &mut impl Rng) -> Vec<Item> {
        let mut items = self.answer();
        match self {
            Self::Arithmetic { .. } => {
                for count in items.iter_mut().filter_map(|item| item.count.as_mut()) {
                    // No right answer is below two, so a wrong one would be too easy to recognise.
                    let off = rng.random_range(1..=3);
                    let down = *count - off >= 2 && rng.random_bool(0.5);
                    *count += if down { -off } else { off };
                }
            }
            Self::Sort { .. } | Self::Reverse { .. } => {
                let first = rng.random_range(0..items.len());
                let second = (first + rng.random_range(1..items.len())) % items.len();
                items.swap(first, second);
            }
            Self::Fact { place, attribute } => {
                let truth = place.value(*attribute);
                let others: Vec<Word> =
                    attribute.values().iter().copied().filter(|value| *value != truth).collect();
                items = vec![pick(&others, rng).into()];
            }
        }
        items
    }

    /// The question in English, without a request for a format.
    pub(crate) fn wording(&self, phrasing: Phrasing) -> String {
        match self {
            Self::Arithmetic { left, operation, right, unit } => {
                let unit = unit.text(Language::English);
                let sign = match operation {
                    Operation::Add => '+',
                    Operation::Subtract => '-',
                };
                match phrasing {
                    Phrasing::Terse => format!("Count {unit}: {left} {sign} {right}."),
                    Phrasing::Asking => format!("How many {unit} is {left} {sign} {right}?"),
                    Phrasing::Polite => {
                        format!("Please count the {unit} in {left} {sign} {right}.")
                    }
                }
            }
            Self::Sort { items } => {
                let list = english_list(items);
                match phrasing {
                    Phrasing::Terse => format!("Sort: {list}."),
                    Phrasing::Asking => format!("What is the order of {list}?"),
                    Phrasing::Polite => format!("Please sort the numbers {list}."),
                }
            }
            Self::Reverse { items } => {
                let list = english_list(items);
                match phrasing {
                    Phrasing::Terse => format!("Reverse: {list}."),
                    Phrasing::Asking => format!("What is the reverse of {list}?"),
                    Phrasing::Polite => format!("Please reverse the words {list}."),
                }
            }
            Self::Fact { place, attribute } => {
                let (place, attribute) = (place.name(), attribute.name());
                match phrasing {
                    Phrasing::Terse => format!("Name the {attribute} of {place}."),
                    Phrasing::Asking => format!("What is the {attribute} of {place}?"),
                    Phrasing::Polite => format!("Please tell me the {attribute} of {place}."),
                }
            }
        }
    }
}

fn english_list(items: &[Word]) -> String {
    let words: Vec<&str> = items.iter().map(|item| item.text(Language::English)).collect();
    words.join(", ")
}
