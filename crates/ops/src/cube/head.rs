//! From blocks of products `h·Wᵀ` to a summary of each row's softmax over the whole vocabulary, in one pass over each block; a
//! second kernel computes the gradient of the products.

use std::ops::Range;

use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{DType, Device, Int, Tensor, TensorData},
};
use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::{
    Kernel,
    matrix::{Matrix, address},
    place::{LOWEST, Plan, UNITS, largest_of_group, own_row, sum_of_group},
    run,
    softcap::{score, slope},
};
use crate::blocked::Head;

/// A summary of the logits for each block of rows. `targets` `[n]` are those of all rows.
pub(crate) fn summaries(head: &Head, targets: &Tensor<1, Int>) -> impl Iterator<Item = Summary> {
    head.row_blocks().map(move |rows| {
        let targets = targets.clone().narrow(0, rows.start, rows.len());
        let none = Summary::new(rows.len(), &targets.device());
        head.token_blocks().fold(none, |summary, tokens| {
            let block = Block::new(head.products(&rows, &tokens), head.softcap, &tokens);
            summary.update(block, &targets)
        })
    })
}

/// A block of products, `[rows, tokens]`. Logits are `softcap(products)`.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    products: Tensor<2>,
    softcap: Option<f64>,
    first_token: usize,
}

/// Running sums over the logits of some rows.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    /// `[5, rows]`: the largest logit m, `Σ eᶻ` with z = logit − m, `Σ eᶻ·logit`, the target's logit, and the token of m.
    state: Tensor<2>,
}

impl Summary {
    /// The summary of no logits.
    fn new(rows: usize, device: &Device) -> Self {
        let state = TensorData::from([[LOWEST], [0.0], [0.0], [0.0], [0.0]]);
        Self { state: Tensor::<2>::from_data(state, (device, DType::F32)).expand([5, rows]) }
    }

    /// Adds a block. `targets` `[rows]` are those of its rows.
    fn update(self, block: Block, targets: &Tensor<1, Int>) -> Self {
        let kernel = Summarise { softcap: block.softcap, first_token: block.first_token };
        let [state] =
            run(kernel, [block.products.into(), targets.clone().into(), self.state.into()]);
        Self { state: state.into() }
    }

    fn line(&self, i: usize) -> Tensor<1> {
        self.state.clone().narrow(0, i, 1).squeeze_dim(0)
    }

    /// log Σ exp of the logits, `[rows]`.
    pub fn log_sum(&self) -> Tensor<1> {
        self.line(0) + self.line(1).log()
    }

    /// The mean of the logits under their own distribution, `[rows]`.
    pub fn mean(&self) -> Tensor<1> {
        self.line(2) / self.line(1)
    }

    /// The target's logit, `[rows]`.
    pub fn target(&self) -> Tensor<1> {
        self.line(3)
    }

    /// The token of the largest logit (the first on ties), `[rows]`. Token ids are exact in float32.
    pub fn largest_token(&self) -> Tensor<1, Int> {
        self.line(4).int()
    }
}

impl Block {
    /// Products `[rows, tokens]` for these tokens.
    pub fn new(products: Tensor<2>, softcap: Option<f64>, tokens: &Range<usize>) -> Self {
        Self { products, softcap, first_token: tokens.start }
    }

    /// The gradient of the products, given that of the rows' log-probabilities: `g·(1[v = target] − p_v)·(1 − tanh²)`. `targets`,
    /// `log_sums` and `gradient` are `[rows]`.
    pub fn backward(
        self,
        targets: Tensor<1, Int>,
        log_sums: Tensor<1>,
        gradient: Tensor<1>,
    ) -> Tensor<2> {
        let kernel = Differentiate { softcap: self.softcap, first_token: self.first_token };
        let inputs = [self.products.into(), targets.into(), log_sums.into(), gradient.into()];
        let [d_products] = run(kernel, inputs);
        d_products.into()
    }
}

#[derive(Clone, Debug)]
struct Summarise {
    softcap: Option<f64>,
    first_token: usize,
}

impl Kernel<3, 1> for Summarise {
    const NAME: &'static str = "fpo::summarise_logits";

    fn outputs(&self, [_, _, state]: [&TensorSpec; 3]) -> [TensorSpec; 1] {
        [state.clone()]
    }

    fn launch(&self, [products, targets, state]: [Matrix; 3], [output]: [Matrix; 1]) {
        let (rows, width) = (products.count(), products.width());
        let plan = Plan::of_rows(rows, width);
        let address = address([&products, &output]);
        let strides = [products.stride, state.stride, output.stride];
        let types = [products.element(), targets.element()];
        // SAFETY: the kernel only accesses `rows` rows of `width` elements, which the products have, and five rows of `rows`
        // elements, which the states have.
        unsafe {
            summarise::launch_unchecked(
                &products.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                products.argument(),
                targets.argument(),
                state.argument(),
                output.argument(),
                rows,
                width,
                strides[0],
                strides[1],
                strides[2],
                self.first_token,
                self.softcap.unwrap_or(1.0) as f32,
                plan.group,
                self.softcap.is_some(),
                types,
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn summarise<F: Float, I: Numeric>(
    products: &[F],
    targets: &[I],
    state: &[f32],
    output: &mut [f32],
    rows: usize,
    width: usize,
    products_stride: usize,
    state_stride: usize,
    output_stride: usize,
    first_token: usize,
    cap: f32,
    #[comptime] group: usize,
    #[comptime] capped: bool,
    #[define(F, I)] _types: [ElemType; 2],
) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS);
    let unit = UNIT_POS_X as usize;
    let row = own_row();
    let first = row * products_stride;
    let mut own_largest = f32::new(LOWEST);
    let mut own_place = 0usize;
    let mut own_sum = 0.0f32;
    let mut own_weighted = 0.0f32;
    if row < rows {
        for i in range_stepped(unit, width, group) {
            let logit = score(f32::cast_from(products[first + i]), 1.0f32, cap, capped);
            if logit > own_largest {
                let rescale = (own_largest - logit).exp();
                own_sum = own_sum * rescale + 1.0f32;
                own_weighted = own_weighted * rescale + logit;
                own_largest = logit;
                own_place = i;
            } else {
                let weight = (logit - own_largest).exp();
                own_sum += weight;
                own_weighted += weight * logit;
            }
        }
    }
    let largest = largest_of_group(own_largest, &mut scratch, group);
    let rescale = (own_largest - largest).exp();
    let sum = sum_of_group(own_sum * rescale, &mut scratch, group);
    let weighted = sum_of_group(own_weighted * rescale, &mut scratch, group);
    // The first on ties: the maximum of the negated positions.
    let mut candidate = f32::new(LOWEST);
    if own_largest == largest {
        candidate = 0.0f32 - f32::cast_from(own_place);
    }
    let place = 0.0f32 - largest_of_group(candidate, &mut scratch, group);
    if row < rows && unit == 0 {
        let before = state[row];
        let total = max(before, largest);
        let of_before = (before - total).exp();
        let of_these = (largest - total).exp();
        output[row] = total;
        output[output_stride + row] = state[state_stride + row] * of_before + sum * of_these;
        output[2 * output_stride + row] =
            state[2 * state_stride + row] * of_before + weighted * of_these;
        let mut target_logit = state[3 * state_stride + row];
        let target = usize::cast_from(targets[row]);
        if target >= first_token && target < first_token + width {
            let product = f32::cast_from(products[first + target - first_token]);
            target_logit = score(product, 1.0f32, cap, capped);
        }
        output[3 * output_stride + row] = target_logit;
        let mut largest_token = state[4 * state_stride + row];
        if largest > before {
            largest_token = place + f32::cast_from(first_token);
        }
        output[4 * output_stride + row] = largest_token;
    }
}

#[derive(Clone, Debug)]
struct Differentiate {
    softcap: Option<f64>,
    first_token: usize,
}

impl Kernel<4, 1> for Differentiate {
    const NAME: &'static str = "fpo::log_probs_backward";

    fn outputs(&self, [products, ..]: [&TensorSpec; 4]) -> [TensorSpec; 1] {
        [products.clone()]
    }

    fn launch(&self, [products, targets, log_sums, gradient]: [Matrix; 4], [output]: [Matrix; 1]) {
        let (rows, width) = (products.count(), products.width());
        let plan = Plan::of_rows(rows, width);
        let address = address([&products, &output]);
        let strides = [products.stride, output.stride];
        let types = [products.element(), targets.element()];
        // SAFETY: the kernel only accesses `rows` rows of `width` elements, which these tensors have.
        unsafe {
            differentiate::launch_unchecked(
                &products.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                products.argument(),
                targets.argument(),
                log_sums.argument(),
                gradient.argument(),
                output.argument(),
                rows,
                width,
                strides[0],
                strides[1],
                self.first_token,
                self.softcap.unwrap_or(1.0) as f32,
                plan.group,
                self.softcap.is_some(),
                types,
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn differentiate<F: Float, I: Numeric>(
    products: &[F],
    targets: &[I],
    log_sums: &[f32],
    gradient: &[f32],
    output: &mut [F],
    rows: usize,
    width: usize,
    products_stride: usize,
    output_stride: usize,
    first_token: usize,
    cap: f32,
    #[comptime] group: usize,
    #[comptime] capped: bool,
    #[define(F, I)] _types: [ElemType; 2],
) {
    let row = own_row();
    if row < rows {
        let first = row * products_stride;
        let output_first = row * output_stride;
        let target = usize::cast_from(targets[row]);
        let log_sum = log_sums[row];
        let g = gradient[row];
        for i in range_stepped(UNIT_POS_X as usize, width, group) {
            let logit = score(f32::cast_from(products[first + i]), 1.0f32, cap, capped);
            let mut difference = 0.0f32 - (logit - log_sum).exp();
            if first_token + i == target {
                difference += 1.0f32;
            }
            output[output_first + i] =
                F::cast_from(g * difference * slope(logit, 1.0f32, cap, capped));
        }
    }
}
