//! The encoder of a sparse autoencoder: a linear map and an activation function.

use burn::tensor::{Bool, Tensor};

use crate::{among_largest, matmul, rms_norm::at_least_f32};

/// The encoder of a frozen sparse autoencoder, `f(x) = activation(x̃·W_enc + b_enc)`, where x̃ is x [normalised](Normalization).
#[derive(Clone, Debug)]
pub struct Encoder {
    /// What happens to activations before the linear map.
    pub normalization: Normalization,
    /// `[d_in, d_sae]`
    pub w_enc: Tensor<2>,
    /// `[d_sae]`
    pub b_enc: Tensor<1>,
    /// Turns pre-activations into features.
    pub activation: Activation,
}

impl Encoder {
    /// Width of the activations that it takes.
    pub fn d_in(&self) -> usize {
        self.w_enc.dims()[0]
    }

    /// Number of features.
    pub fn d_sae(&self) -> usize {
        self.w_enc.dims()[1]
    }

    /// Activations `[n, d_in]` → features `[n, d_sae]`.
    pub fn encode(&self, x: Tensor<2>) -> Tensor<2> {
        self.encode_normalized(self.normalization.apply(x))
    }

    /// Normalised activations `[n, d_in]` → features `[n, d_sae]`.
    pub(crate) fn encode_normalized(&self, x: Tensor<2>) -> Tensor<2> {
        let z = matmul(x, self.w_enc.clone()) + self.b_enc.clone().unsqueeze::<2>();
        self.activation.apply(z)
    }

    /// θ `[d_sae]`, if a feature is open exactly where z > θ, whatever the other features do. That is what the fast paths of
    /// pooling compute; None sends them to [`Activation::closed`].
    pub(crate) fn threshold(&self) -> Option<Tensor<1>> {
        match &self.activation {
            Activation::JumpRelu { threshold } => Some(threshold.clone()),
            Activation::Relu => Some(self.b_enc.zeros_like()),
            Activation::TopK { .. } => None,
        }
    }

    /// The same encoder outside any graph, in float32 at least.
    pub(crate) fn frozen(&self) -> Self {
        Self {
            normalization: self.normalization,
            w_enc: at_least_f32(self.w_enc.clone().without_autodiff()),
            b_enc: at_least_f32(self.b_enc.clone().without_autodiff()),
            activation: self.activation.map(|x| at_least_f32(x.without_autodiff())),
        }
    }

    /// Panics unless the shapes fit each other and activations `[n, d_in]`.
    pub(crate) fn check_shapes(&self, operation: &str, x: &Tensor<2>) {
        let ([_, d], d_sae) = (x.dims(), self.d_sae());
        let threshold = self.threshold().map(|threshold| threshold.dims());
        assert!(
            d == self.d_in()
                && self.b_enc.dims() == [d_sae]
                && threshold.is_none_or(|shape| shape == [d_sae]),
            "{operation}: activations {:?}, w_enc {:?}, b_enc {:?} and threshold {threshold:?} don't fit together",
            x.dims(),
            self.w_enc.dims(),
            self.b_enc.dims(),
        );
    }
}

/// What happens to each activation x before the linear map. It isn't linear, so that no weights could take it up. Gradients pass
/// through it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Normalization {
    /// Nothing.
    #[default]
    None,
    /// `(x − μ) / (σ + 1e-5)`, with x's mean μ and its standard deviation σ over `d_in − 1` degrees of freedom.
    LayerNorm,
    /// `x·√d_in / ‖x‖`.
    ConstantNorm,
}

impl Normalization {
    /// Activations `[n, d_in]` → normalised ones.
    pub fn apply(self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::None => x,
            Self::LayerNorm => {
                let (mean, deviation) = moments(&x);
                (x - mean) / (deviation + 1e-5)
            }
            Self::ConstantNorm => {
                let factor = constant_norm_factor(&x);
                x * factor
            }
        }
    }

    /// Takes reconstructions `[n, d_in]` of normalised activations to the scale of the activations `x` themselves.
    pub fn undo(self, reconstruction: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::None => reconstruction,
            Self::LayerNorm => {
                let (mean, deviation) = moments(&x);
                reconstruction * deviation + mean
            }
            Self::ConstantNorm => reconstruction / constant_norm_factor(&x),
        }
    }
}

/// Mean and standard deviation of each row, `[n, 1]`.
fn moments(x: &Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let freedom = x.dims()[1].saturating_sub(1).max(1) as f64;
    let mean = x.clone().mean_dim(1);
    let squares = (x.clone() - mean.clone()).square().sum_dim(1);
    (mean, (squares / freedom).sqrt())
}

/// `√d / ‖x‖` of each row, `[n, 1]`.
fn constant_norm_factor(x: &Tensor<2>) -> Tensor<2> {
    let width = x.dims()[1] as f64;
    // The smallest norm keeps zeros zeros.
    let norm = x.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
    norm.recip() * width.sqrt()
}

/// An activation function. Each of them keeps some pre-activations z as they are and closes the others, that is, sets them to 0:
/// each says which. Thresholds are constants, and gradients reach z only where it is open.
// An encoder holds one: their sizes don't matter.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug)]
pub enum Activation {
    /// `z·1[z > θ]` (JumpReLU, arXiv 2407.14435).
    JumpRelu {
        /// θ, `[d_sae]`
        threshold: Tensor<1>,
    },
    /// `max(z, 0)`.
    Relu,
    /// `max(z, 0)` for the k largest z of a token, 0 for the others (TopK, arXiv 2406.04093).
    TopK {
        /// From 1 to the number of features.
        k: usize,
    },
}

impl Activation {
    /// Which pre-activations `z` `[n, d_sae]` are closed; outside any graph.
    pub(crate) fn closed(&self, z: &Tensor<2>) -> Tensor<2, Bool> {
        let z = z.clone().without_autodiff();
        match self {
            Self::JumpRelu { threshold } => {
                let threshold = threshold.clone().without_autodiff();
                let shape = z.dims();
                z.lower_equal(threshold.unsqueeze::<2>().expand(shape))
            }
            Self::Relu => z.lower_equal_elem(0.0),
            Self::TopK { k } => {
                among_largest(z.clone(), *k).bool_not().bool_or(z.lower_equal_elem(0.0))
            }
        }
    }

    /// Pre-activations → features, `[n, d_sae]`.
    pub fn apply(&self, z: Tensor<2>) -> Tensor<2> {
        let closed = self.closed(&z);
        z.mask_fill(closed, 0.0)
    }

    /// The same function with `f` applied to each of its per-feature parameters, `[d_sae]`: to cast, move or select.
    pub fn map(&self, f: impl Fn(Tensor<1>) -> Tensor<1>) -> Self {
        match self {
            Self::JumpRelu { threshold } => Self::JumpRelu { threshold: f(threshold.clone()) },
            Self::Relu => Self::Relu,
            Self::TopK { k } => Self::TopK { k: *k },
        }
    }
}
