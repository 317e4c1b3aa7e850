//! A trained sparse autoencoder, as it is used: frozen.

use std::fmt::Display;

use burn::tensor::{Device, Tensor};
use fpo_ops::Encoder;

use crate::{Error, activation};

/// Which activations an autoencoder was trained on, as far as its file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Provenance {
    /// The name or folder of the model.
    pub model_name: Option<String>,
    /// The activation site, such as `blocks.25.hook_resid_post`.
    pub hook_name: Option<String>,
}

/// A sparse autoencoder: f(x) = activation(x · W_enc + b_enc) and x̂ = f · W_dec + b_dec. With a
/// [`Normalization`](fpo_ops::Normalization) the linear maps are between features and normalised activations.
#[derive(Clone, Debug)]
pub struct Sae {
    /// W_enc, b_enc and the activation function.
    pub encoder: Encoder,
    /// `[d_sae, d_in]`
    pub w_dec: Tensor<2>,
    /// `[d_in]`
    pub b_dec: Tensor<1>,
    /// Which activations it was trained on.
    pub provenance: Provenance,
}

impl Sae {
    /// Width of the activations: d_model at most sites.
    pub fn d_in(&self) -> usize {
        self.w_dec.dims()[1]
    }

    /// Number of features.
    pub fn d_sae(&self) -> usize {
        self.w_dec.dims()[0]
    }

    /// The device that holds the parameters.
    pub fn device(&self) -> Device {
        self.w_dec.device()
    }

    /// Activations `[tokens, d_in]` → features `[tokens, d_sae]`.
    pub fn encode(&self, x: Tensor<2>) -> Tensor<2> {
        self.encoder.encode(x)
    }

    /// Features `[tokens, d_sae]` of activations `x` `[tokens, d_in]` → reconstruction `[tokens, d_in]`. `x` matters only where
    /// activations are normalised: it gives the reconstruction its scale.
    pub fn decode(&self, features: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        let output = fpo_ops::matmul(features, self.w_dec.clone());
        let output = output + self.b_dec.clone().unsqueeze::<2>();
        self.encoder.normalization.undo(output, x)
    }

    /// Activations → their reconstructions x̂, `[tokens, d_in]`.
    pub fn reconstruct(&self, x: Tensor<2>) -> Tensor<2> {
        self.decode(self.encode(x.clone()), x)
    }

    /// The same reconstruction with decoder directions of unit norm. With n the norm of a feature's direction, its column of W_enc,
    /// its b_enc and its threshold are multiplied by n, and so is its activation.
    ///
    /// # Errors
    /// A TopK autoencoder, whose active features would change.
    pub fn fold_decoder_norms(self) -> Result<Self, Error> {
        let norms = self.w_dec.clone().square().sum_dim(1).sqrt().clamp_min(1e-8);
        let row = norms.clone().squeeze_dim::<1>(1);
        let Encoder { normalization, w_enc, b_enc, activation } = self.encoder;
        Ok(Self {
            encoder: Encoder {
                normalization,
                w_enc: w_enc * row.clone().unsqueeze::<2>(),
                b_enc: b_enc * row.clone(),
                activation: activation::scaled(activation, row)?,
            },
            w_dec: self.w_dec / norms,
            b_dec: self.b_dec,
            provenance: self.provenance,
        })
    }
}

/// Checks that an encoder takes activations of this width.
///
/// # Errors
/// It takes activations of another width. The message names `site`, where they come from.
pub fn check_width(encoder: &Encoder, site: impl Display, width: usize) -> Result<(), Error> {
    let d_in = encoder.d_in();
    match d_in == width {
        true => Ok(()),
        false => Err(Error::Width { site: site.to_string(), d_in, width }),
    }
}
