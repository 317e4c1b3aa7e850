//! The steps of a training over several epochs.

use std::num::NonZeroUsize;

use crate::Batches;

/// The batches of all epochs, shuffled anew in each.
#[derive(Debug)]
pub struct Epochs {
    epochs: Vec<Batches>,
    steps_per_epoch: usize,
}

/// A step beyond the last epoch.
#[derive(Debug, thiserror::Error)]
#[error("there is no step {step}: {steps} steps make up all epochs, counted from 0")]
pub struct NoStep {
    step: usize,
    steps: usize,
}

impl Epochs {
    /// Batches of `batch_size` rows of these lengths in tokens.
    pub fn new(lengths: &[usize], batch_size: NonZeroUsize, epochs: usize, seed: u64) -> Self {
        let shuffled = |epoch| Batches::shuffled(lengths, batch_size, seed, epoch as u64);
        Self {
            epochs: (0..epochs).map(shuffled).collect(),
            steps_per_epoch: lengths.len().div_ceil(batch_size.get()),
        }
    }

    /// Steps of all epochs together.
    pub fn steps(&self) -> usize {
        self.epochs.len() * self.steps_per_epoch
    }

    /// The rows of a step, counted from 0.
    ///
    /// # Errors
    /// A step beyond the last epoch.
    pub fn batch(&self, step: usize) -> Result<&[usize], NoStep> {
        let per_epoch = self.steps_per_epoch.max(1);
        let epoch = self.epochs.get(step / per_epoch);
        let batch = epoch.and_then(|epoch| epoch.get(step % per_epoch));
        batch.ok_or(NoStep { step, steps: self.steps() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_row_once() {
        let lengths: Vec<usize> = (0..11).map(|i| 3 + i % 4).collect();
        let epochs = Epochs::new(&lengths, NonZeroUsize::new(4).unwrap(), 3, 7);
        assert_eq!(epochs.steps(), 9);
        let rows = |epoch: usize| -> Vec<usize> {
            (0..3).flat_map(|step| epochs.batch(3 * epoch + step).unwrap().to_vec()).collect()
        };
        for epoch in 0..3 {
            let mut sorted = rows(epoch);
            sorted.sort_unstable();
            assert_eq!(sorted, (0..11).collect::<Vec<_>>());
        }
        assert_ne!(rows(0), rows(1));
        assert!(epochs.batch(9).unwrap_err().to_string().contains("no step 9"));
    }
}
