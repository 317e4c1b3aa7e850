//! What an autoencoder's parameters look like.

use burn::tensor::Tensor;

use crate::Sae;

/// Smallest, mean and largest of a set of numbers.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Range {
    /// The smallest.
    pub min: f64,
    /// The mean.
    pub mean: f64,
    /// The largest.
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

/// The shapes and sizes of an autoencoder's parameters.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Description {
    /// Width of the activations.
    pub d_in: usize,
    /// Number of features.
    pub d_sae: usize,
    /// The model, as the file says.
    pub model_name: Option<String>,
    /// The site, as the file says.
    pub hook_name: Option<String>,
    /// θ.
    pub threshold: Range,
    /// b_enc.
    pub b_enc: Range,
    /// Norms of the encoder's columns.
    pub encoder_norm: Range,
    /// Norms of the decoder's rows.
    pub decoder_norm: Range,
    /// Cosine of each encoder column with its decoder row.
    pub encoder_decoder_cosine: Range,
    /// ‖b_dec‖.
    pub b_dec_norm: f64,
}

impl Description {
    /// Looks at every parameter once.
    pub fn of(sae: &Sae) -> Self {
        let encoder = sae.encoder.w_enc.clone().transpose();
        let norm = |x: Tensor<2>| x.square().sum_dim(1).sqrt().squeeze_dim::<1>(1);
        let (enc, dec) = (norm(encoder.clone()), norm(sae.w_dec.clone()));
        let product = (encoder * sae.w_dec.clone()).sum_dim(1).squeeze_dim::<1>(1);
        let cosine = product / (enc.clone() * dec.clone()).clamp_min(f32::MIN_POSITIVE);
        Self {
            d_in: sae.d_in(),
            d_sae: sae.d_sae(),
            model_name: sae.provenance.model_name.clone(),
            hook_name: sae.provenance.hook_name.clone(),
            threshold: Range::of(sae.encoder.threshold.clone()),
            b_enc: Range::of(sae.encoder.b_enc.clone()),
            encoder_norm: Range::of(enc),
            decoder_norm: Range::of(dec),
            encoder_decoder_cosine: Range::of(cosine),
            b_dec_norm: sae.b_dec.clone().square().sum().into_scalar::<f64>().sqrt(),
        }
    }
}
