//! The held-out prompts in two: those that decide and those that are measured.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use fpo_data::{PairStore, hash::hash_bytes};
use fpo_trainer::stages::prepare::{EvalPrompt, Prepared};

/// Held-out pairs, by place, and held-out prompts to answer.
#[derive(Clone, Debug)]
pub struct Half {
    /// Places in the store of held-out pairs.
    pub pairs: Vec<usize>,
    /// Prompts to answer.
    pub prompts: Vec<EvalPrompt>,
}

/// No prompt is in both halves.
#[derive(Clone, Debug)]
pub struct Split {
    /// Decides which trial of a method is its best.
    pub validation: Half,
    /// Measures the best ones, and is seen by nothing else.
    pub test: Half,
}

/// A half without pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{prompts} held-out prompts can't be split in two with validation = {share_percent} %: hold out more (data.hold_out, data.eval)"
)]
pub struct TooFew {
    prompts: usize,
    share_percent: u32,
}

impl Split {
    /// Splits by prompt: the prompts in the order of a hash of their tokens, the first `share` of them for validation. So it depends
    /// neither on a seed nor on the order of the data, and a prompt that is both in a pair and to be answered stays on one side.
    ///
    /// # Errors
    /// Too few held-out prompts for two halves.
    pub fn of(
        prepared: &Prepared,
        prompts: &[EvalPrompt],
        share: f64,
    ) -> std::result::Result<Self, TooFew> {
        let pairs = prompts_of(&prepared.held_out);
        let of_pairs: BTreeSet<&Vec<u32>> = pairs.iter().collect();
        let is_validation = first(of_pairs.iter().map(|prompt| prompt.as_slice()), share);
        // Prompts that no pair has are split among themselves, so that both halves have their share.
        let others = prompts.iter().map(|prompt| &prompt.tokens);
        let others: BTreeSet<&Vec<u32>> =
            others.filter(|prompt| !of_pairs.contains(prompt)).collect();
        let others = first(others.iter().map(|prompt| prompt.as_slice()), share);
        let decides = |prompt: &[u32]| is_validation.contains(prompt) || others.contains(prompt);
        let half = |validation: bool| Half {
            pairs: (0..pairs.len()).filter(|&at| decides(&pairs[at]) == validation).collect(),
            prompts: {
                let all = prompts.iter();
                all.filter(|prompt| decides(&prompt.tokens) == validation).cloned().collect()
            },
        };
        let split = Self { validation: half(true), test: half(false) };
        match split.validation.pairs.is_empty() || split.test.pairs.is_empty() {
            true => Err(TooFew {
                prompts: of_pairs.len(),
                share_percent: (100.0 * share).round() as u32,
            }),
            false => Ok(split),
        }
    }
}

/// Kinds of prompts, by their names.
pub type Kinds = BTreeMap<String, Kind>;

/// The prompts whose text has a word.
#[derive(Clone, Debug)]
pub struct Kind {
    /// The word.
    pub word: String,
    /// For every held-out pair, whether it is of this kind.
    pub pairs: Vec<bool>,
    /// The same for the training pairs.
    pub train: Vec<bool>,
}

impl Kind {
    /// Finds the pairs of each kind by the words that name it.
    ///
    /// # Errors
    /// Tokens that can't be decoded.
    pub fn all(prepared: &Prepared, words: &BTreeMap<String, String>) -> Result<Kinds> {
        let of = |store: &PairStore, word: &str| -> Result<Vec<bool>> {
            let has =
                |prompt: Vec<u32>| Ok(prepared.tokenizer.decode(&prompt, true)?.contains(word));
            prompts_of(store).into_iter().map(has).collect()
        };
        let one = |(name, word): (&String, &String)| {
            let (pairs, train) = (of(&prepared.held_out, word)?, of(&prepared.train, word)?);
            Ok((name.clone(), Self { word: word.clone(), pairs, train }))
        };
        words.iter().map(one).collect()
    }
}

fn prompts_of(pairs: &PairStore) -> Vec<Vec<u32>> {
    pairs.iter().map(|pair| pair.chosen.tokens[..pair.chosen.prompt_len].to_vec()).collect()
}

/// The first `share` of distinct prompts by hash.
fn first<'a>(prompts: impl Iterator<Item = &'a [u32]>, share: f64) -> BTreeSet<Vec<u32>> {
    let mut all: Vec<(String, &[u32])> = prompts.map(|prompt| (hashed(prompt), prompt)).collect();
    all.sort();
    let count = (share * all.len() as f64).round() as usize;
    all.into_iter().take(count).map(|(_, prompt)| prompt.to_vec()).collect()
}

fn hashed(prompt: &[u32]) -> String {
    let bytes: Vec<u8> = prompt.iter().flat_map(|token| token.to_le_bytes()).collect();
    hash_bytes(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_half_is_half_whatever_the_order() {
        let prompts: Vec<Vec<u32>> = (0..101).map(|i| vec![7, i, i * i]).collect();
        let forward = first(prompts.iter().map(Vec::as_slice), 0.5);
        let backward = first(prompts.iter().rev().map(Vec::as_slice), 0.5);
        assert_eq!(forward, backward);
        assert_eq!(forward.len(), 51);
        // Not the first ones: neighbours are on both sides.
        let here = prompts[..50].iter().filter(|prompt| forward.contains(*prompt)).count();
        assert!((10..40).contains(&here), "{here}");
        assert_eq!(first(prompts.iter().map(Vec::as_slice), 0.2).len(), 20);
    }

    /// A prompt stays where it is for as long as the same share is asked of more prompts around it, but for those at the border.
    #[test]
    fn few_prompts_change_sides_when_prompts_are_added() {
        let prompts: Vec<Vec<u32>> = (0..400).map(|i| vec![i]).collect();
        let few = first(prompts[..380].iter().map(Vec::as_slice), 0.5);
        let all = first(prompts.iter().map(Vec::as_slice), 0.5);
        let moved = prompts[..380].iter().filter(|p| few.contains(*p) != all.contains(*p)).count();
        assert!(moved <= 20, "{moved}");
    }
}
