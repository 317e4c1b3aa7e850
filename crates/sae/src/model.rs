//! A JumpReLU sparse autoencoder as it is used: frozen.

use burn::tensor::{Device, Tensor};
use fpo_ops::Encoder;

/// Where an autoencoder's activations come from, as far as its file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Provenance {
    /// The model's name or folder.
    pub model_name: Option<String>,
    /// The activation site, such as `blocks.25.hook_resid_post`.
    pub hook_name: Option<String>,
}

/// A JumpReLU sparse autoencoder (arXiv 2407.14435):
/// f(x) = z · 1\[z > θ\] with z = x · W_enc + b_enc, and x̂ = f · W_dec + b_dec.
#[derive(Clone, Debug)]
pub struct Sae {
    /// W_enc, b_enc and θ.
    pub encoder: Encoder,
    /// `[d_sae, d_in]`
    pub w_dec: Tensor<2>,
    /// `[d_in]`
    pub b_dec: Tensor<1>,
    /// What the file says about its origin.
    pub provenance: Provenance,
}

impl Sae {
    /// Width of the activations.
    pub fn d_in(&self) -> usize {
        self.w_dec.dims()[1]
    }

    /// Number of features.
    pub fn d_sae(&self) -> usize {
        self.w_dec.dims()[0]
    }

    /// The device of the parameters.
    pub fn device(&self) -> Device {
        self.w_dec.device()
    }

    /// Activations `[tokens, d_in]` → features `[tokens, d_sae]`.
    pub fn encode(&self, x: Tensor<2>) -> Tensor<2> {
        let Encoder { w_enc, b_enc, threshold } = self.encoder.clone();
        let z = x.matmul(w_enc) + b_enc.unsqueeze::<2>();
        let closed = z.clone().lower_equal(threshold.unsqueeze::<2>().expand(z.dims()));
        z.mask_fill(closed, 0.0)
    }

    /// Features `[tokens, d_sae]` → reconstruction `[tokens, d_in]`.
    pub fn decode(&self, features: Tensor<2>) -> Tensor<2> {
        features.matmul(self.w_dec.clone()) + self.b_dec.clone().unsqueeze::<2>()
    }

    /// x̂ of activations `[tokens, d_in]`.
    pub fn reconstruct(&self, x: Tensor<2>) -> Tensor<2> {
        self.decode(self.encode(x))
    }

    /// The same reconstruction with decoder directions of unit norm: with n the norm of a direction,
    /// W_enc ← n · W_enc, b_enc ← n · b_enc, θ ← n · θ, so that features are multiplied by n.
    pub fn fold_decoder_norms(self) -> Self {
        let norms = self.w_dec.clone().square().sum_dim(1).sqrt().clamp_min(1e-8);
        let row = norms.clone().squeeze_dim::<1>(1);
        let Encoder { w_enc, b_enc, threshold } = self.encoder;
        Self {
            encoder: Encoder {
                w_enc: w_enc * row.clone().unsqueeze::<2>(),
                b_enc: b_enc * row.clone(),
                threshold: threshold * row,
            },
            w_dec: self.w_dec / norms,
            b_dec: self.b_dec,
            provenance: self.provenance,
        }
    }
}
