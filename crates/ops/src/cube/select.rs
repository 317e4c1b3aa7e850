//! The k-th largest element of each row, without sorting it.

use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{Shape, Tensor},
};
use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::{
    Kernel,
    matrix::{Matrix, address},
    place::{Plan, UNITS, own_row, sum_of_group},
    run,
};

/// Rows `[n, m]` → `[n, 1]`. `k` is in `1..=m`.
pub(crate) fn kth_largest(z: Tensor<2>, k: usize) -> Tensor<2> {
    let [output] = run(KthLargest { k }, [z.into()]);
    output.into()
}

#[derive(Clone, Debug)]
struct KthLargest {
    k: usize,
}

impl Kernel<1, 1> for KthLargest {
    const NAME: &'static str = "fpo::kth_largest";

    fn outputs(&self, [z]: [&TensorSpec; 1]) -> [TensorSpec; 1] {
        [TensorSpec::new(Shape::new([z.shape[0], 1]), z.dtype)]
    }

    fn launch(&self, [z]: [Matrix; 1], [output]: [Matrix; 1]) {
        let (rows, width) = (z.count(), z.width());
        let plan = Plan { group: UNITS, cubes: rows };
        let (stride, output_stride, element) = (z.stride, output.stride, z.element());
        // SAFETY: the kernel only accesses `rows` rows, of `width` elements in the input and of one in the output.
        unsafe {
            kth_largest_kernel::launch_unchecked(
                &z.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address([&z, &output]),
                z.argument(),
                output.argument(),
                rows,
                width,
                stride,
                output_stride,
                self.k as f32,
                element,
            );
        }
    }
}

/// Bits in the order of the numbers: of positive ones with the sign set, of negative ones inverted.
#[cube]
fn ordered(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    if bits >> 31 == 0u32 { bits | 0x8000_0000u32 } else { !bits }
}

/// A cube per row. From the highest bit to the lowest, a bit is set if at least k elements are as large then. Counts are exact in
/// float32.
#[cube(launch_unchecked, address_type = "dynamic")]
fn kth_largest_kernel<F: Float>(
    z: &[F],
    output: &mut [F],
    rows: usize,
    width: usize,
    stride: usize,
    output_stride: usize,
    k: f32,
    #[define(F)] _type: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS);
    let row = own_row();
    let mut found = 0u32;
    for step in 0..32u32 {
        let candidate = found | (1u32 << (31u32 - step));
        let mut count = 0.0f32;
        if row < rows {
            for i in range_stepped(UNIT_POS_X as usize, width, UNITS) {
                if ordered(f32::cast_from(z[row * stride + i])) >= candidate {
                    count += 1.0f32;
                }
            }
        }
        if sum_of_group(count, &mut scratch, UNITS) >= k {
            found = candidate;
        }
    }
    if row < rows && UNIT_POS_X == 0 {
        let mut bits = !found;
        if found >> 31 == 1u32 {
            bits = found ^ 0x8000_0000u32;
        }
        output[row * output_stride] = F::cast_from(f32::reinterpret(bits));
    }
}
