//! One pass of the reference model over pairs: what the stage and `fpo reference` have in common.

use std::num::NonZeroUsize;

use anyhow::{Context, Result};
use burn::tensor::Tensor;
use fpo_data::{
    Batches, PairBatch, PairView, ReferenceRow, SparseFeatures, reference::ReferenceResponse,
};
use fpo_transformer::Gemma2;

use crate::forward::{DeviceBatch, FeatureReader, Forward};

/// Pairs of similar length that stay together, however a pass is divided.
pub const BLOCK: NonZeroUsize = NonZeroUsize::new(32).unwrap();

/// The reference model, and what it is asked.
pub struct ReferencePass<'a> {
    /// The frozen model.
    pub model: &'a Gemma2,
    /// Reads its features, where they are wanted.
    pub reader: Option<&'a FeatureReader>,
    /// Fills a batch behind a row's end.
    pub pad_id: u32,
}

impl ReferencePass<'_> {
    /// What the model says of a batch of pairs.
    pub fn rows(&self, pairs: &[PairView]) -> Result<Vec<ReferenceRow>> {
        let batch = PairBatch::new(pairs, self.pad_id)?;
        let device_batch = DeviceBatch::new(&batch.batch, &self.model.device());
        let forward = Forward::new(self.model, &batch.batch, &device_batch, self.reader);
        let tokens = forward.token_log_probs(self.model, &device_batch);
        let read = |x: Tensor<1>| x.into_data().iter::<f32>().collect::<Vec<f32>>();
        let log_probs = read(device_batch.sum_by_row(tokens.clone()));
        let shared = read(device_batch.sum_shared_by_row(tokens));
        let pooled: Vec<f32> = match (self.reader, forward.pooled) {
            (None, _) => Vec::new(),
            (Some(_), pooled) => {
                let pooled = pooled.context("the reader pools activations")?.into_data();
                pooled.iter::<f32>().collect()
            }
        };
        let d_sae = self.reader.map_or(0, FeatureReader::d_sae);
        let response = |row: usize| ReferenceResponse {
            log_prob: log_probs[row],
            shared_log_prob: shared[row],
            tokens: device_batch.counts[row] as u32,
            features: SparseFeatures::from_dense(&pooled[row * d_sae..][..d_sae]),
        };
        let count = batch.ids.len();
        let ids = batch.ids.iter().enumerate();
        Ok(ids
            .map(|(i, &id)| ReferenceRow { id, chosen: response(i), rejected: response(count + i) })
            .collect())
    }
}

/// A pass over a whole file: pairs of similar length together, the longest first, in blocks.
pub fn plan(pairs: &[PairView]) -> Batches {
    let lengths: Vec<usize> = pairs.iter().map(PairView::longest).collect();
    Batches::by_length(&lengths, BLOCK)
}

/// The batches of one of so many shards. A shard has every so manieth block, and a batch never
/// reaches across blocks: however many shards there are, a pair meets the same neighbours in its
/// batch, and gets the same numbers to the bit.
pub fn shard_batches(
    plan: &Batches,
    batch_size: usize,
    shard: usize,
    shards: usize,
) -> impl Iterator<Item = &[usize]> {
    let blocks = plan.iter().enumerate().filter(move |(block, _)| block % shards == shard);
    blocks.flat_map(move |(_, pairs)| pairs.chunks(batch_size))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Oracle: the batches of a single shard.
    #[test]
    fn shards_divide_the_same_batches() {
        let lengths: Vec<usize> = (0..150).map(|i| i * 37 % 101).collect();
        let plan = Batches::by_length(&lengths, BLOCK);
        let whole: Vec<&[usize]> = shard_batches(&plan, 5, 0, 1).collect();
        assert_eq!(whole.concat().len(), 150);
        for shards in [2, 3, 5, 9] {
            let divided = (0..shards).flat_map(|shard| shard_batches(&plan, 5, shard, shards));
            let mut divided: Vec<&[usize]> = divided.collect();
            divided.sort_by_key(|batch| whole.iter().position(|other| other == batch));
            assert_eq!(divided, whole);
        }
    }
}
