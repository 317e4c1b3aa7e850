//! Room that a run needs on the disk.

use std::num::NonZeroUsize;

use anyhow::Result;
use fpo_config::{OptimizerKind, Settings};

use crate::{BYTES, adapters, alignment, parameters};

/// Bytes that the models of a run and the checkpoints of its trainings take, at most. The tokenised data and the reference cache come on
/// top ([`crate::Cache`]); they depend on the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The fine-tuned model; 0 where the run starts from the model as it is.
    pub sft: u64,
    /// Checkpoints while fine-tuning: the new one is written before the old one is removed.
    pub sft_checkpoints: u64,
    /// The aligned model, with its adapters if these are trained.
    pub align: u64,
    /// Checkpoints while aligning.
    pub align_checkpoints: u64,
}

impl Disk {
    /// Of a run with these settings.
    ///
    /// # Errors
    /// The model's sizes can't be determined.
    pub fn of(s: &Settings) -> Result<Self> {
        let config = alignment(s)?.config;
        let whole = parameters(&config);
        let moments = |kind| match kind {
            OptimizerKind::Adamw => 2,
            OptimizerKind::Rmsprop => 1,
        };
        let of = |lora: Option<u64>, kind| {
            let trained = lora.unwrap_or(whole);
            (BYTES * (whole + lora.unwrap_or(0)), 2 * BYTES * trained * (1 + moments(kind)))
        };
        let lora = |lora: &Option<_>| lora.as_ref().map(|lora| adapters(&config, lora));
        let (sft, sft_checkpoints) = match s.model.path.is_some() && s.sft.epochs == 0.0 {
            true => (0, 0),
            false => of(lora(&s.sft.lora), s.sft.optimizer.kind),
        };
        let (align, two) = of(lora(&s.align.lora), s.align.optimizer.kind);
        // Two exist while one is written; with those that stay there are more.
        let last = s.align.keep_last.map_or(1, NonZeroUsize::get) as u64;
        let align_checkpoints = two / 2 * (1 + last + u64::from(s.align.keep_best.is_some()));
        Ok(Self { sft, sft_checkpoints, align, align_checkpoints })
    }

    /// The most that is needed at any time beyond what the disk already holds, where `done` says whether fine-tuning and alignment are.
    pub fn peak(&self, done: [bool; 2]) -> u64 {
        let Self { sft, sft_checkpoints, align, align_checkpoints } = *self;
        let [sft_is_done, align_is_done] = done;
        let kept = if sft_is_done { 0 } else { sft };
        let fine_tuning = if sft_is_done { 0 } else { sft + sft_checkpoints };
        let aligning = if align_is_done { 0 } else { kept + align + align_checkpoints };
        fine_tuning.max(aligning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(recipe: &str, set: &[&str]) -> Disk {
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        Disk::of(&Settings::resolve(recipe, None, &set).unwrap()).unwrap()
    }

    /// Oracle: 2.614 billion parameters of 4 bytes, with two moments in a checkpoint, of which two exist at a time.
    #[test]
    fn gemma_2_2b() {
        let whole = disk("gemma-2-2b-fpo", &["sft.epochs=1"]);
        let near = |found: u64, billions: f64| (found as f64 / 1e9 / billions - 1.0).abs() < 0.01;
        assert!(near(whole.align, 10.46) && near(whole.align_checkpoints, 62.7), "{whole:?}");
        assert!(near(whole.peak([false, false]), 10.46 + 10.46 + 62.7), "{whole:?}");
        assert!(near(whole.peak([true, false]), 10.46 + 62.7), "{whole:?}");
        assert_eq!(whole.peak([true, true]), 0);
        let more = disk(
            "gemma-2-2b-fpo",
            &["align.keep_last=3", "align.keep_best=eval_loss", "evaluate.every=10"],
        );
        assert_eq!(more.align_checkpoints, whole.align_checkpoints / 2 * 5);
        let adapters = disk("gemma-2-2b-fpo", &["sft.epochs=0", "align.lora.rank=16"]);
        assert_eq!(adapters.sft, 0);
        assert!(adapters.align_checkpoints < whole.align_checkpoints / 50, "{adapters:?}");
    }
}
