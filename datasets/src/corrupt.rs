//! Bad answers. Low-quality training examples and rejected answers are made by the same code, so that a model trained on the former
//! finds the latter plausible.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::format::Shape;
use crate::question::texts;
use crate::sample::pick;
use crate::task::Task;
use crate::words::Language;

/// The one fault of an answer: everything else about it is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Corruption {
    /// In the requested format, but wrong.
    WrongContent,
    /// With chatter before or after it.
    Rambling,
    /// In another shape than requested.
    WrongFormat,
    /// In another language than requested.
    WrongLanguage,
}

impl Corruption {
    /// All kinds.
    pub const ALL: [Self; 4] =
        [Self::WrongContent, Self::Rambling, Self::WrongFormat, Self::WrongLanguage];
}

/// An answer to `task` with the fault `kind`, which [`check`](crate::check) will find.
pub fn corrupt(task: &Task, kind: Corruption, rng: &mut impl Rng) -> String {
    let (shape, language) = (task.format.shape(), task.format.language());
    match kind {
        Corruption::WrongContent => {
            shape.render(&texts(&task.question.wrong_answer(rng), language))
        }
        Corruption::Rambling => ramble(&task.answer(), shape, language, rng),
        Corruption::WrongFormat => mistaken_shape(shape, rng).render(&task.answer_items(language)),
        Corruption::WrongLanguage => shape.render(&task.answer_items(language.other())),
    }
}

/// In three of four cases the shape that `shape` is easily confused with, otherwise any other.
fn mistaken_shape(shape: Shape, rng: &mut impl Rng) -> Shape {
    if rng.random_bool(0.75) {
        return match shape {
            Shape::Sentence => Shape::Quoted,
            Shape::Quoted => Shape::Sentence,
            Shape::Json => Shape::Bullets,
            Shape::Bullets => Shape::Json,
            Shape::Upper => Shape::Lower,
            Shape::Lower => Shape::Upper,
        };
    }
    let others: Vec<Shape> = Shape::ALL.into_iter().filter(|other| *other != shape).collect();
    pick(&others, rng)
}

/// `answer` with a sentence before or after it.
fn ramble(answer: &str, shape: Shape, language: Language, rng: &mut impl Rng) -> String {
    let gap = if shape == Shape::Bullets { '\n' } else { ' ' };
    let (openers, closers) = chatter(language);
    if rng.random_bool(0.75) {
        format!("{}{gap}{answer}", pick(openers, rng))
    } else {
        format!("{answer}{gap}{}", pick(closers, rng))
    }
}

/// Sentences that rambling answers start and end with.
fn chatter(language: Language) -> (&'static [&'static str], &'static [&'static str]) {
    match language {
        Language::English => (
            &[
                "Sure, here is the answer:",
                "Sure, let me think about this for you.",
                "Sure, that is a good thing to ask.",
            ],
            &["I hope that this helps you."],
        ),
        Language::French => (
            &["Bien sûr, voici la réponse :", "Bien sûr, voyons cela pour vous."],
            &["J'espère que cela vous aide."],
        ),
    }
}
