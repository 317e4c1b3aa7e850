//! Matrix products on the GPU backends by a strategy that is named, where Burn picks its own.
//!
//! Without autotune Burn takes CubeK's plainest accelerated kernel, at an eighth of a Hopper's rate. Which of the others is
//! fastest depends on the card and on the shape; `examples/products.rs` measures it.

#[cfg(feature = "cuda")]
mod cublas;
mod kernels;
mod operand;
mod queued;
mod sample;
#[cfg(feature = "cuda")]
mod stream;

use std::{fmt, str::FromStr};

use burn_cubecl::tensor::CubeTensor;

pub use kernels::{CubeK, Routine, Tiles};
pub(crate) use queued::Product;
pub use queued::{chosen, first_refusal};
pub use sample::{Case, Sample, awkward, check};

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProductStrategy {
    /// What Burn does without autotune.
    Burn,
    /// A kernel of CubeK, on every runtime that has its instructions.
    CubeK(CubeK),
    /// NVIDIA's library, opened at run time.
    CublasLt {
        /// Which of the library's proposals for the shape; 0 is the one it expects to be fastest.
        proposal: u8,
    },
}

/// Proposals of cuBLASLt that have a name.
const PROPOSALS: u8 = 8;

impl ProductStrategy {
    /// Every strategy that has a name, the most promising first.
    pub fn all() -> Vec<Self> {
        let cublas = (0..PROPOSALS).map(|proposal| Self::CublasLt { proposal });
        let cubek = CubeK::all().into_iter().map(Self::CubeK);
        cublas.chain([Self::Burn]).chain(cubek).collect()
    }
}

impl fmt::Display for ProductStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Burn => f.write_str("burn"),
            Self::CubeK(kernel) => kernel.fmt(f),
            Self::CublasLt { proposal: 0 } => f.write_str("cublaslt"),
            Self::CublasLt { proposal } => write!(f, "cublaslt-{proposal}"),
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
    /// No strategy of this name.
    #[error(
        "no strategy for products is called '{0}'; cublaslt, burn, simple-cyclic-cmma and double-tma-mma are, among others"
    )]
    UnknownStrategy(String),
    /// The operands don't make a product of matrices.
    #[error("no product of matrices: {0}")]
    Shapes(String),
    /// The strategy doesn't take such operands, or the device lacks what it needs.
    #[error("{strategy} refuses the product: {reason}")]
    Refused {
        /// Its name.
        strategy: String,
        /// In the words of the library.
        reason: String,
    },
    /// It computed something else.
    #[error(
        "{strategy} is wrong for {case}: off by {error:.2e} of the elements' size, allowed are {allowed:.0e}"
    )]
    Wrong {
        /// Its name.
        strategy: String,
        /// Shape, layouts and types.
        case: String,
        /// The largest difference over the root mean square of the elements.
        error: f64,
        /// The largest difference that rounding explains.
        allowed: f64,
    },
    /// Reading the result, or the work before it, failed.
    #[error("the device failed: {0}")]
    Device(String),
}

/// Queues `output = lhs·rhs` by one strategy; with float32 accumulation, and TF32 factors where both are float32 and the device
/// multiplies those faster.
///
/// # Shapes
/// * `lhs`: `[m, k]`
/// * `rhs`: `[k, n]`, of the same type as `lhs`
/// * `output`: `[m, n]`, overwritten; of the same type or float32
///
/// A transposed factor is one whose strides say so.
///
/// # Errors
/// If the strategy refuses the operands. A kernel that fails to compile says so when the output is read.
pub fn product(
    strategy: ProductStrategy,
    lhs: &CubeTensor,
    rhs: &CubeTensor,
    output: &CubeTensor,
) -> Result<(), ProductError> {
    let layouts = operand::layouts(lhs, rhs, output)?;
    match strategy {
        ProductStrategy::Burn => kernels::launch(None, lhs, rhs, output),
        ProductStrategy::CubeK(kernel) => kernels::launch(Some(kernel), lhs, rhs, output),
        #[cfg(feature = "cuda")]
        ProductStrategy::CublasLt { proposal } => {
            cublas::launch(layouts, proposal, [lhs, rhs, output])
        }
        #[cfg(not(feature = "cuda"))]
        ProductStrategy::CublasLt { .. } => {
            let _ = layouts;
            Err(refused(strategy, "this build has no CUDA"))
        }
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
