//! What moves the weights: [`adamw_steps`](crate::adamw_steps) in one pass over parameters, gradients and moments, in place, and the
//! sums of squares for clipping. A kernel takes several parameters, because most are small.

use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{DType, Shape},
};
use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::{
    KernelOfMany,
    matrix::{Matrix, address},
    place::{Plan, UNITS, sum_of_group},
};
use crate::adamw::Coefficients;

/// Elements per unit of [`adamw`]: enough loads in flight to keep the memory busy.
const ELEMENTS: usize = 4;

/// Elements that a cube squares and sums.
const PIECE: usize = 1 << 16;

/// How many parameters a kernel moves at most, and of how many tensors it squares the elements. Each smaller number, for the last ones,
/// is another kernel to compile.
const AT_ONCE: usize = 16;

/// How many tensors go into the queue together at most.
const QUEUED: usize = 4 * AT_ONCE;

/// Consecutive items that go into the queue together: all with the same key.
pub(crate) fn groups<T, K: PartialEq>(items: Vec<T>, key: impl Fn(&T) -> K) -> Vec<Vec<T>> {
    let mut groups: Vec<Vec<T>> = Vec::new();
    for item in items {
        match groups.last_mut() {
            Some(group) if group.len() < QUEUED && key(&group[0]) == key(&item) => group.push(item),
            _ => groups.push(vec![item]),
        }
    }
    groups
}

/// How many parameters a kernel takes, each of which takes some buffers. Arguments that aren't tensors may take buffers as well.
fn at_once(tensor: &Matrix, buffers_of_each: usize) -> usize {
    let bound = tensor.client().properties().hardware.max_bindings as usize;
    (bound.saturating_sub(4) / buffers_of_each).clamp(1, AT_ONCE)
}

/// Parameters, first and second moments, gradients, `[n]` each and as many of each, and perhaps the factor of a
/// [`Clip`](crate::Clip), `[1]` → the first three, in place.
#[derive(Clone, Debug)]
pub(crate) struct AdamWSteps(pub Coefficients);

impl KernelOfMany for AdamWSteps {
    const NAME: &'static str = "fpo::adamw_steps";
    const IN_PLACE: bool = true;

    fn outputs(&self, inputs: &[TensorSpec]) -> Vec<TensorSpec> {
        inputs[..inputs.len() / 4 * 3].to_vec()
    }

    fn launch(&self, inputs: Vec<Matrix>, outputs: Vec<Matrix>) {
        let count = inputs.len() / 4;
        let (grads, clip) = inputs[3 * count..].split_at(count);
        let at_once = at_once(&grads[0], 4);
        for first in (0..count).step_by(at_once) {
            let some = first..(first + at_once).min(count);
            let state = [0, 1, 2].map(|kind| &outputs[kind * count..][some.clone()]);
            self.launch_some(state, &grads[some], clip);
        }
    }
}

impl AdamWSteps {
    fn launch_some(&self, [params, m, v]: [&[Matrix]; 3], grads: &[Matrix], clip: &[Matrix]) {
        let cubes = params.iter().map(|param| param.width().div_ceil(UNITS * ELEMENTS));
        let plan = Plan { group: UNITS, cubes: cubes.sum() };
        let address = address([params, m, v, grads].into_iter().flatten());
        let types = [params[0].element(), grads[0].element(), m[0].element()];
        let parameters = params.iter().zip(m).zip(v).zip(grads);
        let parameters = parameters.map(|(((param, m), v), grad)| {
            let count = param.width();
            let [param, m, v, grad] = [param, m, v, grad].map(|x| x.clone().argument());
            ParameterLaunch::new(param, m, v, grad, count)
        });
        let Coefficients { shrink, rate, inverse, new1, new2, beta2, eps, scale } = self.0;
        // SAFETY: the kernel only accesses as many elements of a parameter, its moments and its gradient as the parameter has, which
        // all four have. The moments have one type. No two of the first three are the same buffer, because a kernel that works in
        // place gets buffers with one owner.
        unsafe {
            adamw::launch_unchecked(
                &params[0].client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                parameters.collect(),
                clip.iter().map(|x| x.clone().argument()).collect(),
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

/// `[count]` each.
#[derive(CubeType, CubeLaunch)]
struct Parameter<P: Float, G: Float, M: Float> {
    param: Box<[P]>,
    m: Box<[M]>,
    v: Box<[M]>,
    grad: Box<[G]>,
    count: usize,
}

/// The cubes are those of the first parameter, then those of the second, and so on.
#[cube(launch_unchecked, address_type = "dynamic")]
fn adamw<P: Float, G: Float, M: Float>(
    parameters: &mut Sequence<Parameter<P, G, M>>,
    clip: &Sequence<Box<[f32]>>,
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
    let mut scale = scale;
    #[unroll]
    for which in 0..clip.len() {
        scale *= clip[which][0];
    }
    let mut before = 0usize;
    #[unroll]
    for which in 0..parameters.len() {
        let of_one = parameters.index_mut(which);
        let cubes = of_one.count.div_ceil(UNITS * ELEMENTS);
        if CUBE_POS >= before && CUBE_POS < before + cubes {
            let first = (CUBE_POS - before) * (UNITS * ELEMENTS) + UNIT_POS_X as usize;
            #[unroll]
            for k in 0..ELEMENTS {
                let i = first + k * UNITS;
                if i < of_one.count {
                    let g = f32::cast_from(of_one.grad[i]) * scale;
                    let old = f32::cast_from(of_one.m[i]);
                    let mean = old + (g - old) * new1;
                    let square = f32::cast_from(of_one.v[i]) * beta2 + g * g * new2;
                    let step = rate * mean / (square.sqrt() * inverse + eps);
                    of_one.m[i] = M::cast_from(mean);
                    of_one.v[i] = M::cast_from(square);
                    of_one.param[i] = P::cast_from(f32::cast_from(of_one.param[i]) * shrink - step);
                }
            }
        }
        before += cubes;
    }
}

/// `[n]` each → the sums of the squares of their pieces, one tensor after the other, in float32.
#[derive(Clone, Debug)]
pub(crate) struct SumsOfSquares;

impl KernelOfMany for SumsOfSquares {
    const NAME: &'static str = "fpo::sums_of_squares";

    fn outputs(&self, inputs: &[TensorSpec]) -> Vec<TensorSpec> {
        let pieces = inputs.iter().map(|x| x.shape.num_elements().div_ceil(PIECE)).sum();
        vec![TensorSpec::new(Shape::new([pieces]), DType::F32)]
    }

    fn launch(&self, inputs: Vec<Matrix>, outputs: Vec<Matrix>) {
        let at_once = at_once(&inputs[0], 1);
        let mut first_piece = 0;
        for some in inputs.chunks(at_once) {
            let cubes = some.iter().map(|x| x.width().div_ceil(PIECE)).sum();
            let plan = Plan { group: UNITS, cubes };
            let address = address(some);
            // SAFETY: the kernel only accesses as many elements of a tensor as it has, and one element of the output per piece.
            unsafe {
                sums_of_squares::launch_unchecked(
                    &some[0].client(),
                    plan.cube_count(),
                    plan.cube_dim(),
                    address,
                    some.iter().map(|x| x.clone().argument()).collect(),
                    outputs[0].clone().argument(),
                    some.iter().map(Matrix::width).collect(),
                    first_piece,
                    some[0].element(),
                );
            }
            first_piece += cubes;
        }
    }
}

/// A cube per piece.
#[cube(launch_unchecked, address_type = "dynamic")]
fn sums_of_squares<F: Float>(
    x: &Sequence<Box<[F]>>,
    output: &mut [f32],
    counts: &Sequence<usize>,
    first_piece: usize,
    #[define(F)] _type: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS);
    let mut sum = 0.0f32;
    let mut before = 0usize;
    #[unroll]
    for which in 0..counts.len() {
        let count = counts[which];
        let pieces = count.div_ceil(PIECE);
        if CUBE_POS >= before && CUBE_POS < before + pieces {
            let first = (CUBE_POS - before) * PIECE;
            for i in range_stepped(first + UNIT_POS_X as usize, min(first + PIECE, count), UNITS) {
                let x = f32::cast_from(x[which][i]);
                sum += x * x;
            }
        }
        before += pieces;
    }
    let sum = sum_of_group(sum, &mut scratch, UNITS);
    if UNIT_POS_X == 0 && CUBE_POS < before {
        output[first_piece + CUBE_POS] = sum;
    }
}
