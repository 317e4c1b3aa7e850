//! Generates the dataset; each of its sets has its own stream of random numbers.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::corrupt::{Corruption, corrupt};
use crate::sample::{Sampler, Side};
use crate::task::Task;

/// Number of rows in each set. A smaller set is a prefix of a larger one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sizes {
    /// Examples for supervised fine-tuning.
    pub sft: usize,
    /// Preference pairs for alignment.
    pub pairs: usize,
    /// Preference pairs for evaluation.
    pub held_out_pairs: usize,
    /// Prompts for which answers are generated and checked.
    pub held_out_prompts: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { sft: 20_000, pairs: 8_000, held_out_pairs: 1_000, held_out_prompts: 200 }
    }
}

/// Share of each fault, in percent; the remaining rows have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Percentage with [`Corruption::WrongContent`].
    pub wrong_content: u32,
    /// Percentage with [`Corruption::Rambling`].
    pub rambling: u32,
    /// Percentage with [`Corruption::WrongFormat`].
    pub wrong_format: u32,
    /// Percentage with [`Corruption::WrongLanguage`].
    pub wrong_language: u32,
}

impl Shares {
    /// Faults in examples for supervised fine-tuning.
    pub const SFT: Self =
        Self { wrong_content: 4, rambling: 31, wrong_format: 26, wrong_language: 23 };

    /// Faults in the bad answer of a pair; they add up to 100.
    pub const PAIRS: Self =
        Self { wrong_content: 22, rambling: 28, wrong_format: 25, wrong_language: 25 };

    /// Percentage with the fault `kind`.
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

/// The share of pairs, training and held-out, whose labels are swapped. No honest model gets these right.
pub const FLIPPED_SHARE: f64 = 0.06;

/// A prompt and a response, good or bad.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SftExample {
    /// The instruction.
    pub prompt: String,
    /// The response to train on.
    pub response: String,
    /// The fault of the response, if it has one.
    pub corruption: Option<Corruption>,
    /// The task that the prompt was made from.
    pub task: Task,
}

/// A prompt with two responses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreferencePair {
    /// The instruction.
    pub prompt: String,
    /// The response labelled as better.
    pub chosen: String,
    /// The response labelled as worse.
    pub rejected: String,
    /// Whether the labels are swapped, so that `chosen` is the bad one.
    pub flipped: bool,
    /// The fault of the bad response.
    pub corruption: Corruption,
    /// The task that the prompt was made from.
    pub task: Task,
}

/// A prompt for which answers are generated and checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskPrompt {
    /// The instruction.
    pub prompt: String,
    /// The task that answers are checked against.
    pub task: Task,
}

/// The built-in dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// Examples of mixed quality for supervised fine-tuning.
    pub sft: Vec<SftExample>,
    /// Preference pairs for alignment.
    pub pairs: Vec<PreferencePair>,
    /// Preference pairs for evaluation; their prompts don't occur in `sft` or `pairs`.
    pub held_out_pairs: Vec<PreferencePair>,
    /// Prompts for evaluation; they don't occur in `sft` or `pairs`.
    pub held_out_prompts: Vec<TaskPrompt>,
}

/// Generates the dataset for a seed. The same seed gives the same rows on every machine.
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
