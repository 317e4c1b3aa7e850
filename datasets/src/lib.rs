//! The built-in dataset: short instructions whose answers a program can check.
//!
//! A [`Task`] is a [`Question`] and the [`Format`] that its answer is asked for in. It makes its prompt and its right answer;
//! [`corrupt`] makes a bad answer and [`check`] judges any answer. [`generate`] draws rows of them from a seed.
//!
//! Invariants:
//! * Nothing is read, downloaded or timed: a seed and [`Sizes`] determine every byte.
//! * `check(task, &task.answer())` is [`Verdict::Right`], and [`check`] finds in every corrupted answer the fault that
//!   [`corrupt`] put there.
//! * A prompt is for training or held out by its text alone, so no two datasets of whatever seeds leak into each other.
//! * The crate knows no model, tokenizer or file layout: whoever wants rows on disk uses [`write_jsonl`].

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
