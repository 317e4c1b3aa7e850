//! The Kullback-Leibler divergence of two models from blocks of their products `h·Wᵀ`, in one pass over each pair of blocks; a
//! second kernel computes the gradient of the policy's products.

use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{DType, Device, Tensor, TensorData},
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

/// A summary of both models' logits for each block of rows.
pub(crate) fn summaries(reference: &Head, policy: &Head) -> impl Iterator<Item = Summary> {
    policy.row_blocks().map(move |rows| {
        let none = Summary::new(rows.len(), &policy.hidden.device());
        policy.token_blocks().fold(none, |summary, tokens| {
            let products = [reference, policy].map(|head| head.products(&rows, &tokens));
            summary.update(Blocks::new(products, policy.softcap))
        })
    })
}

/// The products of reference and policy for the same rows and tokens, `[rows, tokens]` each. Logits are `softcap(products)`.
#[derive(Clone, Debug)]
pub(crate) struct Blocks {
    reference: Tensor<2>,
    policy: Tensor<2>,
    softcap: Option<f64>,
}

/// Running sums over the logits a of the reference and b of the policy.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    /// `[5, rows]`: max a, `Σ eᶻ` with z = a − max a, the same two for b, and `Σ eᶻ·(a − b)`.
    state: Tensor<2>,
}

impl Summary {
    /// The summary of no logits.
    fn new(rows: usize, device: &Device) -> Self {
        let state = TensorData::from([[LOWEST], [0.0], [LOWEST], [0.0], [0.0]]);
        Self { state: Tensor::<2>::from_data(state, (device, DType::F32)).expand([5, rows]) }
    }

    /// Adds a pair of blocks.
    fn update(self, blocks: Blocks) -> Self {
        let kernel = Summarise { softcap: blocks.softcap };
        let inputs = [blocks.reference.into(), blocks.policy.into(), self.state.into()];
        let [state] = run(kernel, inputs);
        Self { state: state.into() }
    }

    fn line(&self, i: usize) -> Tensor<1> {
        self.state.clone().narrow(0, i, 1).squeeze_dim(0)
    }

    /// log Σ exp of the logits of reference and policy, `[rows]` each.
    pub fn log_sums(&self) -> [Tensor<1>; 2] {
        [0, 2].map(|i| self.line(i) + self.line(i + 1).log())
    }

    /// The mean of a − b under the reference's distribution, `[rows]`.
    pub fn difference(&self) -> Tensor<1> {
        self.line(4) / self.line(1)
    }
}

impl Blocks {
    /// Of the products of reference and policy.
    pub fn new([reference, policy]: [Tensor<2>; 2], softcap: Option<f64>) -> Self {
        Self { reference, policy, softcap }
    }

    /// The gradient of the policy's products: `g·(p_v − r_v)·(1 − tanh²)`, with the log Σ exp of reference and policy and the
    /// gradient of the divergence, `[rows]` each.
    pub fn backward(self, [log_r, log_p]: [Tensor<1>; 2], gradient: Tensor<1>) -> Tensor<2> {
        let kernel = Differentiate { softcap: self.softcap };
        let inputs = [
            self.reference.into(),
            self.policy.into(),
            log_r.into(),
            log_p.into(),
            gradient.into(),
        ];
        let [d_products] = run(kernel, inputs);
        d_products.into()
    }
}

#[derive(Clone, Debug)]
struct Summarise {
    softcap: Option<f64>,
}

impl Kernel<3, 1> for Summarise {
    const NAME: &'static str = "fpo::summarise_two_logits";

    fn outputs(&self, [_, _, state]: [&TensorSpec; 3]) -> [TensorSpec; 1] {
        [state.clone()]
    }

    fn launch(&self, [reference, policy, state]: [Matrix; 3], [output]: [Matrix; 1]) {
        let (rows, width) = (policy.count(), policy.width());
        let plan = Plan::of_rows(rows, width);
        let address = address([&reference, &policy, &output]);
        let strides = [reference.stride, policy.stride, state.stride, output.stride];
        let types = [reference.element(), policy.element()];
        // SAFETY: the kernel only accesses `rows` rows of `width` elements, which the products have, and five rows of `rows`
        // elements, which the states have.
        unsafe {
            summarise::launch_unchecked(
                &policy.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                reference.argument(),
                policy.argument(),
                state.argument(),
                output.argument(),
                rows,
                width,
                strides[0],
                strides[1],
                strides[2],
                strides[3],
                self.softcap.unwrap_or(1.0) as f32,
                plan.group,
                self.softcap.is_some(),
                types,
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn summarise<R: Float, P: Float>(
    reference: &[R],
    policy: &[P],
    state: &[f32],
    output: &mut [f32],
    rows: usize,
    width: usize,
    reference_stride: usize,
    policy_stride: usize,
    state_stride: usize,
    output_stride: usize,
    cap: f32,
    #[comptime] group: usize,
    #[comptime] capped: bool,
    #[define(R, P)] _types: [ElemType; 2],
) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS);
    let unit = UNIT_POS_X as usize;
    let row = own_row();
    let reference_first = row * reference_stride;
    let policy_first = row * policy_stride;
    let mut own_largest_a = f32::new(LOWEST);
    let mut own_sum_a = 0.0f32;
    let mut own_largest_b = f32::new(LOWEST);
    let mut own_sum_b = 0.0f32;
    let mut own_difference = 0.0f32;
    if row < rows {
        for i in range_stepped(unit, width, group) {
            let a = score(f32::cast_from(reference[reference_first + i]), 1.0f32, cap, capped);
            let b = score(f32::cast_from(policy[policy_first + i]), 1.0f32, cap, capped);
            if a > own_largest_a {
                let rescale = (own_largest_a - a).exp();
                own_sum_a = own_sum_a * rescale + 1.0f32;
                own_difference = own_difference * rescale + a - b;
                own_largest_a = a;
            } else {
                let weight = (a - own_largest_a).exp();
                own_sum_a += weight;
                own_difference += weight * (a - b);
            }
            if b > own_largest_b {
                own_sum_b = own_sum_b * (own_largest_b - b).exp() + 1.0f32;
                own_largest_b = b;
            } else {
                own_sum_b += (b - own_largest_b).exp();
            }
        }
    }
    let largest_a = largest_of_group(own_largest_a, &mut scratch, group);
    let rescale_a = (own_largest_a - largest_a).exp();
    let sum_a = sum_of_group(own_sum_a * rescale_a, &mut scratch, group);
    let difference = sum_of_group(own_difference * rescale_a, &mut scratch, group);
    let largest_b = largest_of_group(own_largest_b, &mut scratch, group);
    let rescale_b = (own_largest_b - largest_b).exp();
    let sum_b = sum_of_group(own_sum_b * rescale_b, &mut scratch, group);
    if row < rows && unit == 0 {
        let before_a = state[row];
        let total_a = max(before_a, largest_a);
        let of_before_a = (before_a - total_a).exp();
        let of_these_a = (largest_a - total_a).exp();
        let before_b = state[2 * state_stride + row];
        let total_b = max(before_b, largest_b);
        output[row] = total_a;
        output[output_stride + row] = state[state_stride + row] * of_before_a + sum_a * of_these_a;
        output[2 * output_stride + row] = total_b;
        output[3 * output_stride + row] = state[3 * state_stride + row]
            * (before_b - total_b).exp()
            + sum_b * (largest_b - total_b).exp();
        output[4 * output_stride + row] =
            state[4 * state_stride + row] * of_before_a + difference * of_these_a;
    }
}

#[derive(Clone, Debug)]
struct Differentiate {
    softcap: Option<f64>,
}

impl Kernel<5, 1> for Differentiate {
    const NAME: &'static str = "fpo::kl_backward";

    fn outputs(&self, [_, policy, ..]: [&TensorSpec; 5]) -> [TensorSpec; 1] {
        [policy.clone()]
    }

    fn launch(
        &self,
        [reference, policy, log_r, log_p, gradient]: [Matrix; 5],
        [output]: [Matrix; 1],
    ) {
        let (rows, width) = (policy.count(), policy.width());
        let plan = Plan::of_rows(rows, width);
        let address = address([&reference, &policy, &output]);
        let strides = [reference.stride, policy.stride, output.stride];
        let types = [reference.element(), policy.element()];
        // SAFETY: the kernel only accesses `rows` rows of `width` elements, which these tensors have.
        unsafe {
            differentiate::launch_unchecked(
                &policy.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                reference.argument(),
                policy.argument(),
                log_r.argument(),
                log_p.argument(),
                gradient.argument(),
                output.argument(),
                rows,
                width,
                strides[0],
                strides[1],
                strides[2],
                self.softcap.unwrap_or(1.0) as f32,
                plan.group,
                self.softcap.is_some(),
                types,
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn differentiate<R: Float, P: Float>(
    reference: &[R],
    policy: &[P],
    log_r: &[f32],
    log_p: &[f32],
    gradient: &[f32],
    output: &mut [P],
    rows: usize,
    width: usize,
    reference_stride: usize,
    policy_stride: usize,
    output_stride: usize,
    cap: f32,
    #[comptime] group: usize,
    #[comptime] capped: bool,
    #[define(R, P)] _types: [ElemType; 2],
) {
    let row = own_row();
    if row < rows {
        let reference_first = row * reference_stride;
        let policy_first = row * policy_stride;
        let output_first = row * output_stride;
        let g = gradient[row];
        for i in range_stepped(UNIT_POS_X as usize, width, group) {
            let a = score(f32::cast_from(reference[reference_first + i]), 1.0f32, cap, capped);
            let b = score(f32::cast_from(policy[policy_first + i]), 1.0f32, cap, capped);
            let difference = (b - log_p[row]).exp() - (a - log_r[row]).exp();
            output[output_first + i] = P::cast_from(g * difference * slope(b, 1.0f32, cap, capped));
        }
    }
}
