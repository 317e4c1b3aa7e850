//! The built-in dataset: short instructions whose answers a program can check.
//!
//! A [`Task`] is a [`Question`] and the [`Format`] in which to answer it. It determines the prompt and the right answer;
//! [`corrupt`] makes a bad answer, and [`check`] judges any answer. [`generate`] draws rows from a seed.
//!
//! Invariants:
//! * Nothing is read or downloaded, and no clock is used: a seed and [`Sizes`] determine every byte.
//! * `check(task, &task.answer())` is [`Verdict::Right`], and [`check`] finds the fault that [`corrupt`] put into an answer.
//! * A prompt's text alone decides whether it is held out, so held-out prompts never leak into training data, whatever the seeds.
//! * The crate knows no models, tokenizers or file layouts; [`write_jsonl`] writes rows.

mod check;
mod corrupt;
mod format;
mod generate;
mod jsonl;
mod question;
mod sample;
mod task;
mod words;
mod world;

pub use check::{Verdict, check};
pub use corrupt::{Corruption, corrupt};
pub use format::{Format, Shape};
pub use generate::{
    Dataset, FLIPPED_SHARE, PreferencePair, SftExample, Shares, Sizes, TaskPrompt, generate,
};
pub use jsonl::write_jsonl;
pub use question::{Operation, Question};
pub use task::{Phrasing, Task};
pub use words::{
    ANIMALS, COLOURS, FOODS, Language, NUMBERS, UNITS, UnknownName, WEATHER, Word, all_words,
};
pub use world::{Attribute, PLACES, Place};
