//! Bad answers. Training examples of low quality and rejected answers come from the same place, so that a model trained on
//! the former finds the latter plausible.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::format::Shape;
use crate::question::texts;
use crate::sample::pick;
use crate::task::Task;
use crate::words::Language;

/// What is wrong with an answer, and only that: all else about it is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Corruption {
    /// In the format asked for, but not the answer.
    WrongContent,
    /// With chatter before or after it.
    Rambling,
    /// In a shape that wasn't asked for.
    WrongFormat,
    /// In the language that wasn't asked for.
    WrongLanguage,
}

impl Corruption {
    /// Every kind.
    pub const ALL: [Self; 4] =
        [Self::WrongContent, Self::Rambling, Self::WrongFormat, Self::WrongLanguage];
}

/// An answer to `task` with the fault `kind`. [`check`](crate::check) finds that fault in it.
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

/// Mostly the shape that `shape` is easily confused with, else any other.
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

/// The sentences that a rambling answer starts or ends with.
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
