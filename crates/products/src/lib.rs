//! Matrix products on the GPU backends with an explicit strategy.
//!
//! Without autotune Burn launches CubeK's plainest accelerated kernel, which reaches an eighth of what a Hopper card can do. The
//! fastest strategy depends on the card and the shape; the example `products` measures all of them.
//!
//! # Invariants
//! * Knows no other crate of the workspace: tensors of Burn's GPU backends go in.
//! * Without a feature that compiles a GPU backend in, the crate is empty.
//! * A strategy that doesn't take a shape refuses it; the example with `--check` says whether one computes right.

#![cfg(feature = "cube")]

#[cfg(feature = "cuda")]
mod cublas;
mod kernels;
mod operand;
mod sample;
#[cfg(feature = "cuda")]
mod stream;

use std::{fmt, str::FromStr};

use burn_cubecl::tensor::CubeTensor;

pub use kernels::{CubeK, Routine, Tiles};
pub use sample::{Case, Sample, awkward, check};

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProductStrategy {
    /// Burn's default without autotune.
    Burn,
    /// A kernel of CubeK; works on every runtime that supports its instructions.
    CubeK(CubeK),
    /// NVIDIA's library, loaded at run time.
    CublasLt {
        /// Rank in the library's heuristic for the shape; 0 is the algorithm it expects to be fastest.
        proposal: u8,
        /// Whether float32 operands may be rounded to TF32.
        tf32: bool,
    },
}

/// What becomes of the output's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// They are overwritten.
    Over,
    /// The product is added to them.
    Add,
}

/// How many algorithms of cuBLASLt's heuristic are named.
const PROPOSALS: u8 = 8;

impl ProductStrategy {
    /// All strategies, the most promising first.
    pub fn all() -> Vec<Self> {
        let cublas = (0..PROPOSALS).map(|proposal| Self::CublasLt { proposal, tf32: true });
        let exact = Self::CublasLt { proposal: 0, tf32: false };
        let cubek = CubeK::all().into_iter().map(Self::CubeK);
        cublas.chain([exact, Self::Burn]).chain(cubek).collect()
    }
}

impl fmt::Display for ProductStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Burn => f.write_str("burn"),
            Self::CubeK(kernel) => kernel.fmt(f),
            Self::CublasLt { proposal, tf32 } => {
                f.write_str("cublaslt")?;
                if *proposal > 0 {
                    write!(f, "-{proposal}")?;
                }
                f.write_str(if *tf32 { "" } else { "-float32" })
            }
        }
    }
}

impl FromStr for ProductStrategy {
    type Err = ProductError;

    fn from_str(name: &str) -> Result<Self, ProductError> {
        let found = Self::all().into_iter().find(|strategy| strategy.to_string() == name);
        found.ok_or_else(|| ProductError::UnknownStrategy(name.to_owned()))
    }
}

/// Why a product was not computed.
#[derive(Debug, thiserror::Error)]
pub enum ProductError {
    /// No strategy has this name.
    #[error(
        "unknown product strategy '{0}'; examples are cublaslt, burn, simple-cyclic-cmma and double-tma-mma"
    )]
    UnknownStrategy(String),
    /// Shapes, types or strides of the operands don't fit together.
    #[error("not a matrix product: {0}")]
    Shapes(String),
    /// The strategy doesn't support the operands, or the device lacks a feature.
    #[error("{strategy} can't compute the product: {reason}")]
    Refused {
        /// Name of the strategy.
        strategy: String,
        /// The library's message.
        reason: String,
    },
    /// The result is wrong.
    #[error(
        "{strategy} is wrong for {case}: relative error {error:.2e}, at most {allowed:.0e} is allowed"
    )]
    Wrong {
        /// Name of the strategy.
        strategy: String,
        /// Shapes, layouts and types.
        case: String,
        /// Largest absolute error over the root mean square of the elements.
        error: f64,
        /// The largest error that rounding can explain.
        allowed: f64,
    },
    /// A kernel didn't compile or didn't run.
    #[error("the device failed: {0}")]
    Device(String),
}

/// Queues `output = lhs·rhs`, or `output += lhs·rhs`. Accumulates in float32; float32 operands may be rounded to TF32 where the device
/// supports it.
///
/// # Shapes
/// * `lhs`: `[m, k]`, or `[batch, m, k]`
/// * `rhs`: `[k, n]` or `[batch, k, n]`, of the same type as `lhs`
/// * `output`: `[m, n]` or `[batch, m, n]`; of the same type or float32
///
/// Transposed operands are passed as views, by their strides.
///
/// # Errors
/// If the strategy doesn't support the operands; cuBLASLt alone adds to an output. A kernel that fails to compile is an error when the
/// output is read.
pub fn product(
    strategy: ProductStrategy,
    lhs: &CubeTensor,
    rhs: &CubeTensor,
    output: &CubeTensor,
    write: Write,
) -> Result<(), ProductError> {
    let layouts = operand::layouts(lhs, rhs, output)?;
    let kernel = match strategy {
        ProductStrategy::Burn => None,
        ProductStrategy::CubeK(kernel) => Some(kernel),
        #[cfg(feature = "cuda")]
        ProductStrategy::CublasLt { proposal, tf32 } => {
            let algorithm = cublas::Algorithm { proposal, tf32 };
            return cublas::launch(layouts, algorithm, write, [lhs, rhs, output]);
        }
        #[cfg(not(feature = "cuda"))]
        ProductStrategy::CublasLt { .. } => {
            let _ = layouts;
            return Err(refused(strategy, "this build has no CUDA"));
        }
    };
    match write {
        Write::Over => kernels::launch(kernel, lhs, rhs, output),
        Write::Add => Err(refused(strategy, "it doesn't add to an output")),
    }
}

fn refused(strategy: impl fmt::Display, reason: impl fmt::Display) -> ProductError {
    ProductError::Refused { strategy: strategy.to_string(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_strategy_is_found_by_its_name() {
        let all = ProductStrategy::all();
        for strategy in &all {
            assert_eq!(strategy.to_string().parse::<ProductStrategy>().unwrap(), *strategy);
        }
        let mut names = all.iter().map(ToString::to_string).collect::<Vec<_>>();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len());
    }

    #[test]
    fn an_unknown_name_is_repeated() {
        let error = "double-tam-mma".parse::<ProductStrategy>().unwrap_err().to_string();
        assert!(error.contains("'double-tam-mma'"), "{error}");
    }
}
