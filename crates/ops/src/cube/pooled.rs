//! One kernel that takes the products `h·W_enc` of some rows to their contribution to the pooled features, and one for its backward
//! pass.

use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{Device, Int, Tensor, TensorData},
};
use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::{
    Kernel,
    matrix::{Matrix, address},
    place::{Plan, UNITS, own_row},
    run,
};

/// Consecutive segments of rows, on the device.
#[derive(Clone, Debug)]
pub(crate) struct Segments {
    /// The first row of each segment, followed by the number of rows; `[segments + 1]`.
    bounds: Tensor<1, Int>,
    /// The segment of each row, `[n]`.
    of_rows: Tensor<1, Int>,
}

impl Segments {
    pub fn new(lengths: &[usize], device: &Device) -> Self {
        let (mut bounds, mut of_rows) = (vec![0], Vec::new());
        for (segment, &length) in lengths.iter().enumerate() {
            of_rows.extend(std::iter::repeat_n(segment as i32, length));
            bounds.push(of_rows.len() as i32);
        }
        let ints = |values: Vec<i32>| {
            let shape = [values.len()];
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        Self { bounds: ints(bounds), of_rows: ints(of_rows) }
    }
}

/// Some rows before the activation function. A feature is open where `products + bias` exceeds the threshold.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// `[rows, d_sae]`
    pub products: Tensor<2>,
    pub first_row: usize,
    /// `[d_sae]`
    pub bias: Tensor<1>,
    /// `[d_sae]`
    pub threshold: Tensor<1>,
}

impl Block {
    /// `pooled` plus the contribution of these rows to the means, `[segments, d_sae]` in float32.
    pub fn pool(self, segments: &Segments, pooled: Tensor<2>) -> Tensor<2> {
        let kernel = Pool { first_row: self.first_row };
        let inputs = [
            self.products.into(),
            self.bias.into(),
            self.threshold.into(),
            segments.bounds.clone().into(),
            pooled.into(),
        ];
        let [pooled] = run(kernel, inputs);
        pooled.into()
    }

    /// The gradient of the products, given the gradient of the means, `[segments, d_sae]` in float32.
    pub fn backward(self, segments: &Segments, gradient: Tensor<2>) -> Tensor<2> {
        let rows = self.products.dims()[0];
        let of_rows = segments.of_rows.clone().narrow(0, self.first_row, rows);
        let inputs = [
            self.products.into(),
            self.bias.into(),
            self.threshold.into(),
            segments.bounds.clone().into(),
            of_rows.into(),
            gradient.into(),
        ];
        let [d_products] = run(Spread, inputs);
        d_products.into()
    }
}

#[derive(Clone, Debug)]
struct Pool {
    first_row: usize,
}

impl Kernel<5, 1> for Pool {
    const NAME: &'static str = "fpo::pooled_features";

    fn outputs(&self, [.., pooled]: [&TensorSpec; 5]) -> [TensorSpec; 1] {
        [pooled.clone()]
    }

    fn launch(
        &self,
        [products, bias, threshold, bounds, pooled]: [Matrix; 5],
        [output]: [Matrix; 1],
    ) {
        let (rows, width) = (products.count(), products.width());
        let across = width.div_ceil(UNITS);
        let segments = pooled.count();
        let plan = Plan { group: UNITS, cubes: segments * across };
        let address = address([&products, &pooled]);
        let strides = [products.stride, pooled.stride, output.stride];
        let types = [products.element(), bounds.element()];
        // SAFETY: the kernel keeps to `rows` rows of products, to the segments, and to `width` columns of both.
        unsafe {
            pool::launch_unchecked(
                &products.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                products.argument(),
                bias.argument(),
                threshold.argument(),
                bounds.argument(),
                pooled.argument(),
                output.argument(),
                self.first_row,
                rows,
                width,
                segments,
                across,
                strides[0],
                strides[1],
                strides[2],
                types,
            );
        }
    }
}

/// Each unit computes the mean of one feature over one segment.
#[cube(launch_unchecked, address_type = "dynamic")]
fn pool<F: Float, I: Numeric>(
    products: &[F],
    bias: &[f32],
    threshold: &[f32],
    bounds: &[I],
    pooled: &[f32],
    output: &mut [f32],
    first_row: usize,
    rows: usize,
    width: usize,
    segments: usize,
    across: usize,
    products_stride: usize,
    pooled_stride: usize,
    output_stride: usize,
    #[define(F, I)] _types: [ElemType; 2],
) {
    let segment = CUBE_POS / across;
    let column = CUBE_POS % across * UNITS + UNIT_POS_X as usize;
    if segment < segments && column < width {
        let begin = usize::cast_from(bounds[segment]);
        let end = usize::cast_from(bounds[segment + 1]);
        let (bias, threshold) = (bias[column], threshold[column]);
        let mut sum = 0.0f32;
        for row in max(begin, first_row)..min(end, first_row + rows) {
            let mut z =
                f32::cast_from(products[(row - first_row) * products_stride + column]) + bias;
            if z <= threshold {
                z = 0.0f32;
            }
            sum += z;
        }
        let mean = sum / f32::cast_from(end - begin);
        output[segment * output_stride + column] = pooled[segment * pooled_stride + column] + mean;
    }
}

#[derive(Clone, Debug)]
struct Spread;

impl Kernel<6, 1> for Spread {
    const NAME: &'static str = "fpo::pooled_features_backward";

    fn outputs(&self, [products, ..]: [&TensorSpec; 6]) -> [TensorSpec; 1] {
        [products.clone()]
    }

    fn launch(
        &self,
        [products, bias, threshold, bounds, of_rows, gradient]: [Matrix; 6],
        [output]: [Matrix; 1],
    ) {
        let (rows, width) = (products.count(), products.width());
        let plan = Plan::of_rows(rows, width);
        let address = address([&products, &gradient, &output]);
        let strides = [products.stride, gradient.stride, output.stride];
        let types = [products.element(), bounds.element()];
        // SAFETY: the kernel keeps to `rows` rows of products, to their segments, and to `width` columns of both.
        unsafe {
            spread::launch_unchecked(
                &products.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                products.argument(),
                bias.argument(),
                threshold.argument(),
                bounds.argument(),
                of_rows.argument(),
                gradient.argument(),
                output.argument(),
                rows,
                width,
                strides[0],
                strides[1],
                strides[2],
                plan.group,
                types,
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn spread<F: Float, I: Numeric>(
    products: &[F],
    bias: &[f32],
    threshold: &[f32],
    bounds: &[I],
    of_rows: &[I],
    gradient: &[f32],
    output: &mut [F],
    rows: usize,
    width: usize,
    products_stride: usize,
    gradient_stride: usize,
    output_stride: usize,
    #[comptime] group: usize,
    #[define(F, I)] _types: [ElemType; 2],
) {
    let row = own_row();
    if row < rows {
        let segment = usize::cast_from(of_rows[row]);
        let length = usize::cast_from(bounds[segment + 1]) - usize::cast_from(bounds[segment]);
        let share = 1.0f32 / f32::cast_from(length);
        let first = row * products_stride;
        let gradient_first = segment * gradient_stride;
        let output_first = row * output_stride;
        for i in range_stepped(UNIT_POS_X as usize, width, group) {
            let mut d_product = gradient[gradient_first + i] * share;
            if f32::cast_from(products[first + i]) + bias[i] <= threshold[i] {
                d_product = 0.0f32;
            }
            output[output_first + i] = F::cast_from(d_product);
        }
    }
}
