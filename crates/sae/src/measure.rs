//! How well and how sparsely an autoencoder reconstructs. Metrics that SAELens 6 has too (`sae_lens.evals`) are defined as there,
//! but over all tokens instead of averaged over batches.

use burn::tensor::Tensor;

use crate::Sae;

/// Metrics of an autoencoder on a set of activations. E is the mean over tokens.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Quality {
    /// Mean number of active features per token: L0.
    pub l0: f64,
    /// E Σᵢ |fᵢ|.
    pub l1: f64,
    /// 1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²): 1 at best.
    pub explained_variance: f64,
    /// E‖x − x̂‖², a sum over dimensions.
    pub mse: f64,
    /// E of the cosine similarity of x and x̂.
    pub cosine: f64,
    /// E‖x‖.
    pub l2_norm_in: f64,
    /// E‖x̂‖.
    pub l2_norm_out: f64,
    /// E of ‖x̂‖ / ‖x‖.
    pub l2_ratio: f64,
    /// E‖x̂‖² / E x·x̂: below 1 if reconstructions are too small (arXiv 2404.16014, equation 10).
    pub relative_reconstruction_bias: f64,
    /// Share of features that are active on no token.
    pub dead_features: f64,
    /// Number of tokens.
    pub tokens: usize,
}

/// Accumulates [`Quality`] over blocks of tokens, in float64.
#[derive(Debug)]
pub struct QualityMeter {
    tokens: usize,
    sums: Sums,
    mean: Vec<f64>,
    firing: Vec<f64>,
}

/// Sums over tokens.
#[derive(Debug, Default)]
struct Sums {
    active: f64,
    l1: f64,
    squared_error: f64,
    squared_in: f64,
    squared_out: f64,
    product: f64,
    cosine: f64,
    norm_in: f64,
    norm_out: f64,
    ratio: f64,
}

impl QualityMeter {
    /// Starts without tokens, for an autoencoder of these sizes.
    pub fn new(d_in: usize, d_sae: usize) -> Self {
        let (mean, firing) = (vec![0.0; d_in], vec![0.0; d_sae]);
        Self { tokens: 0, sums: Sums::default(), mean, firing }
    }

    /// Encodes and adds a block of activations `[tokens, d_in]`.
    pub fn add(&mut self, sae: &Sae, x: Tensor<2>) {
        let features = sae.encode(x.clone());
        let output = sae.decode(features.clone(), x.clone());
        self.add_encoded(x, features, output);
    }

    /// Adds a block of activations `[tokens, d_in]` with its features `[tokens, d_sae]` and reconstructions `[tokens, d_in]`.
    pub fn add_encoded(&mut self, x: Tensor<2>, features: Tensor<2>, output: Tensor<2>) {
        let by_token = |x: Tensor<2>| to_vec(x.sum_dim(1));
        let squared_error = by_token((x.clone() - output.clone()).square());
        let squared_in = by_token(x.clone().square());
        let squared_out = by_token(output.clone().square());
        let product = by_token(x.clone() * output);
        let sums = &mut self.sums;
        for (i, &squared_in) in squared_in.iter().enumerate() {
            let (norm_in, norm_out) = (squared_in.sqrt(), squared_out[i].sqrt());
            sums.squared_error += squared_error[i];
            sums.squared_in += squared_in;
            sums.squared_out += squared_out[i];
            sums.product += product[i];
            sums.norm_in += norm_in;
            sums.norm_out += norm_out;
            // As in SAELens, a norm that is nearly zero isn't divided by.
            sums.ratio += norm_out / if norm_in < 1e-4 { 1.0 } else { norm_in };
            sums.cosine += product[i] / (norm_in * norm_out).max(f64::MIN_POSITIVE);
        }
        let firing = to_vec(features.clone().greater_scalar(0.0).float().sum_dim(0));
        sums.active += firing.iter().sum::<f64>();
        sums.l1 += to_vec(features.abs().sum_dim(1)).iter().sum::<f64>();
        self.tokens += squared_in.len();
        for (mean, sum) in self.mean.iter_mut().zip(to_vec(x.sum_dim(0))) {
            *mean += sum;
        }
        for (total, count) in self.firing.iter_mut().zip(firing) {
            *total += count;
        }
    }

    /// The share of tokens on which each feature was active, `[d_sae]`.
    pub fn densities(&self) -> Vec<f64> {
        self.firing.iter().map(|count| count / self.tokens.max(1) as f64).collect()
    }

    /// The metrics over all tokens added; None if there are none.
    pub fn quality(&self) -> Option<Quality> {
        if self.tokens == 0 {
            return None;
        }
        let (n, s) = (self.tokens as f64, &self.sums);
        let mean_norm: f64 = self.mean.iter().map(|sum| (sum / n).powi(2)).sum();
        let variance = s.squared_in / n - mean_norm;
        let dead = self.firing.iter().filter(|count| **count == 0.0).count();
        Some(Quality {
            l0: s.active / n,
            l1: s.l1 / n,
            explained_variance: 1.0 - s.squared_error / n / variance,
            mse: s.squared_error / n,
            cosine: s.cosine / n,
            l2_norm_in: s.norm_in / n,
            l2_norm_out: s.norm_out / n,
            l2_ratio: s.ratio / n,
            relative_reconstruction_bias: s.squared_out / s.product,
            dead_features: dead as f64 / self.firing.len() as f64,
            tokens: self.tokens,
        })
    }
}

fn to_vec(x: Tensor<2>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}
