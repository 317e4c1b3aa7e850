//! The encoder of a sparse autoencoder: a linear map and an activation function.

use burn::tensor::{Bool, Tensor};

use crate::rms_norm::at_least_f32;

/// The encoder of a frozen sparse autoencoder, `f(x) = activation(x·W_enc + b_enc)`.
#[derive(Clone, Debug)]
pub struct Encoder {
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
        let z = x.matmul(self.w_enc.clone()) + self.b_enc.clone().unsqueeze::<2>();
        self.activation.apply(z)
    }

    /// The same encoder outside any graph, in float32 at least.
    pub(crate) fn frozen(&self) -> Self {
        Self {
            w_enc: at_least_f32(self.w_enc.clone().without_autodiff()),
            b_enc: at_least_f32(self.b_enc.clone().without_autodiff()),
            activation: self.activation.map(|x| at_least_f32(x.without_autodiff())),
        }
    }

    /// Panics unless the shapes fit each other and activations `[n, d_in]`.
    pub(crate) fn check_shapes(&self, operation: &str, x: &Tensor<2>) {
        let ([_, d], d_sae) = (x.dims(), self.d_sae());
        let threshold = self.activation.threshold().map(|threshold| threshold.dims());
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

/// An activation function. Each of them keeps some pre-activations z as they are and closes the others, that is, sets them to 0:
/// each says which. Thresholds are constants, and gradients reach z only where it is open.
#[derive(Clone, Debug)]
pub enum Activation {
    /// `z·1[z > θ]` (JumpReLU, arXiv 2407.14435).
    JumpRelu {
        /// θ, `[d_sae]`
        threshold: Tensor<1>,
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
        }
    }

    /// Pre-activations → features, `[n, d_sae]`.
    pub fn apply(&self, z: Tensor<2>) -> Tensor<2> {
        let closed = self.closed(&z);
        z.mask_fill(closed, 0.0)
    }

    /// θ `[d_sae]`, if a feature is open exactly where z > θ, whatever the other features do. That is what the fast paths of
    /// pooling compute; None sends them to [`Self::closed`].
    pub(crate) fn threshold(&self) -> Option<&Tensor<1>> {
        match self {
            Self::JumpRelu { threshold } => Some(threshold),
        }
    }

    /// The same function with `f` applied to each of its per-feature parameters, `[d_sae]`: to cast, move or select.
    pub fn map(&self, f: impl Fn(Tensor<1>) -> Tensor<1>) -> Self {
        match self {
            Self::JumpRelu { threshold } => Self::JumpRelu { threshold: f(threshold.clone()) },
        }
    }
}
