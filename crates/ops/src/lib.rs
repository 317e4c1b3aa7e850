//! Tensor operations for preference alignment that Burn lacks or runs slowly.
//!
//! Each file is one operation. It starts with the *definition* by plain tensor operations, which is at once the
//! documentation and the oracle of the tests ([`definition`]). After it may come the same with a backward pass of its own, which
//! forms what is large in blocks and saves little. Last comes the fast path of the CPU backend Flex (feature `flex`). Which path
//! runs is decided by the tensors, never by the caller:
//!
//! | tensors | path |
//! |---|---|
//! | float32 on Flex | its own, with SIMD and all cores |
//! | float64 and half precision on Flex | the blocks, by tensor operations |
//! | float32 and half precision on GPUs (features `cuda`, `wgpu`) | the blocks; between Burn's products the kernels of the folder `cube` for attention weights, for all that is taken of logits, and for pooled features; kernels for `rms_norm`; tensor operations, which Burn fuses, for what is element-wise |
//! | float64 on GPUs | the blocks, by tensor operations |
//!
//! # Invariants
//!
//! * This crate knows no model and no file: tensors in, tensors out.
//! * Every path computes what its definition computes, in values and in gradients; a test holds each to that.
//! * Results don't depend on the number of threads: the blocks are fixed, and partial sums are added in a fixed order.
//! * No graph is recorded for tensors without autodiff; a constant among the inputs costs no gradient.
//! * A wrong shape is a bug of the caller and panics with a message that names the operation and the shapes.
//!
//! # Example
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Device, Int, Tensor};
//!
//! let device = Device::flex().autodiff();
//! let hidden = Tensor::<2>::from_floats([[1.0, 0.0], [0.0, 2.0]], &device).require_grad();
//! let unembedding = Tensor::<2>::from_floats([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], &device);
//! let targets = Tensor::<1, Int>::from_ints([0, 1], &device);
//!
//! let log_probs = fpo_ops::linear_log_probs(hidden.clone(), unembedding, targets, Some(30.0));
//! let gradients = log_probs.sum().backward();
//! assert_eq!(hidden.grad(&gradients).expect("hidden is tracked").dims(), [2, 2]);
//! # }
//! ```

mod adamw;
mod attention;
mod blocked;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
mod geglu;
mod graph;
mod jump_relu;
mod kl;
mod largest;
mod linear;
mod log_probs;
mod pooled;
mod product;
mod rms_norm;
mod rotary;
mod rows;
mod softcap;
mod statistics;
#[cfg(all(test, feature = "flex"))]
mod testing;

pub use adamw::{AdamW, adamw_step};
pub use attention::{AttentionOptions, TextStarts, causal_attention, packed_attention};
pub use geglu::geglu;
pub use jump_relu::{heaviside, jump_relu};
pub use kl::linear_kl;
pub use largest::largest_tensor;
pub use linear::{linear, linear_bf16};
pub use log_probs::linear_log_probs;
pub use pooled::{Encoder, pooled_features};
pub use rms_norm::{at_least_f32, rms_norm};
pub use rotary::rotary;
pub use rows::Rows;
pub use softcap::softcap;
pub use statistics::{TokenStatistics, linear_token_statistics};

/// Matrix products on GPUs with an explicit strategy, and checks of the strategies.
#[cfg(feature = "cube")]
pub mod products {
    pub use crate::cube::products::{
        Case, CubeK, ProductError, ProductStrategy, Routine, Sample, Tiles, awkward, check, chosen,
        first_refusal, product,
    };
}

/// The operations as plain tensor operations, whatever the backend: the oracle for tests and benchmarks.
pub mod definition {
    pub use crate::adamw::definition as adamw_step;
    pub use crate::attention::{
        definition as causal_attention, packed_definition as packed_attention,
    };
    pub use crate::geglu::definition as geglu;
    pub use crate::jump_relu::{
        heaviside_definition as heaviside, jump_relu_definition as jump_relu,
    };
    pub use crate::kl::definition as linear_kl;
    pub use crate::linear::{bf16_definition as linear_bf16, definition as linear};
    pub use crate::log_probs::definition as linear_log_probs;
    pub use crate::pooled::definition as pooled_features;
    pub use crate::rms_norm::definition as rms_norm;
    pub use crate::rotary::definition as rotary;
    pub use crate::softcap::definition as softcap;
    pub use crate::statistics::definition as linear_token_statistics;
}
