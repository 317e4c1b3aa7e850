//! The training loss of a JumpReLU autoencoder: reconstruction, sparsity, and a pull on dead features.
//!
//! Sources: arXiv 2407.14435, equations 9 to 12, for JumpReLU; Anthropic's circuits update of January 2025, as implemented in
//! SAELens 6, for the tanh penalty and the pre-activation loss.

use burn::tensor::{FloatDType, Tensor};
use fpo_ops::{heaviside, jump_relu};

/// The sparsity term of the loss. L0 is the number of active features of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Penalty {
    /// λ · (E L0 / L0* − 1)²: steers L0 to the target L0*.
    #[default]
    TargetL0,
    /// λ · E L0.
    Step,
    /// λ · E Σᵢ tanh(c · fᵢ · ‖dᵢ‖), where dᵢ is a row of W_dec.
    Tanh,
}

/// The precision of the matrix products of a training step. Parameters, losses and moments are float32 either way: thresholds in
/// half precision stop learning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compute {
    /// That of the parameters.
    #[default]
    Float32,
    /// Inputs are rounded to bfloat16, which some devices multiply faster.
    Bfloat16,
}

impl Compute {
    /// `a · b`, and its gradients in the same precision.
    fn product(self, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Float32 => a.matmul(b),
            Self::Bfloat16 => {
                let dtype = FloatDType::from(a.dtype());
                a.cast(FloatDType::BF16).matmul(b.cast(FloatDType::BF16)).cast(dtype)
            }
        }
    }
}

/// The constants of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// The sparsity term.
    pub penalty: Penalty,
    /// λ, the weight of the sparsity term.
    pub sparsity: f64,
    /// L0*, for [`Penalty::TargetL0`].
    pub target_l0: f64,
    /// c, for [`Penalty::Tanh`].
    pub tanh_scale: f64,
    /// ε, the width of the straight-through estimator's kernel.
    pub bandwidth: f64,
    /// Weight of the pull on dead features: E Σ over dead i of relu(θᵢ − zᵢ) · ‖dᵢ‖.
    pub revive: f64,
    /// The precision of the matrix products.
    pub compute: Compute,
}

/// The parameters of an autoencoder in training. It encodes x − b_dec.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// `[d_in, d_sae]`
    pub w_enc: Tensor<2>,
    /// `[d_sae]`
    pub b_enc: Tensor<1>,
    /// `[d_sae, d_in]`
    pub w_dec: Tensor<2>,
    /// `[d_in]`
    pub b_dec: Tensor<1>,
    /// θ, `[d_sae]`
    pub threshold: Tensor<1>,
}

/// The loss and its parts, each `[1]`, and how often features were active. Only `total` and `sparsity` have a gradient.
#[derive(Debug)]
pub struct Losses {
    /// `mse + sparsity + revive`: what is differentiated.
    pub total: Tensor<1>,
    /// E ‖x − x̂‖².
    pub mse: Tensor<1>,
    /// The sparsity term times its weight.
    pub sparsity: Tensor<1>,
    /// The pull on dead features times its weight.
    pub revive: Tensor<1>,
    /// E L0: the mean number of active features per token.
    pub l0: Tensor<1>,
    /// The number of tokens that each feature was active on, `[d_sae]`.
    pub firing: Tensor<1>,
}

impl Objective {
    /// The loss on activations `[tokens, d_in]`. `dead` `[d_sae]` is 1 for dead features and 0 for others.
    ///
    /// θ gets its gradients from the straight-through estimator with a rectangle kernel of width ε; z gets none from it.
    pub fn losses(&self, p: &Parameters, x: Tensor<2>, dead: Option<Tensor<1>>) -> Losses {
        let b_dec = p.b_dec.clone().unsqueeze::<2>();
        let z = self.compute.product(x.clone() - b_dec.clone(), p.w_enc.clone());
        let z = z + p.b_enc.clone().unsqueeze::<2>();
        let features = jump_relu(z.clone(), p.threshold.clone(), self.bandwidth);
        let firing = features.clone().inner().greater_scalar(0.0).float();
        let reconstruction = self.compute.product(features.clone(), p.w_dec.clone()) + b_dec;
        let mse = (x - reconstruction).square().sum_dim(1).mean();
        let mean_l0 =
            || heaviside(z.clone().detach(), p.threshold.clone(), self.bandwidth).sum_dim(1).mean();
        let (sparsity, l0) = match self.penalty {
            Penalty::TargetL0 => {
                let l0 = mean_l0();
                ((l0.clone() / self.target_l0 - 1.0).square() * self.sparsity, l0.inner())
            }
            Penalty::Step => {
                let l0 = mean_l0();
                (l0.clone() * self.sparsity, l0.inner())
            }
            Penalty::Tanh => {
                let norms = decoder_norms(p).unsqueeze::<2>();
                let bent = (features * norms * self.tanh_scale).tanh();
                (bent.sum_dim(1).mean() * self.sparsity, firing.clone().sum_dim(1).mean())
            }
        };
        let total = mse.clone() + sparsity.clone();
        let (total, revive) = match dead.filter(|_| self.revive > 0.0) {
            None => (total.clone(), total.inner().zeros_like()),
            Some(dead) => {
                let weight = Tensor::from_inner(dead) * decoder_norms(p) * self.revive;
                let below = (p.threshold.clone().unsqueeze::<2>() - z).clamp_min(0.0);
                let revive = (below * weight.unsqueeze::<2>()).sum_dim(1).mean();
                (total + revive.clone(), revive.inner())
            }
        };
        let firing = firing.sum_dim(0).squeeze_dim::<1>(0);
        Losses { total, mse: mse.inner(), sparsity: sparsity.inner(), revive, l0, firing }
    }
}

/// ‖dᵢ‖, `[d_sae]`
fn decoder_norms(p: &Parameters) -> Tensor<1> {
    p.w_dec.clone().square().sum_dim(1).sqrt().squeeze_dim::<1>(1)
}
