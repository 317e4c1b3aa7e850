//! Tensor operations for preference alignment that Burn lacks or runs slowly.
//!
//! Each file is one operation. It starts with the *definition* in plain tensor operations, which is both the documentation and
//! the oracle of the tests ([`definition`]). Then there may be a *blocked* version with its own backward pass, which computes
//! large intermediate tensors block by block and saves little for the backward pass. Last comes the fast path for the CPU backend
//! Flex (feature `flex`). The tensors decide which path runs, never the caller:
//!
//! | tensors | path |
//! |---|---|
//! | float32 on Flex | the fast path, with SIMD on all cores |
//! | float64 and half precision on Flex | blocked, in tensor operations |
//! | float32 and half precision on GPUs (features `cuda`, `wgpu`) | blocked, with Burn's matrix products and the kernels in `cube` between them (attention weights, everything computed from logits, pooled features); a kernel for `rms_norm`, `rotary`, `geglu`, `swiglu`, `kth_largest`, `add_rows` and `segment_sums`, and for several parameters in `adamw_steps` and `sums_of_squares`; tensor operations, which Burn fuses, for other element-wise operations |
//! | float64 on GPUs | blocked, in tensor operations |
//!
//! # Invariants
//!
//! * This crate knows no model and no file: tensors in, tensors out.
//! * Every path computes what its definition computes, values and gradients; a test checks each of them.
//! * Results don't depend on the number of threads: blocks are fixed, and partial sums are added in a fixed order.
//! * No graph is recorded for tensors without autodiff, and no gradient is computed for constant inputs.
//! * A wrong shape is a bug in the caller: it panics with a message that names the operation and the shapes.
//! * Every operation says to [`profile`] that it begins, with the FLOPs of its products.
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

// With no backend compiled in only the definitions can run, and everything else is never instantiated.
#![cfg_attr(not(any(feature = "flex", feature = "cube")), allow(dead_code, unused_variables))]

mod adamw;
mod attention;
mod blocked;
mod clip;
#[cfg(feature = "cube")]
mod cube;
mod dropout;
mod encoder;
#[cfg(feature = "flex")]
mod flex;
mod gated;
mod graph;
mod joined;
mod jump_relu;
mod kl;
mod largest;
mod linear;
mod log_probs;
mod matmul;
#[cfg(all(test, feature = "flex"))]
#[path = "../tests/ops/numbers.rs"]
mod numbers;
mod pooled;
mod product;
pub mod profile;
mod rms_norm;
mod rotary;
mod rows;
mod seed;
mod segments;
mod softcap;
mod squares;
mod statistics;
mod table;
#[cfg(all(test, feature = "flex"))]
mod testing;
mod top_k;

pub use adamw::{AdamW, adamw_step, adamw_steps};
pub use attention::{
    AttentionOptions, FlatRows, TextStarts, causal_attention, flat_attention, packed_attention,
};
pub use clip::Clip;
pub use dropout::{Dropout, dropout};
pub use encoder::{Activation, Encoder, Normalization};
pub use gated::{geglu, swiglu};
pub use joined::joined;
pub use jump_relu::{heaviside, jump_relu};
pub use kl::linear_kl;
pub use largest::largest_tensor;
pub use linear::{linear, linear_bf16, linear_of, linear_of_bf16};
pub use log_probs::linear_log_probs;
pub use matmul::{matmul, matmul_bf16};
pub use pooled::pooled_features;
pub use rms_norm::{Gain, at_least_f32, at_least_f32_type, rms_norm};
pub use rotary::rotary;
pub use rows::Rows;
pub use seed::seed;
pub use segments::segment_sums;
pub use softcap::softcap;
pub use squares::sums_of_squares;
pub use statistics::{TokenStatistics, linear_token_statistics};
pub use table::{add_rows, select_rows};
pub use top_k::{among_largest, kth_largest};

#[cfg(feature = "cube")]
pub use cube::products::take_product_refusal;

/// No GPU backend is compiled in, so no product was refused.
#[cfg(not(feature = "cube"))]
pub fn take_product_refusal() -> Option<String> {
    None
}

/// The operations in plain tensor operations, on any backend: the oracle of tests and benchmarks.
pub mod definition {
    pub use crate::adamw::definition as adamw_step;
    pub use crate::attention::flat::definition as flat_attention;
    pub use crate::attention::{
        definition as causal_attention, packed_definition as packed_attention,
    };
    pub use crate::dropout::definition as dropout;
    pub use crate::gated::{definition as geglu, swiglu_definition as swiglu};
    pub use crate::jump_relu::{
        heaviside_definition as heaviside, jump_relu_definition as jump_relu,
    };
    pub use crate::kl::definition as linear_kl;
    pub use crate::linear::{bf16_definition as linear_bf16, definition as linear};
    pub use crate::log_probs::definition as linear_log_probs;
    pub use crate::matmul::{bf16_definition as matmul_bf16, definition as matmul};
    pub use crate::pooled::definition as pooled_features;
    pub use crate::rms_norm::definition as rms_norm;
    pub use crate::rotary::definition as rotary;
    pub use crate::seed::definition as seed;
    pub use crate::segments::definition as segment_sums;
    pub use crate::softcap::definition as softcap;
    pub use crate::squares::definition as sums_of_squares;
    pub use crate::statistics::definition as linear_token_statistics;
    pub use crate::table::definition as add_rows;
    pub use crate::top_k::{definition as among_largest, kth_definition as kth_largest};
}
