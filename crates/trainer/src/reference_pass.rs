//! One pass of the reference model over pairs: what the stage and `fpo reference` have in common.

use std::num::NonZeroUsize;

use anyhow::{Context, Result};
use burn::tensor::Tensor;
use fpo_data::{
    Batches, PairBatch, PairView, ReferenceRow, SparseFeatures,
    reference::{ReferenceResponse, SharedCache},
};
use fpo_transformer::LanguageModel;

use crate::forward::{DeviceBatch, FeatureReader, Forward};
use fpo_device::progress::Progress;

/// Pairs of similar length that stay together, however a pass is divided.
pub const BLOCK: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// Rows of a shard: tens of megabytes, and what a process that is killed loses at most.
pub const ROWS_PER_SHARD: NonZeroUsize = NonZeroUsize::new(2048).unwrap();

/// What a model says of a batch of pairs; features only where there is a reader for them.
pub fn reference_rows(
    model: &LanguageModel,
    reader: Option<&FeatureReader>,
    batch: &PairBatch,
) -> Result<Vec<ReferenceRow>> {
    let device_batch = DeviceBatch::new(&batch.batch, &model.device());
    let forward = Forward::new(model, &batch.batch, &device_batch, reader);
    let tokens = forward.token_log_probs(model, &device_batch);
    let read = |x: Tensor<1>| x.into_data().iter::<f32>().collect::<Vec<f32>>();
    let log_probs = read(device_batch.sum_by_row(tokens.clone()));
    let shared = read(device_batch.sum_shared_by_row(tokens));
    let pooled: Vec<f32> = match (reader, forward.pooled) {
        (None, _) => Vec::new(),
        (Some(_), pooled) => {
            let pooled = pooled.context("the reader pools activations")?.into_data();
            pooled.iter::<f32>().collect()
        }
    };
    let d_sae = reader.map_or(0, FeatureReader::d_sae);
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

/// A pass over all pairs of a file, in parts that can be made apart: pairs of similar length together,
/// the longest first, in blocks.
///
/// A part has every so manieth block, and a batch never reaches across blocks: however many parts
/// there are, a pair meets the same neighbours in its batch, and gets the same numbers to the bit.
pub struct Pass<'a> {
    pairs: Vec<PairView<'a>>,
    blocks: Batches,
    batch_size: usize,
}

impl<'a> Pass<'a> {
    /// Batches of so many pairs; of [`BLOCK`] where that is more.
    pub fn new(pairs: Vec<PairView<'a>>, batch_size: usize) -> Self {
        let lengths: Vec<usize> = pairs.iter().map(PairView::longest).collect();
        Self { pairs, blocks: Batches::by_length(&lengths, BLOCK), batch_size }
    }

    /// The batches of a shard, as indices.
    pub fn batches(&self, shard: usize, shards: usize) -> impl Iterator<Item = &[usize]> {
        let blocks = self.blocks.iter().enumerate();
        let blocks = blocks.filter(move |(block, _)| block % shards == shard);
        blocks.flat_map(|(_, pairs)| pairs.chunks(self.batch_size))
    }

    /// The pairs of a batch.
    pub fn views(&self, batch: &[usize]) -> Vec<PairView<'a>> {
        batch.iter().map(|&index| self.pairs[index]).collect()
    }

    /// Pairs of a shard.
    pub fn pairs_of(&self, shard: usize, shards: usize) -> usize {
        self.batches(shard, shards).map(<[usize]>::len).sum()
    }

    /// Makes one shard of a cache.
    pub fn write(
        &self,
        cache: &SharedCache,
        shard: usize,
        rows: &dyn Fn(&[PairView]) -> Result<Vec<ReferenceRow>>,
        progress: &mut Progress,
    ) -> Result<()> {
        let shards = cache.shards();
        let part = format!("part {shard} of {shards}");
        let mut writer = cache.writer(shard)?;
        for batch in self.batches(shard, shards) {
            for row in rows(&self.views(batch))? {
                writer.push(row)?;
            }
            progress.advance(batch.len(), &part);
        }
        writer.finish().context(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fpo_data::ResponseView;

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
