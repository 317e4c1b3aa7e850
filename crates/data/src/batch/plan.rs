//! Which items share a batch, and in which order the batches come.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::num::NonZeroUsize;

/// Batches per window within which items are sorted by length.
const WINDOW: usize = 16;

/// The order of an epoch: which items (by index) make up each batch.
///
/// Every item comes exactly once. All batches are full but the last, which holds what is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batches {
    order: Vec<usize>,
    size: NonZeroUsize,
}

impl Batches {
    /// A shuffled epoch with items of similar length together: items are shuffled, then sorted by length inside windows of 16
    /// batches, and each window's batches are shuffled. Less padding at hardly less randomness.
    ///
    /// The order depends on the arguments alone, so a resumed run meets the batches that it would have met.
    /// `lengths[i]` is the length of item `i` in tokens.
    pub fn shuffled(lengths: &[usize], size: NonZeroUsize, seed: u64, epoch: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(epoch);
        let mut items: Vec<usize> = (0..lengths.len()).collect();
        items.shuffle(&mut rng);
        let mut order = Vec::with_capacity(items.len());
        for window in items.chunks_mut(size.get().saturating_mul(WINDOW)) {
            window.sort_by_key(|&item| lengths[item]);
            let full = window.chunks_exact(size.get());
            let rest = full.remainder();
            let mut batches: Vec<&[usize]> = full.collect();
            batches.shuffle(&mut rng);
            order.extend(batches.into_iter().chain([rest]).flatten());
        }
        Self { order, size }
    }

    /// Items of similar length together, the longest first: memory that doesn't suffice doesn't suffice at once.
    pub fn by_length(lengths: &[usize], size: NonZeroUsize) -> Self {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&item| std::cmp::Reverse(lengths[item]));
        Self { order, size }
    }

    /// Items in their own order.
    pub fn sequential(items: usize, size: NonZeroUsize) -> Self {
        Self { order: (0..items).collect(), size }
    }

    /// Number of batches.
    pub fn len(&self) -> usize {
        self.order.len().div_ceil(self.size.get())
    }

    /// Whether there is no batch.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The items of a batch.
    pub fn get(&self, batch: usize) -> Option<&[usize]> {
        self.iter().nth(batch)
    }

    /// All batches in order; `.iter().skip(n)` resumes after `n` of them.
    pub fn iter(&self) -> std::slice::Chunks<'_, usize> {
        self.order.chunks(self.size.get())
    }
}
