//! Which items share a batch, and the order of the batches.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::num::NonZeroUsize;

/// Batches per window in which items are sorted by length, at most.
const WINDOW: usize = 16;
/// Windows per epoch, at least: in a set of fewer batches, items aren't sorted.
const WINDOWS: usize = 4;

/// The order of one epoch: the item indices of each batch.
///
/// Every item occurs exactly once. All batches are full except possibly the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batches {
    order: Vec<usize>,
    size: NonZeroUsize,
}

impl Batches {
    /// A shuffled epoch with items of similar length in the same batch: items are shuffled, then sorted by length within windows of
    /// 16 batches or a quarter of the set, whichever is less, and the batches of each window are shuffled. This saves padding at
    /// little cost in randomness. The items of the last batch, where it is not full, are drawn from all.
    ///
    /// The order depends only on the arguments, so a resumed run sees the same batches. `lengths[i]` is the length of item `i` in
    /// tokens.
    pub fn shuffled(lengths: &[usize], size: NonZeroUsize, seed: u64, epoch: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(epoch);
        let mut items: Vec<usize> = (0..lengths.len()).collect();
        items.shuffle(&mut rng);
        let batches = items.len() / size.get();
        let window = size.get().saturating_mul(WINDOW.min(batches / WINDOWS).max(1));
        let (full, rest) = items.split_at_mut(batches * size.get());
        let mut order = Vec::with_capacity(lengths.len());
        for window in full.chunks_mut(window) {
            window.sort_by_key(|&item| lengths[item]);
            let mut batches: Vec<&[usize]> = window.chunks(size.get()).collect();
            batches.shuffle(&mut rng);
            order.extend(batches.into_iter().flatten());
        }
        order.extend_from_slice(rest);
        Self { order, size }
    }

    /// Items sorted by length, longest first: if memory runs out, it does so in the first batch.
    pub fn by_length(lengths: &[usize], size: NonZeroUsize) -> Self {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&item| std::cmp::Reverse(lengths[item]));
        Self { order, size }
    }

    /// Items in their original order.
    pub fn sequential(items: usize, size: NonZeroUsize) -> Self {
        Self { order: (0..items).collect(), size }
    }

    /// Number of batches.
    pub fn len(&self) -> usize {
        self.order.len().div_ceil(self.size.get())
    }

    /// True if there are no batches.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The item indices of a batch.
    pub fn get(&self, batch: usize) -> Option<&[usize]> {
        self.iter().nth(batch)
    }

    /// All batches in order; `.iter().skip(n)` resumes after `n` batches.
    pub fn iter(&self) -> std::slice::Chunks<'_, usize> {
        self.order.chunks(self.size.get())
    }
}
