//! Rotary position embedding in Hugging Face's rotate-half layout.

use burn::tensor::Tensor;

use crate::{profile, rms_norm::at_least_f32};

/// Rotates feature `i` of the first half of a head with feature `i` of the second half:
/// `out₁ = x₁·cos − x₂·sin`, `out₂ = x₂·cos + x₁·sin` (RoFormer, equation 34, in Hugging Face's order of features).
///
/// `cos` and `sin` are constants: they get no gradient.
///
/// # Shapes
/// * `x`: `[batch, tokens, heads, head_dim]`
/// * `cos`, `sin`: `[tokens, head_dim / 2]`
pub fn rotary(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
    let [_, tokens, _, head_dim] = x.dims();
    assert!(
        head_dim % 2 == 0 && cos.dims() == [tokens, head_dim / 2] && sin.dims() == cos.dims(),
        "rotary: x is {:?}, so cos and sin must be [{tokens}, {head_dim}/2], got {:?} and {:?}",
        x.dims(),
        cos.dims(),
        sin.dims()
    );
    let _within = profile::operation("rotary", || 0.0);
    #[cfg(feature = "flex")]
    if let (Some(cos), Some(sin)) = (crate::flex::constant(&cos), crate::flex::constant(&sin))
        && let Some(output) =
            crate::flex::apply(fast::Rotary { cos, sin }, [crate::flex::operand(&x)])
    {
        return Tensor::from_dispatch(output);
    }
    #[cfg(feature = "cube")]
    if crate::cube::takes(&x) && [&cos, &sin].into_iter().all(crate::cube::takes) {
        let [cos, sin] = [&cos, &sin].map(|table| table.clone().without_autodiff());
        let operation = crate::cube::rotary::Rotary { cos, sin };
        if let Some(output) = crate::graph::apply(operation, [x.clone().into_dispatch()]) {
            return Tensor::from_dispatch(output);
        }
    }
    definition(x, cos, sin)
}

/// [`rotary`] in plain tensor operations.
pub fn definition(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
    let [_, tokens, _, head_dim] = x.dims();
    let (half, dtype) = (head_dim / 2, x.dtype());
    let x = at_least_f32(x);
    let per_head =
        |table: Tensor<2>| table.without_autodiff().cast(x.dtype()).reshape([1, tokens, 1, half]);
    let (cos, sin) = (per_head(cos), per_head(sin));
    let (x1, x2) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let out1 = x1.clone() * cos.clone() - x2.clone() * sin.clone();
    let out2 = x2 * cos + x1 * sin;
    Tensor::cat(vec![out1, out2], 3).cast(dtype)
}

/// One pass over the elements; the backward pass is the rotation by the opposite angle.
#[cfg(feature = "flex")]
mod fast {
    use burn::backend::flex::FlexTensor;

    use crate::flex::{
        Operation,
        blocks::{self, Uninit},
        elementary::vectorised,
        tensor, values,
    };

    #[derive(Clone, Debug)]
    pub(super) struct Rotary {
        pub cos: FlexTensor,
        pub sin: FlexTensor,
    }

    impl Operation<1> for Rotary {
        type Saved = ();

        fn forward(&self, [x]: [FlexTensor; 1]) -> (FlexTensor, ()) {
            (self.rotate(&x, 1.0), ())
        }

        fn backward(
            &self,
            _saved: (),
            gradient: FlexTensor,
            _wanted: [bool; 1],
        ) -> [Option<FlexTensor>; 1] {
            [Some(self.rotate(&gradient, -1.0))]
        }
    }

    impl Rotary {
        fn rotate(&self, x: &FlexTensor, direction: f32) -> FlexTensor {
            let shape = x.layout().shape();
            let [tokens, heads, head_dim] = [shape[1], shape[2], shape[3]];
            let (x, half, token) = (values(x), head_dim / 2, heads * head_dim);
            let (cos, sin) = (values(&self.cos), values(&self.sin));
            let block_tokens = (blocks::ELEMENTS / token.max(1)).max(1);
            let work = |block: usize, [output]: [Uninit; 1]| {
                let first = block * block_tokens;
                let x = &x[first * token..][..output.len()];
                vectorised(
                    #[inline(always)]
                    || {
                        let rows = output.chunks_exact_mut(token).zip(x.chunks_exact(token));
                        for (position, (output, x)) in (first..).zip(rows) {
                            let angle = position % tokens * half;
                            let (cos, sin) = (&cos[angle..][..half], &sin[angle..][..half]);
                            let heads = output.chunks_exact_mut(head_dim);
                            for (output, x) in heads.zip(x.chunks_exact(head_dim)) {
                                let (x1, x2) = x.split_at(half);
                                let (out1, out2) = output.split_at_mut(half);
                                for i in 0..half {
                                    let sin = direction * sin[i];
                                    out1[i].write(x1[i] * cos[i] - x2[i] * sin);
                                    out2[i].write(x2[i] * cos[i] + x1[i] * sin);
                                }
                            }
                        }
                    },
                );
            };
            // SAFETY: the loops write every element of the block.
            let [output] = unsafe { blocks::fill([(block_tokens * token, x.len())], work) };
            tensor(output, shape.clone())
        }
    }
}
