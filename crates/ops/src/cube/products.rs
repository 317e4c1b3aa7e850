//! Products as operations in Burn's fusion queue.

use std::{
    ops::Range,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{DType, Device},
};
use burn_cubecl::{
    cubecl::{self, prelude::*},
    ops::numeric::empty_device_dtype,
    tensor::CubeTensor,
};
use fpo_products::{ProductError, ProductStrategy, Write, product};

use super::{
    Kernel,
    matrix::{Matrix, address},
    place::{Plan, own_row},
};

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
        true => ProductStrategy::CublasLt { proposal: 0, tf32: true },
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

/// `lhs·rhs`, matrices or batches of them; each input may be stored transposed.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    pub strategy: ProductStrategy,
    pub transposed: [bool; 2],
    /// That of the inputs, or float32.
    pub result: DType,
}

impl Kernel<2, 1> for Product {
    const NAME: &'static str = "fpo::product";

    fn outputs(&self, [lhs, rhs]: [&TensorSpec; 2]) -> [TensorSpec; 1] {
        let mut shape = lhs.shape.clone();
        let last = shape.num_dims() - 1;
        shape[last - 1] = lhs.shape[last - usize::from(!self.transposed[0])];
        shape[last] = rhs.shape[last - usize::from(self.transposed[1])];
        [TensorSpec::new(shape, self.result)]
    }

    fn launch(&self, inputs: [Matrix; 2], [output]: [Matrix; 1]) {
        let [lhs, rhs] = factors(inputs, self.transposed);
        multiply(self.strategy, [&lhs, &rhs, output.tensor()], Write::Over);
    }
}

/// A matrix in float32, and `lhs·rhs` written over some of its rows or added to them, in place.
#[derive(Clone, Debug)]
pub(crate) struct ProductInto {
    pub strategy: ProductStrategy,
    pub transposed: [bool; 2],
    pub rows: Range<usize>,
    pub write: Write,
}

impl Kernel<3, 1> for ProductInto {
    const NAME: &'static str = "fpo::product_into";
    const IN_PLACE: bool = true;

    fn outputs(&self, [whole, ..]: [&TensorSpec; 3]) -> [TensorSpec; 1] {
        [whole.clone()]
    }

    fn launch(&self, [_, lhs, rhs]: [Matrix; 3], [whole]: [Matrix; 1]) {
        let [lhs, rhs] = factors([lhs, rhs], self.transposed);
        let rows = whole.rows(self.rows.clone());
        multiply(self.strategy, [&lhs, &rhs, &rows], self.write);
    }
}

/// The matrices that are multiplied, as views of what is stored.
fn factors(stored: [Matrix; 2], transposed: [bool; 2]) -> [CubeTensor; 2] {
    let mut factors = stored.map(Matrix::into_tensor);
    for (factor, transposed) in factors.iter_mut().zip(transposed) {
        if transposed {
            let last = factor.meta.shape().num_dims() - 1;
            factor.meta.swap(last - 1, last);
        }
    }
    factors
}

/// `output = lhs·rhs` or `output += lhs·rhs`; by Burn's strategy where the chosen one refuses.
fn multiply(strategy: ProductStrategy, [lhs, rhs, output]: [&CubeTensor; 3], write: Write) {
    match product(strategy, lhs, rhs, output, write) {
        Ok(()) => {}
        Err(error @ ProductError::Refused { .. }) => {
            let mut state = refusal();
            if matches!(*state, Refusal::None) {
                *state = Refusal::New(error.to_string());
            }
            drop(state);
            let by_burn = |output: &CubeTensor| {
                product(ProductStrategy::Burn, lhs, rhs, output, Write::Over)
                    .expect("Burn computes every product of matrices");
            };
            match write {
                Write::Over => by_burn(output),
                Write::Add => {
                    let (client, device) = (output.client.clone(), output.device.clone());
                    let shape = output.meta.shape().clone();
                    let more = empty_device_dtype(client, device, shape, output.dtype);
                    by_burn(&more);
                    add_in_place(&Matrix::new(more), &Matrix::new(output.clone()));
                }
            }
        }
        // An earlier product was lost, and its output may have been read.
        Err(error) => panic!("{error}"),
    }
}

/// `sum += more`, both in float32.
fn add_in_place(more: &Matrix, sum: &Matrix) {
    let (rows, width) = (sum.count(), sum.width());
    let plan = Plan::of_rows(rows, width);
    // SAFETY: the kernel only accesses `rows` rows of `width` elements, which both have.
    unsafe {
        add::launch_unchecked(
            &sum.client(),
            plan.cube_count(),
            plan.cube_dim(),
            address([more, sum]),
            more.clone().argument(),
            sum.clone().argument(),
            rows,
            width,
            more.stride,
            sum.stride,
            plan.group,
        );
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn add(
    more: &[f32],
    sum: &mut [f32],
    rows: usize,
    width: usize,
    more_stride: usize,
    sum_stride: usize,
    #[comptime] group: usize,
) {
    let row = own_row();
    if row < rows {
        for i in range_stepped(UNIT_POS_X as usize, width, group) {
            sum[row * sum_stride + i] += more[row * more_stride + i];
        }
    }
}
