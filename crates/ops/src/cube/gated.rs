//! The gated activations of MLPs in one kernel, and their gradients in another.

use burn::backend::fusion::custom::TensorSpec;
use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::{
    Kernel,
    matrix::{Matrix, address},
    place::{Plan, UNITS},
    run,
    softcap::tanh,
};
use crate::{gated::Gate, graph::Plain};

/// Elements per unit.
const ELEMENTS: usize = 4;

/// `f(gate)·up`, in the type of the gate.
pub(crate) fn forward(by: Gate, inputs: [Plain; 2]) -> Plain {
    let [output] = run(Forward { by }, inputs);
    output
}

/// From gate, up and the gradient of the output to those of gate and up.
pub(crate) fn backward(by: Gate, inputs: [Plain; 3]) -> [Plain; 2] {
    run(Backward { by }, inputs)
}

/// As many cubes as cover a matrix.
fn plan(x: &Matrix) -> (Plan, usize) {
    let elements = x.count() * x.width();
    (Plan { group: UNITS, cubes: elements.div_ceil(UNITS * ELEMENTS) }, elements)
}

/// Where an element is in memory, of those that count row by row. `dense` if nothing lies between the rows of any matrix.
#[cube]
fn place(element: usize, width: usize, stride: usize, #[comptime] dense: bool) -> usize {
    if dense { element } else { (element / width) * stride + element % width }
}

#[derive(Clone, Debug)]
struct Forward {
    by: Gate,
}

impl Kernel<2, 1> for Forward {
    const NAME: &'static str = "fpo::gated";

    fn outputs(&self, [gate, _]: [&TensorSpec; 2]) -> [TensorSpec; 1] {
        [gate.clone()]
    }

    fn launch(&self, [gate, up]: [Matrix; 2], [output]: [Matrix; 1]) {
        let ((plan, elements), width) = (plan(&gate), gate.width());
        let address = address([&gate, &up, &output]);
        let strides = [gate.stride, up.stride, output.stride];
        let dense = strides.iter().all(|&stride| stride == width);
        let types = [gate.element(), up.element()];
        // SAFETY: the kernel only accesses as many elements as the gate has, which all three have in rows of one width.
        unsafe {
            forward_kernel::launch_unchecked(
                &gate.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                gate.argument(),
                up.argument(),
                output.argument(),
                elements,
                width,
                strides[0],
                strides[1],
                strides[2],
                self.by,
                dense,
                types,
            );
        }
    }
}

#[derive(Clone, Debug)]
struct Backward {
    by: Gate,
}

impl Kernel<3, 2> for Backward {
    const NAME: &'static str = "fpo::gated_backward";

    fn outputs(&self, [gate, up, _]: [&TensorSpec; 3]) -> [TensorSpec; 2] {
        [gate.clone(), up.clone()]
    }

    fn launch(&self, [gate, up, gradient]: [Matrix; 3], [d_gate, d_up]: [Matrix; 2]) {
        let ((plan, elements), width) = (plan(&gate), gate.width());
        let address = address([&gate, &up, &gradient, &d_gate, &d_up]);
        let strides = [gate.stride, up.stride, gradient.stride, d_gate.stride, d_up.stride];
        let dense = strides.iter().all(|&stride| stride == width);
        let types = [gate.element(), up.element(), gradient.element()];
        // SAFETY: the kernel only accesses as many elements as the gate has, which all five have in rows of one width.
        unsafe {
            backward_kernel::launch_unchecked(
                &gate.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                gate.argument(),
                up.argument(),
                gradient.argument(),
                d_gate.argument(),
                d_up.argument(),
                elements,
                width,
                strides[0],
                strides[1],
                strides[2],
                strides[3],
                strides[4],
                self.by,
                dense,
                types,
            );
        }
    }
}

/// The factor of x in `f(x)`, and `f′(x)`:
/// * gelu: `(1 + t)/2` with `t = tanh(√(2/π)·(x + 0.044715·x³))`, and `(1 + t)/2 + x/2·(1 − t²)·√(2/π)·(1 + 3·0.044715·x²)`;
/// * silu: `σ(x)`, and `σ(x)·(1 + x·(1 − σ(x)))`.
#[cube]
fn factor_and_slope(x: f32, #[comptime] by: Gate) -> (f32, f32) {
    if comptime!(by == Gate::Gelu) {
        let cubic = f32::new(comptime!(crate::gated::CUBIC as f32));
        let root = f32::new(comptime!(crate::gated::SQRT_2_OVER_PI as f32));
        let square = x * x;
        let t = tanh(x * (square * cubic + 1.0f32) * root);
        let half = (t + 1.0f32) * 0.5f32;
        let slope = (square * (cubic * 3.0f32) + 1.0f32) * (root * 0.5f32);
        (half, half + x * (1.0f32 - t * t) * slope)
    } else {
        let sigmoid = 1.0f32 / (1.0f32 + (0.0f32 - x).exp());
        (sigmoid, sigmoid * (x * (1.0f32 - sigmoid) + 1.0f32))
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn forward_kernel<F: Float, U: Float>(
    gate: &[F],
    up: &[U],
    output: &mut [F],
    elements: usize,
    width: usize,
    gate_stride: usize,
    up_stride: usize,
    output_stride: usize,
    #[comptime] by: Gate,
    #[comptime] dense: bool,
    #[define(F, U)] _types: [ElemType; 2],
) {
    let first = CUBE_POS * (UNITS * ELEMENTS) + UNIT_POS_X as usize;
    #[unroll]
    for k in 0..ELEMENTS {
        let i = first + k * UNITS;
        if i < elements {
            let x = f32::cast_from(gate[place(i, width, gate_stride, dense)]);
            let (factor, _) = factor_and_slope(x, by);
            let up = f32::cast_from(up[place(i, width, up_stride, dense)]);
            output[place(i, width, output_stride, dense)] = F::cast_from(x * factor * up);
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn backward_kernel<F: Float, U: Float, G: Float>(
    gate: &[F],
    up: &[U],
    gradient: &[G],
    d_gate: &mut [F],
    d_up: &mut [U],
    elements: usize,
    width: usize,
    gate_stride: usize,
    up_stride: usize,
    gradient_stride: usize,
    d_gate_stride: usize,
    d_up_stride: usize,
    #[comptime] by: Gate,
    #[comptime] dense: bool,
    #[define(F, U, G)] _types: [ElemType; 3],
) {
    let first = CUBE_POS * (UNITS * ELEMENTS) + UNIT_POS_X as usize;
    #[unroll]
    for k in 0..ELEMENTS {
        let i = first + k * UNITS;
        if i < elements {
            let x = f32::cast_from(gate[place(i, width, gate_stride, dense)]);
            let (factor, slope) = factor_and_slope(x, by);
            let g = f32::cast_from(gradient[place(i, width, gradient_stride, dense)]);
            let up = f32::cast_from(up[place(i, width, up_stride, dense)]);
            d_gate[place(i, width, d_gate_stride, dense)] = F::cast_from(g * up * slope);
            d_up[place(i, width, d_up_stride, dense)] = U::cast_from(g * x * factor);
        }
    }
}
