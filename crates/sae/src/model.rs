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
pub struct JumpReluSae {
    /// W_enc, b_enc and θ.
    pub encoder: Encoder,
    /// `[d_sae, d_in]`
    pub w_dec: Tensor<2>,
    /// `[d_in]`
    pub b_dec: Tensor<1>,
    /// What the file says about its origin.
    pub provenance: Provenance,
}

impl JumpReluSae {
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
}
