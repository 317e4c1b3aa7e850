//! [`rms_norm`](crate::rms_norm) in one kernel, with one kernel for the gradient of x and one for that of the weight.

use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{DType, FloatDType, Shape, Tensor},
};
use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::{
    Kernel,
    matrix::{Matrix, address},
    place::{Plan, UNITS, own_row, sum_of_group},
    run,
};
use crate::{
    graph::{Operation, Plain},
    rms_norm::Gain,
};

/// Rows over which the weight's gradient is summed by one kernel; those of more are cut into pieces, whose sums another one adds.
const WHOLE: usize = 2048;
/// Pieces of the rows, at most.
const PIECES: usize = 64;
/// Columns that a cube sums.
const COLUMNS: usize = 32;
/// Units that share a column.
const LANES: usize = UNITS / COLUMNS;

#[derive(Clone, Debug)]
pub(crate) struct RmsNorm {
    pub gain: Gain,
    pub eps: f64,
}

impl Operation<2> for RmsNorm {
    /// rsqrt(mean(x²) + eps) of each row, `[rows]`.
    type Saved = Plain;

    fn forward(&self, inputs: [Plain; 2]) -> (Plain, Plain) {
        let [output, scales] = run(Normalise { gain: self.gain, eps: self.eps as f32 }, inputs);
        (output, scales)
    }

    fn backward(
        &self,
        [x, weight]: [Plain; 2],
        scales: Plain,
        gradient: Plain,
        [x_wanted, weight_wanted]: [bool; 2],
    ) -> [Option<Plain>; 2] {
        let dtype = Tensor::<1>::from(weight.clone()).dtype();
        let d_weight = weight_wanted.then(|| {
            let inputs = [x.clone(), scales.clone(), gradient.clone()];
            let [sums] = run(SumProducts, inputs);
            let sums = Tensor::<2>::from(sums);
            let sum = if sums.dims()[0] == 1 { sums } else { sums.sum_dim(0) };
            sum.squeeze_dim::<1>(0).cast(FloatDType::from(dtype)).into()
        });
        let d_x = x_wanted.then(|| {
            let differentiate = Differentiate { offset: self.gain.offset() };
            let [d_x] = run(differentiate, [x, weight, scales, gradient]);
            d_x
        });
        [d_x, d_weight]
    }
}

/// x `[…, d]` and weight `[d]` → output `[…, d]`, and scale of each row `[rows]`.
#[derive(Clone, Debug)]
struct Normalise {
    gain: Gain,
    eps: f32,
}

impl Kernel<2, 2> for Normalise {
    const NAME: &'static str = "fpo::rms_norm";

    fn outputs(&self, [x, weight]: [&TensorSpec; 2]) -> [TensorSpec; 2] {
        let rows = x.shape.num_elements() / weight.shape[0].max(1);
        [x.clone(), TensorSpec::new(Shape::new([rows]), DType::F32)]
    }

    fn launch(&self, [x, weight]: [Matrix; 2], [output, scales]: [Matrix; 2]) {
        let (rows, width) = (x.count(), x.width());
        let plan = Plan::of_rows(rows, width);
        let (address, strides) = (address([&x, &output]), [x.stride, output.stride]);
        let types = [x.element(), weight.element()];
        // SAFETY: the kernel only accesses `rows` rows of `width` elements, which these tensors have.
        unsafe {
            normalise::launch_unchecked(
                &x.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                x.argument(),
                weight.argument(),
                output.argument(),
                scales.argument(),
                rows,
                width,
                strides[0],
                strides[1],
                self.gain.offset(),
                self.eps,
                self.gain == Gain::Weight,
                plan.group,
                types,
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn normalise<F: Float, W: Float>(
    x: &[F],
    weight: &[W],
    output: &mut [F],
    scales: &mut [f32],
    rows: usize,
    width: usize,
    x_stride: usize,
    output_stride: usize,
    offset: f32,
    eps: f32,
    #[comptime] rounds: bool,
    #[comptime] group: usize,
    #[define(F, W)] _types: [ElemType; 2],
) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS);
    let row = own_row();
    let x_first = row * x_stride;
    let mut sum = 0.0f32;
    if row < rows {
        for i in range_stepped(UNIT_POS_X as usize, width, group) {
            let x = f32::cast_from(x[x_first + i]);
            sum += x * x;
        }
    }
    let sum = sum_of_group(sum, &mut scratch, group);
    if row < rows {
        let scale = 1.0f32 / (sum / f32::cast_from(width) + eps).sqrt();
        if UNIT_POS_X == 0 {
            scales[row] = scale;
        }
        let first = row * output_stride;
        for i in range_stepped(UNIT_POS_X as usize, width, group) {
            let mut normal = f32::cast_from(x[x_first + i]) * scale;
            if rounds {
                normal = f32::cast_from(F::cast_from(normal));
            }
            output[first + i] = F::cast_from(normal * (offset + f32::cast_from(weight[i])));
        }
    }
}

/// x, weight, scales and the gradient of the output → the gradient of x. With r the scale, n = x·r and h = g·gain:
/// `dx = r·(h − n·mean(h·n))`.
#[derive(Clone, Debug)]
struct Differentiate {
    /// The gain minus the weight.
    offset: f32,
}

impl Kernel<4, 1> for Differentiate {
    const NAME: &'static str = "fpo::rms_norm_backward";

    fn outputs(&self, [x, ..]: [&TensorSpec; 4]) -> [TensorSpec; 1] {
        [x.clone()]
    }

    fn launch(&self, [x, weight, scales, gradient]: [Matrix; 4], [output]: [Matrix; 1]) {
        let (rows, width) = (x.count(), x.width());
        let plan = Plan::of_rows(rows, width);
        let address = address([&x, &gradient, &output]);
        let strides = [x.stride, gradient.stride, output.stride];
        let types = [x.element(), weight.element(), gradient.element()];
        // SAFETY: the kernel only accesses `rows` rows of `width` elements, which these tensors have.
        unsafe {
            differentiate::launch_unchecked(
                &x.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                x.argument(),
                weight.argument(),
                scales.argument(),
                gradient.argument(),
                output.argument(),
                rows,
                width,
                strides[0],
                strides[1],
                strides[2],
                self.offset,
                plan.group,
                types,
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn differentiate<F: Float, W: Float, G: Float>(
    x: &[F],
    weight: &[W],
    scales: &[f32],
    gradient: &[G],
    output: &mut [F],
    rows: usize,
    width: usize,
    x_stride: usize,
    gradient_stride: usize,
    output_stride: usize,
    offset: f32,
    #[comptime] group: usize,
    #[define(F, W, G)] _types: [ElemType; 3],
) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS);
    let row = own_row();
    let x_first = row * x_stride;
    let g_first = row * gradient_stride;
    let mut sum = 0.0f32;
    let mut scale = 0.0f32;
    if row < rows {
        scale = scales[row];
        for i in range_stepped(UNIT_POS_X as usize, width, group) {
            let h = f32::cast_from(gradient[g_first + i]) * (offset + f32::cast_from(weight[i]));
            sum += h * f32::cast_from(x[x_first + i]) * scale;
        }
    }
    let mean = sum_of_group(sum, &mut scratch, group) / f32::cast_from(width);
    if row < rows {
        let first = row * output_stride;
        for i in range_stepped(UNIT_POS_X as usize, width, group) {
            let h = f32::cast_from(gradient[g_first + i]) * (offset + f32::cast_from(weight[i]));
            let normal = f32::cast_from(x[x_first + i]) * scale;
            output[first + i] = F::cast_from(scale * (h - normal * mean));
        }
    }
}

/// x, scales and the gradient g of the output → `Σ g·x·r` over each piece of the rows, `[pieces, d]`; see [`WHOLE`].
#[derive(Clone, Debug)]
struct SumProducts;

impl SumProducts {
    /// Rows per piece.
    fn length(rows: usize) -> usize {
        if rows <= WHOLE { rows.max(1) } else { rows.div_ceil(PIECES) }
    }
}

impl Kernel<3, 1> for SumProducts {
    const NAME: &'static str = "fpo::rms_norm_weight";

    fn outputs(&self, [_, scales, gradient]: [&TensorSpec; 3]) -> [TensorSpec; 1] {
        let rows = scales.shape[0];
        let width = gradient.shape[gradient.shape.num_dims() - 1];
        let pieces = rows.div_ceil(Self::length(rows));
        [TensorSpec::new(Shape::new([pieces, width]), DType::F32)]
    }

    fn launch(&self, [x, scales, gradient]: [Matrix; 3], [output]: [Matrix; 1]) {
        let (rows, width) = (x.count(), x.width());
        let across = width.div_ceil(COLUMNS);
        let plan = Plan { group: COLUMNS, cubes: output.count() * across };
        let address = address([&x, &gradient]);
        let strides = [x.stride, gradient.stride, output.stride];
        let types = [x.element(), gradient.element()];
        // SAFETY: the kernel only accesses `rows` rows of `width` elements, which these tensors have.
        unsafe {
            sum_products::launch_unchecked(
                &x.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                x.argument(),
                scales.argument(),
                gradient.argument(),
                output.argument(),
                rows,
                width,
                Self::length(rows),
                across,
                strides[0],
                strides[1],
                strides[2],
                types,
            );
        }
    }
}

/// The units of a column sum every [`LANES`]th row of a piece each.
#[cube(launch_unchecked, address_type = "dynamic")]
fn sum_products<F: Float, G: Float>(
    x: &[F],
    scales: &[f32],
    gradient: &[G],
    output: &mut [f32],
    rows: usize,
    width: usize,
    length: usize,
    across: usize,
    x_stride: usize,
    gradient_stride: usize,
    output_stride: usize,
    #[define(F, G)] _types: [ElemType; 2],
) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS);
    let piece = CUBE_POS / across;
    let (within, lane) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let column = CUBE_POS % across * COLUMNS + within;
    let first = piece * length;
    let mut sum = 0.0f32;
    if first < rows && column < width {
        for row in range_stepped(first + lane, min(first + length, rows), LANES) {
            let normal = f32::cast_from(x[row * x_stride + column]) * scales[row];
            sum += f32::cast_from(gradient[row * gradient_stride + column]) * normal;
        }
    }
    scratch[lane * COLUMNS + within] = sum;
    sync_cube();
    if lane == 0 && first < rows && column < width {
        let mut total = 0.0f32;
        #[unroll]
        for lane in 0..LANES {
            total += scratch[lane * COLUMNS + within];
        }
        output[piece * output_stride + column] = total;
    }
}
