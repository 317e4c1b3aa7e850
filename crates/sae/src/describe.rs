//! Statistics of an autoencoder's parameters.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use fpo_ops::Normalization;

use crate::{Sae, activation::Facts};

/// Minimum, mean and maximum of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Range {
    /// Minimum.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// Maximum.
    pub max: f64,
}

impl Range {
    fn of(values: Tensor<1>) -> Self {
        let values: Vec<f64> = values.into_data().iter::<f64>().collect();
        Self {
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            mean: values.iter().sum::<f64>() / values.len() as f64,
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

/// What an autoencoder is: its sizes, its activation function, where it was trained, and the ranges of its parameters.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Description {
    /// Width of the activations.
    pub d_in: usize,
    /// Number of features.
    pub d_sae: usize,
    /// The activation function, such as `JumpReLU`, and what happens to activations before.
    pub activation: String,
    /// The model it was trained on, if the file says so.
    pub model_name: Option<String>,
    /// The site it was trained at, if the file says so.
    pub hook_name: Option<String>,
    /// The per-feature parameters of the activation function, by name: θ is `threshold`.
    #[serde(flatten)]
    pub activation_parameters: BTreeMap<&'static str, Range>,
    /// Elements of b_enc.
    pub b_enc: Range,
    /// Norms of the columns of W_enc.
    pub encoder_norm: Range,
    /// Norms of the rows of W_dec.
    pub decoder_norm: Range,
    /// Cosine similarity of each feature's column of W_enc and row of W_dec.
    pub encoder_decoder_cosine: Range,
    /// ‖b_dec‖.
    pub b_dec_norm: f64,
}

impl Description {
    /// Computes it on the device of the parameters.
    pub fn of(sae: &Sae) -> Self {
        let encoder = sae.encoder.w_enc.clone().transpose();
        let norm = |x: Tensor<2>| x.square().sum_dim(1).sqrt().squeeze_dim::<1>(1);
        let (enc, dec) = (norm(encoder.clone()), norm(sae.w_dec.clone()));
        let product = (encoder * sae.w_dec.clone()).sum_dim(1).squeeze_dim::<1>(1);
        let cosine = product / (enc.clone() * dec.clone()).clamp_min(f32::MIN_POSITIVE);
        let activation = Facts::of(&sae.encoder.activation);
        let of = |(name, vector): (_, &Tensor<1>)| (name, Range::of(vector.clone()));
        Self {
            d_in: sae.d_in(),
            d_sae: sae.d_sae(),
            model_name: sae.provenance.model_name.clone(),
            hook_name: sae.provenance.hook_name.clone(),
            activation: match sae.encoder.normalization {
                Normalization::None => activation.title,
                Normalization::LayerNorm => {
                    format!("{}, of layer-normalised inputs", activation.title)
                }
                Normalization::ConstantNorm => {
                    format!("{}, of inputs scaled to norm √d_in", activation.title)
                }
            },
            activation_parameters: activation.vectors.into_iter().map(of).collect(),
            b_enc: Range::of(sae.encoder.b_enc.clone()),
            encoder_norm: Range::of(enc),
            decoder_norm: Range::of(dec),
            encoder_decoder_cosine: Range::of(cosine),
            b_dec_norm: sae.b_dec.clone().square().sum().into_scalar::<f64>().sqrt(),
        }
    }
}
