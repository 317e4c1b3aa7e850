//! [`rotary`](crate::rotary) in one kernel; the backward pass is the rotation by the opposite angle.

use burn::{backend::fusion::custom::TensorSpec, tensor::Tensor};
use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::{
    Kernel,
    matrix::{Matrix, address},
    place::{Plan, UNITS},
    run,
};
use crate::graph::{Operation, Plain};

/// `cos` and `sin` `[tokens, head_dim / 2]`, outside any graph.
#[derive(Clone, Debug)]
pub(crate) struct Rotary {
    pub cos: Tensor<2>,
    pub sin: Tensor<2>,
}

impl Rotary {
    fn rotate(&self, x: Plain, direction: f32) -> Plain {
        let [output] =
            run(Rotate { direction }, [x, self.cos.clone().into(), self.sin.clone().into()]);
        output
    }
}

impl Operation<1> for Rotary {
    type Saved = ();

    fn forward(&self, [x]: [Plain; 1]) -> (Plain, ()) {
        (self.rotate(x, 1.0), ())
    }

    /// The backward pass needs none of x.
    fn kept(&self, _: [Plain; 1]) -> [Plain; 1] {
        [self.cos.clone().into()]
    }

    fn backward(
        &self,
        _: [Plain; 1],
        (): (),
        gradient: Plain,
        _wanted: [bool; 1],
    ) -> [Option<Plain>; 1] {
        [Some(self.rotate(gradient, -1.0))]
    }
}

/// x `[batch, tokens, heads, head_dim]`, cos and sin → output as x.
#[derive(Clone, Debug)]
struct Rotate {
    /// 1, or -1 for the opposite angle.
    direction: f32,
}

impl Kernel<3, 1> for Rotate {
    const NAME: &'static str = "fpo::rotary";

    fn outputs(&self, [x, ..]: [&TensorSpec; 3]) -> [TensorSpec; 1] {
        [x.clone()]
    }

    fn launch(&self, [x, cos, sin]: [Matrix; 3], [output]: [Matrix; 1]) {
        let (half, tokens) = (cos.width(), cos.count());
        let shape = x.tensor().meta.shape();
        let (heads, pairs) = (shape[2], x.count() * half);
        let plan = Plan { group: UNITS, cubes: pairs.div_ceil(UNITS) };
        let address = address([&x, &cos, &sin, &output]);
        let strides = [x.stride, cos.stride, sin.stride, output.stride];
        let types = [x.element(), cos.element(), sin.element()];
        // SAFETY: the kernel only accesses `pairs` pairs of features of x and output, whose rows have `2 * half` of them, and rows
        // below `tokens` of cos and sin.
        unsafe {
            rotate::launch_unchecked(
                &x.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                x.argument(),
                cos.argument(),
                sin.argument(),
                output.argument(),
                pairs,
                half,
                heads,
                tokens,
                strides[0],
                strides[1],
                strides[2],
                strides[3],
                self.direction,
                types,
            );
        }
    }
}

/// Each unit turns one pair of features.
#[cube(launch_unchecked, address_type = "dynamic")]
fn rotate<F: Float, C: Float, S: Float>(
    x: &[F],
    cos: &[C],
    sin: &[S],
    output: &mut [F],
    pairs: usize,
    half: usize,
    heads: usize,
    tokens: usize,
    x_stride: usize,
    cos_stride: usize,
    sin_stride: usize,
    output_stride: usize,
    direction: f32,
    #[define(F, C, S)] _types: [ElemType; 3],
) {
    let pair = CUBE_POS * UNITS + UNIT_POS_X as usize;
    if pair < pairs {
        let row = pair / half;
        let feature = pair % half;
        let token = row / heads % tokens;
        let cos = f32::cast_from(cos[token * cos_stride + feature]);
        let sin = f32::cast_from(sin[token * sin_stride + feature]) * direction;
        let first = row * x_stride + feature;
        let x1 = f32::cast_from(x[first]);
        let x2 = f32::cast_from(x[first + half]);
        let first = row * output_stride + feature;
        output[first] = F::cast_from(x1 * cos - x2 * sin);
        output[first + half] = F::cast_from(x2 * cos + x1 * sin);
    }
}
