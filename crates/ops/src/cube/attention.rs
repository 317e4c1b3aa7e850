//! From the products `q·kᵀ` of a block of queries to its attention weights in one kernel; another computes the gradient. Which keys
//! a query sees follows from its position: there is no mask in memory.

use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{Int, Tensor},
};
use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::{
    Kernel,
    matrix::{Matrix, address},
    place::{LOWEST, Plan, UNITS, largest_of_group, own_row, sum_of_group},
    run,
    softcap::{score, slope},
};

/// The layout of a block of products `[batch · kv_heads, group · queries, keys]`, and the attention options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub scale: f64,
    pub softcap: Option<f64>,
    pub window: Option<usize>,
    /// Query heads per row of the batch.
    pub heads: usize,
    /// Queries per head in this block.
    pub queries: usize,
    /// The first query's position among the keys.
    pub first_query: usize,
    pub first_key: usize,
    /// Positions per row of the batch for which there are text starts; 0 if each row is one text.
    pub positions: usize,
}

impl Block {
    /// `softmax(mask(softcap(scale · products)))`, in the type of the products. `starts` `[batch · positions]` has the first
    /// position of each position's text; with no positions it isn't read.
    pub fn weights(self, products: Tensor<3>, starts: &Tensor<1, Int>) -> Tensor<3> {
        let [weights] = run(Weights(self), [products.into(), starts.clone().into()]);
        weights.into()
    }

    /// Recomputes the weights p, and returns them with the gradient of the products, given that of the weights:
    /// `p·(dp − Σ dp·p)·(1 − tanh²)·scale`.
    pub fn backward(
        self,
        products: Tensor<3>,
        d_weights: Tensor<3>,
        starts: &Tensor<1, Int>,
    ) -> [Tensor<3>; 2] {
        let inputs = [products.into(), d_weights.into(), starts.clone().into()];
        run(Backward(self), inputs).map(Tensor::from)
    }

    fn arguments(&self) -> SeenLaunch {
        SeenLaunch::new(
            self.heads * self.queries,
            self.queries,
            self.first_query,
            self.first_key,
            // Longer than any text.
            self.window.unwrap_or(u32::MAX as usize / 2),
            self.positions,
            self.scale as f32,
            self.softcap.unwrap_or(1.0) as f32,
        )
    }
}

/// [`Block`] as an argument of the kernels.
#[derive(CubeType, CubeLaunch)]
struct Seen {
    rows_of_text: usize,
    queries: usize,
    first_query: usize,
    first_key: usize,
    window: usize,
    positions: usize,
    scale: f32,
    cap: f32,
}

#[cube]
impl Seen {
    /// The columns that a row's query sees: the first, and the one past the last.
    fn columns<I: Numeric>(&self, row: usize, starts: &[I]) -> (usize, usize) {
        let query = self.first_query + row % self.queries;
        let text = row / self.rows_of_text;
        let mut first = 0usize;
        if self.positions > 0 {
            first = usize::cast_from(starts[text * self.positions + query]);
        }
        if query + 1 > self.window {
            first = max(first, query + 1 - self.window);
        }
        (first - self.first_key, query + 1 - self.first_key)
    }
}

#[derive(Clone, Debug)]
struct Weights(Block);

impl Kernel<2, 1> for Weights {
    const NAME: &'static str = "fpo::attention_weights";

    fn outputs(&self, [products, _]: [&TensorSpec; 2]) -> [TensorSpec; 1] {
        [products.clone()]
    }

    fn launch(&self, [products, starts]: [Matrix; 2], [output]: [Matrix; 1]) {
        let (rows, width) = (products.count(), products.width());
        let plan = Plan::of_rows(rows, width);
        let address = address([&products, &output]);
        let strides = [products.stride, output.stride];
        let types = [products.element(), starts.element()];
        // SAFETY: the kernel only accesses `rows` rows of `width` elements, which these tensors have, and the starts of positions
        // in the batch.
        unsafe {
            weights::launch_unchecked(
                &products.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                products.argument(),
                starts.argument(),
                output.argument(),
                self.0.arguments(),
                rows,
                width,
                strides[0],
                strides[1],
                plan.group,
                self.0.softcap.is_some(),
                types,
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn weights<F: Float, I: Numeric>(
    products: &[F],
    starts: &[I],
    output: &mut [F],
    seen: &Seen,
    rows: usize,
    width: usize,
    products_stride: usize,
    output_stride: usize,
    #[comptime] group: usize,
    #[comptime] capped: bool,
    #[define(F, I)] _types: [ElemType; 2],
) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS);
    let unit = UNIT_POS_X as usize;
    let row = own_row();
    let first = row * products_stride;
    let mut begin = 0usize;
    let mut end = 0usize;
    let mut own_largest = f32::new(LOWEST);
    let mut own_sum = 0.0f32;
    if row < rows {
        let (b, e) = seen.columns::<I>(row, starts);
        begin = b;
        end = e;
        for i in range_stepped(begin + unit, end, group) {
            let score = score(f32::cast_from(products[first + i]), seen.scale, seen.cap, capped);
            if score > own_largest {
                own_sum = own_sum * (own_largest - score).exp() + 1.0f32;
                own_largest = score;
            } else {
                own_sum += (score - own_largest).exp();
            }
        }
    }
    let largest = largest_of_group(own_largest, &mut scratch, group);
    let own_sum = own_sum * (own_largest - largest).exp();
    let sum = sum_of_group(own_sum, &mut scratch, group);
    if row < rows {
        let output_first = row * output_stride;
        for i in range_stepped(unit, width, group) {
            let mut weight = 0.0f32;
            if i >= begin && i < end {
                let score =
                    score(f32::cast_from(products[first + i]), seen.scale, seen.cap, capped);
                weight = (score - largest).exp() / sum;
            }
            output[output_first + i] = F::cast_from(weight);
        }
    }
}

#[derive(Clone, Debug)]
struct Backward(Block);

impl Kernel<3, 2> for Backward {
    const NAME: &'static str = "fpo::attention_weights_backward";

    fn outputs(&self, [products, ..]: [&TensorSpec; 3]) -> [TensorSpec; 2] {
        [products.clone(), products.clone()]
    }

    fn launch(&self, [products, gradient, starts]: [Matrix; 3], [output, d_products]: [Matrix; 2]) {
        let (rows, width) = (products.count(), products.width());
        let plan = Plan::of_rows(rows, width);
        let address = address([&products, &gradient, &output, &d_products]);
        let strides = [products.stride, gradient.stride, output.stride, d_products.stride];
        let types = [products.element(), gradient.element(), starts.element()];
        // SAFETY: as in `Weights`.
        unsafe {
            backward::launch_unchecked(
                &products.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                products.argument(),
                gradient.argument(),
                starts.argument(),
                output.argument(),
                d_products.argument(),
                self.0.arguments(),
                rows,
                width,
                strides[0],
                strides[1],
                strides[2],
                strides[3],
                plan.group,
                self.0.softcap.is_some(),
                types,
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn backward<F: Float, G: Float, I: Numeric>(
    products: &[F],
    gradient: &[G],
    starts: &[I],
    output: &mut [F],
    d_products: &mut [F],
    seen: &Seen,
    rows: usize,
    width: usize,
    products_stride: usize,
    gradient_stride: usize,
    output_stride: usize,
    d_products_stride: usize,
    #[comptime] group: usize,
    #[comptime] capped: bool,
    #[define(F, G, I)] _types: [ElemType; 3],
) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS);
    let unit = UNIT_POS_X as usize;
    let row = own_row();
    let first = row * products_stride;
    let gradient_first = row * gradient_stride;
    let mut begin = 0usize;
    let mut end = 0usize;
    let mut own_largest = f32::new(LOWEST);
    let mut own_sum = 0.0f32;
    // Σ eᶻ·dp, alongside Σ eᶻ.
    let mut own_dot = 0.0f32;
    if row < rows {
        let (b, e) = seen.columns::<I>(row, starts);
        begin = b;
        end = e;
        for i in range_stepped(begin + unit, end, group) {
            let score = score(f32::cast_from(products[first + i]), seen.scale, seen.cap, capped);
            let d_weight = f32::cast_from(gradient[gradient_first + i]);
            if score > own_largest {
                let rescale = (own_largest - score).exp();
                own_sum = own_sum * rescale + 1.0f32;
                own_dot = own_dot * rescale + d_weight;
                own_largest = score;
            } else {
                let weight = (score - own_largest).exp();
                own_sum += weight;
                own_dot += weight * d_weight;
            }
        }
    }
    let largest = largest_of_group(own_largest, &mut scratch, group);
    let rescale = (own_largest - largest).exp();
    let sum = sum_of_group(own_sum * rescale, &mut scratch, group);
    let mean = sum_of_group(own_dot * rescale, &mut scratch, group) / sum;
    if row < rows {
        let output_first = row * output_stride;
        let d_products_first = row * d_products_stride;
        for i in range_stepped(unit, width, group) {
            let mut weight = 0.0f32;
            let mut d_product = 0.0f32;
            if i >= begin && i < end {
                let score =
                    score(f32::cast_from(products[first + i]), seen.scale, seen.cap, capped);
                weight = (score - largest).exp() / sum;
                let d_score = weight * (f32::cast_from(gradient[gradient_first + i]) - mean);
                d_product = d_score * slope(score, seen.scale, seen.cap, capped);
            }
            output[output_first + i] = F::cast_from(weight);
            d_products[d_products_first + i] = F::cast_from(d_product);
        }
    }
}
