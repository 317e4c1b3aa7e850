//! Products as operations in Burn's fusion queue.

use std::sync::{Mutex, OnceLock};

use burn::{backend::fusion::custom::TensorSpec, tensor::Shape};
use fpo_products::{ProductError, ProductStrategy, product};

use crate::cube::{Kernel, matrix::Matrix};

/// The environment variable that names the strategy for products.
const VARIABLE: &str = "FPO_PRODUCTS";

/// The strategy for the products of linear maps and of the head: that of the environment variable `FPO_PRODUCTS`, or
/// Burn's if not set.
///
/// # Panics
/// If the variable doesn't name a strategy.
pub fn chosen() -> ProductStrategy {
    static CHOSEN: OnceLock<ProductStrategy> = OnceLock::new();
    *CHOSEN.get_or_init(|| match std::env::var(VARIABLE) {
        Err(_) => ProductStrategy::Burn,
        Ok(name) => {
            name.parse().unwrap_or_else(|error: ProductError| panic!("{VARIABLE}: {error}"))
        }
    })
}

/// Why a product fell back to Burn's strategy; the first time only.
pub fn first_refusal() -> Option<String> {
    refusal().clone()
}

fn refusal() -> std::sync::MutexGuard<'static, Option<String>> {
    static REFUSAL: Mutex<Option<String>> = Mutex::new(None);
    REFUSAL.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
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
                refusal().get_or_insert_with(|| error.to_string());
                product(ProductStrategy::Burn, lhs, rhs, output.tensor())
                    .expect("Burn computes every product of matrices");
            }
            // An earlier product was lost, and its output may have been read.
            Err(error) => panic!("{error}"),
        }
    }
}
