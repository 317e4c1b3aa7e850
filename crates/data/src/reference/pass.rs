//! The order in which the reference model reads pairs.

use std::num::NonZeroUsize;

use crate::{Batches, PairView};

/// Pairs of similar length that stay together, however a pass is divided into shards.
pub const BLOCK: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// Rows per shard: tens of megabytes, and the most that a killed process loses.
pub const ROWS_PER_SHARD: NonZeroUsize = NonZeroUsize::new(2048).unwrap();

/// A pass over all pairs of a set, in shards that different processes can make: pairs of similar length together, the longest
/// first, in blocks of [`BLOCK`].
///
/// Shard i of n holds the blocks i, i + n, i + 2n …, and a batch never crosses a block. So a pair shares its batch with the same
/// pairs however many shards there are, and gets the same values bit for bit.
pub struct Pass<'a> {
    pairs: Vec<PairView<'a>>,
    blocks: Batches,
    batch_size: usize,
}

impl<'a> Pass<'a> {
    /// Batches of `batch_size` pairs, at most [`BLOCK`].
    pub fn new(pairs: Vec<PairView<'a>>, batch_size: usize) -> Self {
        let lengths: Vec<usize> = pairs.iter().map(PairView::longest).collect();
        Self { pairs, blocks: Batches::by_length(&lengths, BLOCK), batch_size }
    }

    /// The batches of a shard, as indices into the pairs.
    pub fn batches(&self, shard: usize, shards: usize) -> impl Iterator<Item = &[usize]> {
        let blocks = self.blocks.iter().enumerate();
        let blocks = blocks.filter(move |(block, _)| block % shards == shard);
        blocks.flat_map(|(_, pairs)| pairs.chunks(self.batch_size))
    }

    /// The pairs of a batch.
    pub fn views(&self, batch: &[usize]) -> Vec<PairView<'a>> {
        batch.iter().map(|&index| self.pairs[index]).collect()
    }

    /// Number of pairs in a shard.
    pub fn pairs_of(&self, shard: usize, shards: usize) -> usize {
        self.batches(shard, shards).map(<[usize]>::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ResponseView;

    /// Oracle: the batches of a single shard.
    #[test]
    fn shards_divide_the_same_batches() {
        let tokens: Vec<Vec<u32>> = (0..150).map(|i| vec![1; 2 + i * 37 % 101]).collect();
        let pairs = tokens.iter().enumerate().map(|(id, tokens)| {
            let response = ResponseView { tokens, prompt_len: 1 };
            PairView { id: id as u64, chosen: response, rejected: response }
        });
        let pass = Pass::new(pairs.collect(), 5);
        let whole: Vec<&[usize]> = pass.batches(0, 1).collect();
        assert_eq!(whole.concat().len(), 150);
        for shards in [2, 3, 5, 9] {
            let mut divided: Vec<&[usize]> =
                (0..shards).flat_map(|shard| pass.batches(shard, shards)).collect();
            divided.sort_by_key(|batch| whole.iter().position(|other| other == batch));
            assert_eq!(divided, whole);
        }
    }
}
