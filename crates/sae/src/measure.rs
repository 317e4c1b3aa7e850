//! How well an autoencoder reconstructs, and how sparsely.

use burn::tensor::Tensor;

use crate::JumpReluSae;

/// Measures of an autoencoder over a set of activations.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Quality {
    /// Mean number of active features per token.
    pub l0: f64,
    /// 1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²).
    pub explained_variance: f64,
    /// Share of features that were active on no token.
    pub dead_features: f64,
    /// Tokens measured.
    pub tokens: usize,
}

/// Sums from which [`Quality`] follows; blocks of tokens are added one after another.
#[derive(Debug)]
pub struct QualityMeter {
    tokens: usize,
    active: f64,
    squared_error: f64,
    squared_norm: f64,
    mean: Vec<f64>,
    seen: Vec<bool>,
}

impl QualityMeter {
    /// For an autoencoder of these sizes.
    pub fn new(d_in: usize, d_sae: usize) -> Self {
        Self {
            tokens: 0,
            active: 0.0,
            squared_error: 0.0,
            squared_norm: 0.0,
            mean: vec![0.0; d_in],
            seen: vec![false; d_sae],
        }
    }

    /// Adds a block of activations, `[tokens, d_in]`.
    pub fn add(&mut self, sae: &JumpReluSae, x: Tensor<2>) {
        let [tokens, _] = x.dims();
        let features = sae.encode(x.clone());
        let error = x.clone() - sae.decode(features.clone());
        let firing = to_vec(features.greater_scalar(0.0).float().sum_dim(0));
        self.tokens += tokens;
        self.active += firing.iter().sum::<f64>();
        self.squared_error += to_vec(error.square().sum_dim(1)).iter().sum::<f64>();
        self.squared_norm += to_vec(x.clone().square().sum_dim(1)).iter().sum::<f64>();
        for (mean, sum) in self.mean.iter_mut().zip(to_vec(x.sum_dim(0))) {
            *mean += sum;
        }
        for (seen, count) in self.seen.iter_mut().zip(firing) {
            *seen |= count > 0.0;
        }
    }

    /// The measures over everything that was added; `None` before the first token.
    pub fn quality(&self) -> Option<Quality> {
        if self.tokens == 0 {
            return None;
        }
        let n = self.tokens as f64;
        let mean_norm: f64 = self.mean.iter().map(|sum| (sum / n).powi(2)).sum();
        let variance = self.squared_norm / n - mean_norm;
        let dead = self.seen.iter().filter(|seen| !**seen).count();
        Some(Quality {
            l0: self.active / n,
            explained_variance: 1.0 - self.squared_error / n / variance,
            dead_features: dead as f64 / self.seen.len() as f64,
            tokens: self.tokens,
        })
    }
}

fn to_vec(x: Tensor<2>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}
