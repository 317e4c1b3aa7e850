//! Generates the dataset: rows of three kinds, each split from its own stream of random numbers.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::corrupt::{Corruption, corrupt};
use crate::sample::{Sampler, Side};
use crate::task::Task;

/// How many rows of each kind to generate. A smaller set is the beginning of a larger one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sizes {
    /// Examples for supervised fine-tuning.
    pub sft: usize,
    /// Preference pairs for alignment.
    pub pairs: usize,
    /// Preference pairs for evaluation.
    pub held_out_pairs: usize,
    /// Prompts to generate answers to, for the checker.
    pub held_out_prompts: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { sft: 20_000, pairs: 8_000, held_out_pairs: 1_000, held_out_prompts: 200 }
    }
}

/// How often each fault occurs, in percent; the rest has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// The share of [`Corruption::WrongContent`].
    pub wrong_content: u32,
    /// The share of [`Corruption::Rambling`].
    pub rambling: u32,
    /// The share of [`Corruption::WrongFormat`].
    pub wrong_format: u32,
    /// The share of [`Corruption::WrongLanguage`].
    pub wrong_language: u32,
}

impl Shares {
    /// The faults of the supervised examples.
    pub const SFT: Self =
        Self { wrong_content: 4, rambling: 31, wrong_format: 26, wrong_language: 23 };

    /// The faults of the bad answer of a pair; they leave no rest.
    pub const PAIRS: Self =
        Self { wrong_content: 22, rambling: 28, wrong_format: 25, wrong_language: 25 };

    /// The share of `kind`, in percent.
    pub fn of(self, kind: Corruption) -> u32 {
        match kind {
            Corruption::WrongContent => self.wrong_content,
            Corruption::Rambling => self.rambling,
            Corruption::WrongFormat => self.wrong_format,
            Corruption::WrongLanguage => self.wrong_language,
        }
    }

    fn draw(self, rng: &mut impl Rng) -> Option<Corruption> {
        let mut ticket = rng.random_range(0..100);
        Corruption::ALL.into_iter().find(|kind| {
            let share = self.of(*kind);
            let drawn = ticket < share;
            ticket = ticket.saturating_sub(share);
            drawn
        })
    }
}

/// The share of pairs, training and held out alike, whose labels are swapped. No honest model gets these right.
pub const FLIPPED_SHARE: f64 = 0.06;

/// A prompt and a response, good or bad.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SftExample {
    /// The instruction.
    pub prompt: String,
    /// What the model is trained to say.
    pub response: String,
    /// What is wrong with the response, if anything.
    pub corruption: Option<Corruption>,
    /// Where the prompt comes from.
    pub task: Task,
}

/// A prompt with two responses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreferencePair {
    /// The instruction.
    pub prompt: String,
    /// The response labelled as the better one.
    pub chosen: String,
    /// The response labelled as the worse one.
    pub rejected: String,
    /// Whether the labels are swapped: `chosen` is the bad one.
    pub flipped: bool,
    /// What is wrong with the bad one.
    pub corruption: Corruption,
    /// Where the prompt comes from.
    pub task: Task,
}

/// A prompt to generate an answer to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskPrompt {
    /// The instruction.
    pub prompt: String,
    /// What the answer is checked against.
    pub task: Task,
}

/// The built-in dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// Examples of mixed quality for supervised fine-tuning.
    pub sft: Vec<SftExample>,
    /// Preference pairs for alignment.
    pub pairs: Vec<PreferencePair>,
    /// Preference pairs for evaluation; no prompt of theirs is in `sft` or `pairs`.
    pub held_out_pairs: Vec<PreferencePair>,
    /// Prompts for evaluation; none of them is in `sft` or `pairs`.
    pub held_out_prompts: Vec<TaskPrompt>,
}

/// Generates the dataset of `seed`. The same seed gives the same rows on every machine.
pub fn generate(seed: u64, sizes: &Sizes) -> Dataset {
    let sampler = |stream, side| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Sampler::new(rng, side)
    };
    Dataset {
        sft: rows(sampler(0, Side::Training), sizes.sft, sft_example),
        pairs: rows(sampler(1, Side::Training), sizes.pairs, preference_pair),
        held_out_pairs: rows(sampler(2, Side::HeldOut), sizes.held_out_pairs, preference_pair),
        held_out_prompts: rows(sampler(3, Side::HeldOut), sizes.held_out_prompts, task_prompt),
    }
}

fn rows<R, T>(mut sampler: Sampler<R>, count: usize, row: impl Fn(&mut Sampler<R>) -> T) -> Vec<T> {
    (0..count).map(|_| row(&mut sampler)).collect()
}

fn sft_example<R: Rng>(sampler: &mut Sampler<R>) -> SftExample {
    let (task, prompt) = sampler.next_task();
    let corruption = Shares::SFT.draw(&mut sampler.rng);
    let response = match corruption {
        Some(kind) => corrupt(&task, kind, &mut sampler.rng),
        None => task.answer(),
    };
    SftExample { prompt, response, corruption, task }
}

fn preference_pair<R: Rng>(sampler: &mut Sampler<R>) -> PreferencePair {
    let (task, prompt) = sampler.next_task();
    let corruption = Shares::PAIRS.draw(&mut sampler.rng).unwrap_or(Corruption::WrongContent);
    let bad = corrupt(&task, corruption, &mut sampler.rng);
    let flipped = sampler.rng.random_bool(FLIPPED_SHARE);
    let (chosen, rejected) = if flipped { (bad, task.answer()) } else { (task.answer(), bad) };
    PreferencePair { prompt, chosen, rejected, flipped, corruption, task }
}

fn task_prompt<R: Rng>(sampler: &mut Sampler<R>) -> TaskPrompt {
    let (task, prompt) = sampler.next_task();
    TaskPrompt { prompt, task }
}
