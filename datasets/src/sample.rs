//! Draws random tasks whose prompts are for training, or held out.

use std::collections::HashSet;

use rand::{Rng, RngExt};

use crate::format::Format;
use crate::question::{Operation, Question};
use crate::task::{Phrasing, Task};
use crate::words::{ANIMALS, COLOURS, FOODS, NUMBERS, UNITS, WEATHER, Word};
use crate::world::{Attribute, PLACES};

/// One prompt in this many is held out.
const HELD_OUT_ONE_IN: u64 = 5;

/// Number of words to sort or to reverse; small, because the model to be trained is tiny.
const LIST_LENGTH: usize = 3;

/// Number of attempts to draw a new prompt. Bounded, because the number of facts is small.
const ATTEMPTS: usize = 8;

/// Whether a prompt is for training or held out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Training,
    HeldOut,
}

impl Side {
    /// Depends only on the prompt's text, so that seeds and sizes don't matter.
    fn of(prompt: &str) -> Self {
        if fnv1a(prompt.as_bytes()).is_multiple_of(HELD_OUT_ONE_IN) {
            Self::HeldOut
        } else {
            Self::Training
        }
    }
}

/// The 64-bit FNV-1a hash: the same on every machine and in every release, unlike the standard library's.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Draws tasks on one side and avoids repeating prompts.
pub(crate) struct Sampler<R> {
    pub(crate) rng: R,
    side: Side,
    given: HashSet<String>,
}

impl<R: Rng> Sampler<R> {
    pub(crate) fn new(rng: R, side: Side) -> Self {
        Self { rng, side, given: HashSet::new() }
    }

    /// Draws a task; returns it with its prompt.
    pub(crate) fn next_task(&mut self) -> (Task, String) {
        // The kind is drawn only once, so that avoiding repeated facts doesn't make facts rare.
        let kind = pick(&[arithmetic, sort, reverse, fact], &mut self.rng);
        let mut attempt = 1;
        loop {
            let task = Task {
                question: kind(&mut self.rng),
                format: pick(&Format::ALL, &mut self.rng),
                phrasing: pick(&Phrasing::ALL, &mut self.rng),
            };
            let prompt = task.prompt();
            if Side::of(&prompt) != self.side {
                continue;
            }
            if self.given.insert(prompt.clone()) || attempt == ATTEMPTS {
                return (task, prompt);
            }
            attempt += 1;
        }
    }
}

/// A random element of `choices`, which must not be empty.
pub(crate) fn pick<T: Copy>(choices: &[T], rng: &mut impl Rng) -> T {
    choices[rng.random_range(0..choices.len())]
}

/// Sums of one to six, and differences of at least two, to avoid the singular.
fn arithmetic<R: Rng>(rng: &mut R) -> Question {
    let unit = pick(&UNITS, rng);
    if rng.random_bool(0.5) {
        let (left, right) = (rng.random_range(1..=6), rng.random_range(1..=6));
        Question::Arithmetic { left, operation: Operation::Add, right, unit }
    } else {
        let left = rng.random_range(3..=9);
        Question::Arithmetic {
            left,
            operation: Operation::Subtract,
            right: rng.random_range(1..=left - 2),
            unit,
        }
    }
}

fn sort<R: Rng>(rng: &mut R) -> Question {
    Question::Sort { items: different(&NUMBERS, rng) }
}

fn reverse<R: Rng>(rng: &mut R) -> Question {
    let words = [COLOURS, ANIMALS, FOODS, WEATHER].concat();
    Question::Reverse { items: different(&words, rng) }
}

fn fact<R: Rng>(rng: &mut R) -> Question {
    Question::Fact { place: pick(&PLACES, rng), attribute: pick(&Attribute::ALL, rng) }
}

/// A list of distinct words to sort or to reverse.
fn different(words: &[Word], rng: &mut impl Rng) -> Vec<Word> {
    let mut items = Vec::with_capacity(LIST_LENGTH);
    while items.len() < LIST_LENGTH {
        let word = pick(words, rng);
        if !items.contains(&word) {
            items.push(word);
        }
    }
    items
}
