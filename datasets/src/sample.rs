//! Draws tasks at random, on one side or the other of the line between training and held-out prompts.

use std::collections::HashSet;

use rand::{Rng, RngExt};

use crate::format::Format;
use crate::question::{Operation, Question};
use crate::task::{Phrasing, Task};
use crate::words::{ANIMALS, COLOURS, FOODS, NUMBERS, UNITS, WEATHER, Word};
use crate::world::{Attribute, PLACES};

/// One prompt in so many is held out.
const HELD_OUT_ONE_IN: u64 = 5;

/// How many words there are to sort or to reverse: as few as a list can have, for the model to be trained is tiny.
const LIST_LENGTH: usize = 3;

/// How often a new task is drawn for one whose prompt was drawn before. Bounded, for there are only so many facts.
const ATTEMPTS: usize = 8;

/// The side of the line that a prompt is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Training,
    HeldOut,
}

impl Side {
    /// A prompt's side follows from its text alone: no seed and no size can move it to the other side.
    fn of(prompt: &str) -> Self {
        if fnv1a(prompt.as_bytes()).is_multiple_of(HELD_OUT_ONE_IN) {
            Self::HeldOut
        } else {
            Self::Training
        }
    }
}

/// The 64-bit FNV-1a hash: the same on every machine and in every release, which the standard library's isn't.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A source of tasks on one side that avoids prompts that it has given before.
pub(crate) struct Sampler<R> {
    pub(crate) rng: R,
    side: Side,
    given: HashSet<String>,
}

impl<R: Rng> Sampler<R> {
    pub(crate) fn new(rng: R, side: Side) -> Self {
        Self { rng, side, given: HashSet::new() }
    }

    /// A task and its prompt.
    pub(crate) fn next_task(&mut self) -> (Task, String) {
        // The kind is drawn once, so that avoiding repeated facts doesn't make facts rare.
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

/// An element of `choices`, which isn't empty.
pub(crate) fn pick<T: Copy>(choices: &[T], rng: &mut impl Rng) -> T {
    choices[rng.random_range(0..choices.len())]
}

/// Sums of one to six, and differences of at least two: `1 apples` would need a grammar.
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

/// Different words: a list to sort or to reverse.
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
