//! Products as operations in Burn's fusion queue.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{Device, Shape},
};
use fpo_products::{ProductError, ProductStrategy, product};

use crate::cube::{Kernel, matrix::Matrix};

/// The environment variable that names the strategy for products.
const VARIABLE: &str = "FPO_PRODUCTS";

/// The strategy for products on a device: the one that the environment variable `FPO_PRODUCTS` names, else cuBLASLt on CUDA, where it
/// is several times as fast as any of CubeK's kernels (BENCHMARKS.md), and Burn's own elsewhere.
///
/// # Panics
/// If the variable doesn't name a strategy.
pub(crate) fn strategy_on(device: &Device) -> ProductStrategy {
    static NAMED: OnceLock<Option<ProductStrategy>> = OnceLock::new();
    let named = NAMED.get_or_init(|| {
        let name = std::env::var(VARIABLE).ok()?;
        Some(name.parse().unwrap_or_else(|error: ProductError| panic!("{VARIABLE}: {error}")))
    });
    named.unwrap_or(match is_cuda(device) {
        true => ProductStrategy::CublasLt { proposal: 0 },
        false => ProductStrategy::Burn,
    })
}

#[cfg(feature = "cuda")]
fn is_cuda(device: &Device) -> bool {
    use burn::backend::{CubeDevice, DispatchDevice};
    let device = device.clone().without_autodiff();
    matches!(device.as_dispatch(), DispatchDevice::Cube(CubeDevice::Cuda(_)))
}

#[cfg(not(feature = "cuda"))]
fn is_cuda(_device: &Device) -> bool {
    false
}

/// Why a product fell back to Burn's strategy, such as a library that is missing; told once.
pub fn take_product_refusal() -> Option<String> {
    let mut state = refusal();
    match std::mem::replace(&mut *state, Refusal::Told) {
        Refusal::New(reason) => Some(reason),
        before => {
            *state = before;
            None
        }
    }
}

/// The first fallback of this process.
enum Refusal {
    None,
    New(String),
    Told,
}

fn refusal() -> MutexGuard<'static, Refusal> {
    static REFUSAL: Mutex<Refusal> = Mutex::new(Refusal::None);
    REFUSAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `lhs·rhs` in the type of `lhs`; each input may be stored transposed.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    pub strategy: ProductStrategy,
    pub transposed: [bool; 2],
}

impl Kernel<2, 1> for Product {
    const NAME: &'static str = "fpo::product";

    fn outputs(&self, [lhs, rhs]: [&TensorSpec; 2]) -> [TensorSpec; 1] {
        let rows = lhs.shape[usize::from(self.transposed[0])];
        let columns = rhs.shape[usize::from(!self.transposed[1])];
        [TensorSpec::new(Shape::new([rows, columns]), lhs.dtype)]
    }

    fn launch(&self, inputs: [Matrix; 2], [output]: [Matrix; 1]) {
        let mut factors = inputs.map(Matrix::into_tensor);
        for (factor, transposed) in factors.iter_mut().zip(self.transposed) {
            if transposed {
                factor.meta.swap(0, 1);
            }
        }
        let [lhs, rhs] = &factors;
        match product(self.strategy, lhs, rhs, output.tensor()) {
            Ok(()) => {}
            Err(error @ ProductError::Refused { .. }) => {
                let mut state = refusal();
                if matches!(*state, Refusal::None) {
                    *state = Refusal::New(error.to_string());
                }
                drop(state);
                product(ProductStrategy::Burn, lhs, rhs, output.tensor())
                    .expect("Burn computes every product of matrices");
            }
            // An earlier product was lost, and its output may have been read.
            Err(error) => panic!("{error}"),
        }
    }
}
