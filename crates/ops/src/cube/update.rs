//! What moves the weights: [`adamw_step`](crate::adamw_step) in one pass over parameter, gradient and moments, in place, and the
//! sums of squares for clipping.

use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{DType, Shape},
};
use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::{
    Kernel,
    matrix::{Matrix, address},
    place::{Plan, UNITS, sum_of_group},
};
use crate::adamw::Coefficients;

/// Elements per unit of [`adamw`]: enough loads in flight to keep the memory busy.
const ELEMENTS: usize = 4;

/// Elements that a cube squares and sums.
const PIECE: usize = 1 << 16;

/// Parameter, first and second moment, gradient, all `[n]` → the first three, in place.
#[derive(Clone, Debug)]
pub(crate) struct AdamWStep(pub Coefficients);

impl Kernel<4, 3> for AdamWStep {
    const NAME: &'static str = "fpo::adamw_step";
    const IN_PLACE: bool = true;

    fn outputs(&self, [param, m, v, _]: [&TensorSpec; 4]) -> [TensorSpec; 3] {
        [param.clone(), m.clone(), v.clone()]
    }

    fn launch(&self, [.., grad]: [Matrix; 4], [param, m, v]: [Matrix; 3]) {
        let count = param.width();
        let plan = Plan { group: UNITS, cubes: count.div_ceil(UNITS * ELEMENTS) };
        let address = address([&param, &m, &v, &grad]);
        let types = [param.element(), grad.element(), m.element()];
        let Coefficients { shrink, rate, inverse, new1, new2, beta2, eps, scale } = self.0;
        // SAFETY: the kernel only accesses `count` elements, which all of these tensors have, and no two of the first three are the
        // same buffer: each has one owner.
        unsafe {
            adamw::launch_unchecked(
                &param.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                param.argument(),
                m.argument(),
                v.argument(),
                grad.argument(),
                count,
                shrink,
                rate,
                inverse,
                new1,
                new2,
                beta2,
                eps,
                scale,
                types,
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn adamw<P: Float, G: Float, M: Float>(
    param: &mut [P],
    m: &mut [M],
    v: &mut [M],
    grad: &[G],
    count: usize,
    shrink: f32,
    rate: f32,
    inverse: f32,
    new1: f32,
    new2: f32,
    beta2: f32,
    eps: f32,
    scale: f32,
    #[define(P, G, M)] _types: [ElemType; 3],
) {
    let first = CUBE_POS * (UNITS * ELEMENTS) + UNIT_POS_X as usize;
    #[unroll]
    for k in 0..ELEMENTS {
        let i = first + k * UNITS;
        if i < count {
            let g = f32::cast_from(grad[i]) * scale;
            let before = f32::cast_from(m[i]);
            let mean = before + (g - before) * new1;
            let square = f32::cast_from(v[i]) * beta2 + g * g * new2;
            let step = rate * mean / (square.sqrt() * inverse + eps);
            m[i] = M::cast_from(mean);
            v[i] = M::cast_from(square);
            param[i] = P::cast_from(f32::cast_from(param[i]) * shrink - step);
        }
    }
}

/// `[n]` → the sums of the squares of its pieces, in float32.
#[derive(Clone, Debug)]
pub(crate) struct SumSquares;

impl Kernel<1, 1> for SumSquares {
    const NAME: &'static str = "fpo::sums_of_squares";

    fn outputs(&self, [x]: [&TensorSpec; 1]) -> [TensorSpec; 1] {
        let pieces = x.shape.num_elements().div_ceil(PIECE);
        [TensorSpec::new(Shape::new([pieces]), DType::F32)]
    }

    fn launch(&self, [x]: [Matrix; 1], [output]: [Matrix; 1]) {
        let count = x.width();
        let plan = Plan { group: UNITS, cubes: output.width() };
        let (address, element) = (address([&x]), x.element());
        // SAFETY: the kernel only accesses `count` elements of x, and one element of the output per piece of them.
        unsafe {
            sum_squares::launch_unchecked(
                &x.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                x.argument(),
                output.argument(),
                count,
                element,
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn sum_squares<F: Float>(x: &[F], output: &mut [f32], count: usize, #[define(F)] _type: ElemType) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS);
    let first = CUBE_POS * PIECE;
    let mut sum = 0.0f32;
    for i in range_stepped(first + UNIT_POS_X as usize, min(first + PIECE, count), UNITS) {
        let x = f32::cast_from(x[i]);
        sum += x * x;
    }
    let sum = sum_of_group(sum, &mut scratch, UNITS);
    if UNIT_POS_X == 0 && first < count {
        output[CUBE_POS] = sum;
    }
}
