//! Evaluation of an autoencoder: reconstruction, sparsity, and the model's predictions with the reconstruction in place of the
//! activation. Definitions follow `sae_lens.evals` (SAELens 6): positions of special tokens keep their activation and are
//! excluded from all means, but zero ablation zeroes them too; the cross-entropy at a position is that of the next token.

use std::num::NonZeroUsize;

use anyhow::{Context, Result, bail};
use burn::tensor::{Bool, Tensor, TensorData};
use fpo_data::{Batches, TokenBatch};
use fpo_sae::{Quality, QualityMeter, Sae};
use fpo_transformer::Site;
use serde::Serialize;

use crate::{activations::Source, reader::indices};

/// Positions per block, which bounds the size of `[positions, d_sae]`.
const POSITIONS: usize = 2048;

/// Cross-entropy of the predictions, in nats per token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CrossEntropy {
    /// Of the unchanged model.
    pub original: f64,
    /// With the reconstruction spliced in.
    pub spliced: f64,
    /// With the activation set to zero.
    pub zero_ablation: f64,
    /// spliced − original.
    pub delta: f64,
    /// (zero_ablation − spliced) / (zero_ablation − original): 1 for a perfect reconstruction, 0 for one no better than zeros.
    pub score: f64,
}

/// KL(original ‖ changed) of the predictions, in nats per token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// With the reconstruction spliced in.
    pub spliced: f64,
    /// With the activation set to zero.
    pub zero_ablation: f64,
    /// (zero_ablation − spliced) / zero_ablation.
    pub score: f64,
}

/// A bin of the histogram of feature densities.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DensityBin {
    /// Lower end: log₁₀ of the share of tokens on which a feature is active.
    pub from: f64,
    /// Upper end, in the same unit.
    pub to: f64,
    /// Number of features in the bin.
    pub features: usize,
}

/// Results of [`evaluate`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SaeEvaluation {
    /// Reconstruction and sparsity.
    #[serde(flatten)]
    pub quality: Quality,
    /// Cross-entropy with and without the reconstruction.
    pub cross_entropy: CrossEntropy,
    /// Divergence from the original predictions.
    pub kl: Divergence,
    /// Densities of the features that are active on at least one token.
    pub density_histogram: Vec<DensityBin>,
}

/// Sums over positions.
#[derive(Default)]
struct Sums {
    /// Number of positions that have a next token.
    predicted: usize,
    /// Number of positions.
    positions: usize,
    /// Cross-entropies in nats: original, spliced, zero ablation.
    cross_entropy: [f64; 3],
    /// KL in nats: spliced, zero ablation.
    kl: [f64; 2],
}

/// Evaluates an autoencoder on the first rows of `source` until at least `tokens` positions have been read, `batch_size` rows per
/// forward pass. The source's only site must be the autoencoder's.
///
/// # Errors
/// A source with more or fewer sites, unreadable data, or data without tokens to measure on or to predict.
pub fn evaluate(
    sae: &Sae,
    source: &Source<'_>,
    tokens: usize,
    batch_size: NonZeroUsize,
) -> Result<SaeEvaluation> {
    let &[site] = source.sites.as_slice() else {
        bail!("expected one site, but the source has {}", source.sites.len())
    };
    let rows = Batches::sequential(source.data.len(), batch_size);
    let total = source.data.lengths().iter().sum::<usize>().min(tokens);
    let mut progress = source.reporter.begin("evaluate", "tokens", total, 0);
    let mut meter = QualityMeter::new(sae.d_in(), sae.d_sae());
    let mut sums = Sums::default();
    for rows in rows.iter() {
        if sums.positions >= tokens {
            break;
        }
        let batch = source.batch(rows)?;
        let before = sums.positions;
        add(sae, source, site, &batch, &mut meter, &mut sums);
        progress.advance(sums.positions - before, "");
    }
    progress.finish(&format!("{} tokens", sums.positions));
    let quality = meter.quality().context("the data has no tokens to measure on")?;
    if sums.predicted == 0 {
        bail!("the data has no tokens to predict");
    }
    let [original, spliced, zero_ablation] =
        sums.cross_entropy.map(|sum| sum / sums.predicted as f64);
    let [kl_spliced, kl_zero] = sums.kl.map(|sum| sum / sums.positions as f64);
    Ok(SaeEvaluation {
        quality,
        cross_entropy: CrossEntropy {
            original,
            spliced,
            zero_ablation,
            delta: spliced - original,
            score: (zero_ablation - spliced) / (zero_ablation - original),
        },
        kl: Divergence {
            spliced: kl_spliced,
            zero_ablation: kl_zero,
            score: (kl_zero - kl_spliced) / kl_zero,
        },
        density_histogram: histogram(&meter.densities()),
    })
}

fn add(
    sae: &Sae,
    source: &Source<'_>,
    site: Site,
    batch: &TokenBatch,
    meter: &mut QualityMeter,
    sums: &mut Sums,
) {
    let (model, device) = (source.model, source.model.device());
    let kept = source.kept(batch);
    if kept.is_empty() {
        return;
    }
    let input = source.input(batch);
    let cells = batch.tokens.len();
    let mut is_kept = vec![false; cells];
    kept.iter().for_each(|&at| is_kept[at as usize] = true);

    let original = model.forward(input.clone(), &[site]);
    if let Some(x) = original.sites.into_iter().next() {
        let x = flat(x);
        for kept in kept.chunks(POSITIONS) {
            meter.add(sae, x.clone().select(0, indices(kept.to_vec(), &device)));
        }
    }
    let is_kept = Tensor::<2, Bool>::from_data(TensorData::new(is_kept, [cells, 1]), &device);
    let spliced = model.forward_with(input.clone(), site, |x| {
        let (shape, width) = (x.dims(), sae.d_in());
        let x = flat(x);
        let blocks = (0..cells).step_by(POSITIONS);
        let blocks = blocks
            .map(|start| sae.reconstruct(x.clone().narrow(0, start, POSITIONS.min(cells - start))));
        let output = Tensor::cat(blocks.collect(), 0);
        x.mask_where(is_kept.clone().expand([cells, width]), output).reshape(shape)
    });
    let zeros = model.forward_with(input, site, |x| x.zeros_like());

    let hidden = [original.hidden_states, spliced, zeros].map(flat);
    let head = model.head();
    let at = |x: &Tensor<2>, positions: &[i32]| {
        x.clone().select(0, indices(positions.to_vec(), &device))
    };
    for positions in kept.chunks(POSITIONS) {
        let original = at(&hidden[0], positions);
        for (sum, changed) in sums.kl.iter_mut().zip(&hidden[1..]) {
            let (reference, changed) = (original.clone(), at(changed, positions));
            let kl = head.kl(changed, &head, reference);
            *sum += kl.sum().into_scalar::<f64>();
        }
        sums.positions += positions.len();
    }
    // The last token of a row has no next token.
    let last = |at: i32| batch.places.iter().any(|[_, rest]| rest.end == at as usize + 1);
    let predicting: Vec<i32> = kept.into_iter().filter(|&at| !last(at)).collect();
    for positions in predicting.chunks(POSITIONS) {
        let targets = positions.iter().map(|&at| batch.tokens[at as usize + 1]).collect();
        let targets = indices(targets, &device);
        for (sum, hidden) in sums.cross_entropy.iter_mut().zip(&hidden) {
            let (hidden, targets) = (at(hidden, positions), targets.clone());
            let log_probs = head.log_probs(hidden, targets);
            *sum -= log_probs.sum().into_scalar::<f64>();
        }
        sums.predicted += positions.len();
    }
}

/// `[batch, tokens, width]` → `[batch · tokens, width]`
fn flat(x: Tensor<3>) -> Tensor<2> {
    let [batch, tokens, width] = x.dims();
    x.reshape([batch * tokens, width])
}

/// Densities in bins of half a power of ten, from the lowest above 0 up to 1.
fn histogram(densities: &[f64]) -> Vec<DensityBin> {
    let logs: Vec<f64> = densities.iter().filter(|d| **d > 0.0).map(|d| d.log10()).collect();
    let Some(lowest) = logs.iter().copied().reduce(f64::min) else { return Vec::new() };
    // A density of 1 belongs to the last bin.
    let bar = |log: f64| ((2.0 * log).floor() as i64).min(-1);
    (bar(lowest)..0)
        .map(|index| DensityBin {
            from: index as f64 / 2.0,
            to: (index + 1) as f64 / 2.0,
            features: logs.iter().filter(|log| bar(**log) == index).count(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_active_feature_is_in_one_bin() {
        let densities = [0.0, 1.0, 0.5, 0.1, 0.09, 1e-4, 2e-4];
        let bars = histogram(&densities);
        assert_eq!(bars.iter().map(|b| b.features).sum::<usize>(), 6);
        assert_eq!((bars[0].from, bars[0].features), (-4.0, 2));
        assert_eq!(bars.last().map(|b| (b.to, b.features)), Some((0.0, 2)));
        assert!(histogram(&[0.0]).is_empty());
    }
}
