//! The training loss of an autoencoder: reconstruction, sparsity, and what brings dead features back.
//!
//! Sources: arXiv 2407.14435, equations 9 to 12, for JumpReLU; Anthropic's circuits update of January 2025, as implemented in
//! SAELens 6, for the tanh penalty and the pre-activation loss; arXiv 2406.04093, appendix A.2, for TopK and its auxiliary loss;
//! arXiv 2412.06410 for BatchTopK.

use burn::tensor::Tensor;
use fpo_ops::{among_largest, heaviside, jump_relu};

/// The activation function in training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// z · 1\[z > θ\], with trained thresholds.
    #[default]
    #[serde(rename = "jumprelu")]
    JumpRelu,
    /// max(z, 0), for the L0* largest z of each token.
    #[serde(rename = "topk")]
    TopK,
    /// max(z, 0), for the L0* · tokens largest z of a batch. When training ends it becomes a JumpReLU, with the mean of the
    /// batches' smallest activations as the threshold of all features.
    #[serde(rename = "batch-topk")]
    BatchTopK,
    /// max(z, 0).
    Relu,
}

/// The sparsity term of the loss, which TopK and BatchTopK do without. L0 is the number of active features of a token.
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
    /// λ · E Σᵢ fᵢ · ‖dᵢ‖.
    L1,
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
            Self::Float32 => fpo_ops::matmul(a, b),
            Self::Bfloat16 => fpo_ops::matmul_bf16(a, b),
        }
    }
}

/// The constants of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// The activation function.
    pub kind: Kind,
    /// The sparsity term.
    pub penalty: Penalty,
    /// λ, the weight of the sparsity term.
    pub sparsity: f64,
    /// L0*, for [`Penalty::TargetL0`], TopK and BatchTopK.
    pub target_l0: f64,
    /// c, for [`Penalty::Tanh`].
    pub tanh_scale: f64,
    /// ε, the width of the straight-through estimator's kernel.
    pub bandwidth: f64,
    /// Weight of what brings dead features back. For JumpReLU and ReLU it is a pull on them, E Σ over dead i of
    /// relu(θᵢ − zᵢ) · ‖dᵢ‖. For TopK and BatchTopK it is the error with which the d_in / 2 largest z of dead features
    /// reconstruct what the others left: min(1, dead / (d_in / 2)) · E ‖(x − x̂) − z_dead · W_dec‖².
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
    /// θ, `[d_sae]`: trained for JumpReLU, an estimate for BatchTopK, and unused otherwise.
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
    /// What brings dead features back, times its weight.
    pub revive: Tensor<1>,
    /// E L0: the mean number of active features per token.
    pub l0: Tensor<1>,
    /// The number of tokens that each feature was active on, `[d_sae]`.
    pub firing: Tensor<1>,
    /// The features, `[tokens, d_sae]`, outside the graph.
    pub features: Tensor<2>,
}

impl Objective {
    /// The loss on activations `[tokens, d_in]`. `dead` `[d_sae]` is 1 for dead features and 0 for others.
    ///
    /// θ gets its gradients from the straight-through estimator with a rectangle kernel of width ε; z gets none from it.
    pub fn losses(&self, p: &Parameters, x: Tensor<2>, dead: Option<Tensor<1>>) -> Losses {
        let b_dec = p.b_dec.clone().unsqueeze::<2>();
        let z = self.compute.product(x.clone() - b_dec.clone(), p.w_enc.clone());
        let z = z + p.b_enc.clone().unsqueeze::<2>();
        let features = self.features(&z, p);
        let plain = features.clone().inner();
        let firing = plain.clone().greater_scalar(0.0).float();
        let reconstruction = self.compute.product(features.clone(), p.w_dec.clone()) + b_dec;
        let error = x - reconstruction;
        let mse = error.clone().square().sum_dim(1).mean();
        let l0 = firing.clone().sum_dim(1).mean();
        let sparsity = self.sparsity_term(p, &z, features);
        let total = match &sparsity {
            Some(sparsity) => mse.clone() + sparsity.clone(),
            None => mse.clone(),
        };
        let none = mse.clone().inner().zeros_like();
        let dead = dead.filter(|_| self.revive > 0.0);
        let (total, revive) = match dead.and_then(|dead| self.revival(p, z, error, dead)) {
            None => (total, none.clone()),
            Some(revive) => (total + revive.clone(), revive.inner()),
        };
        Losses {
            total,
            mse: mse.inner(),
            sparsity: sparsity.map_or(none, Tensor::inner),
            revive,
            l0,
            firing: firing.sum_dim(0).squeeze_dim::<1>(0),
            features: plain,
        }
    }

    /// Pre-activations → features, `[tokens, d_sae]`.
    fn features(&self, z: &Tensor<2>, p: &Parameters) -> Tensor<2> {
        let open = match self.kind {
            Kind::JumpRelu => return jump_relu(z.clone(), p.threshold.clone(), self.bandwidth),
            Kind::Relu => return z.clone().clamp_min(0.0),
            Kind::TopK => among_largest(z.clone().inner(), self.target_l0.round() as usize),
            Kind::BatchTopK => {
                let [tokens, d_sae] = z.dims();
                let most = (self.target_l0 * tokens as f64) as usize;
                let flat = z.clone().inner().reshape([1, tokens * d_sae]);
                among_largest(flat, most.max(1)).reshape([tokens, d_sae])
            }
        };
        let negative = z.clone().inner().lower_equal_elem(0.0);
        z.clone().mask_fill(open.bool_not().bool_or(negative), 0.0)
    }

    /// None where the activation function itself makes features sparse.
    fn sparsity_term(
        &self,
        p: &Parameters,
        z: &Tensor<2>,
        features: Tensor<2>,
    ) -> Option<Tensor<1>> {
        if matches!(self.kind, Kind::TopK | Kind::BatchTopK) {
            return None;
        }
        let mean_l0 =
            || heaviside(z.clone().detach(), p.threshold.clone(), self.bandwidth).sum_dim(1).mean();
        let norms = || decoder_norms(p).unsqueeze::<2>();
        let term = match self.penalty {
            Penalty::TargetL0 => (mean_l0() / self.target_l0 - 1.0).square(),
            Penalty::Step => mean_l0(),
            Penalty::Tanh => (features * norms() * self.tanh_scale).tanh().sum_dim(1).mean(),
            Penalty::L1 => (features * norms()).sum_dim(1).mean(),
        };
        Some(term * self.sparsity)
    }

    /// The loss that brings `dead` features back; None if there are none to bring back.
    fn revival(
        &self,
        p: &Parameters,
        z: Tensor<2>,
        error: Tensor<2>,
        dead: Tensor<1>,
    ) -> Option<Tensor<1>> {
        match self.kind {
            Kind::JumpRelu | Kind::Relu => {
                let weight = Tensor::from_inner(dead) * decoder_norms(p) * self.revive;
                let below = (p.threshold.clone().unsqueeze::<2>() - z).clamp_min(0.0);
                Some((below * weight.unsqueeze::<2>()).sum_dim(1).mean())
            }
            Kind::TopK | Kind::BatchTopK => {
                let most = p.w_dec.dims()[1].div_euclid(2).max(1);
                let found = dead.clone().sum().into_scalar::<f64>() as usize;
                if found == 0 {
                    return None;
                }
                let shape = z.dims();
                let alive = dead.lower_elem(0.5).unsqueeze::<2>().expand(shape);
                let candidates = z.clone().inner().mask_fill(alive, f64::NEG_INFINITY);
                let closed = among_largest(candidates, found.min(most)).bool_not();
                let rest = Tensor::from_inner(error.inner());
                let left = self.compute.product(z.mask_fill(closed, 0.0), p.w_dec.clone()) - rest;
                let scale = (found as f64 / most as f64).min(1.0);
                Some(left.square().sum_dim(1).mean() * (self.revive * scale))
            }
        }
    }
}

/// ‖dᵢ‖, `[d_sae]`
fn decoder_norms(p: &Parameters) -> Tensor<1> {
    p.w_dec.clone().square().sum_dim(1).sqrt().squeeze_dim::<1>(1)
}
