//! The soft-cap, a smooth bound on logits.

use burn::tensor::Tensor;

use crate::profile;

/// `cap · tanh(x / cap)`: the identity near zero, bounded by ±`cap` (Gemma 2 report, section 2).
///
/// # Shapes
/// * `x`: any
pub fn softcap<const D: usize>(x: Tensor<D>, cap: f64) -> Tensor<D> {
    assert!(cap > 0.0, "softcap: the cap is {cap}, but must be positive");
    let _within = profile::operation("softcap", || 0.0);
    #[cfg(feature = "flex")]
    if let Some(output) =
        crate::flex::apply(fast::Softcap { cap: cap as f32 }, [crate::flex::operand(&x)])
    {
        return Tensor::from_dispatch(output);
    }
    definition(x, cap)
}

/// [`softcap`] in plain tensor operations.
pub fn definition<const D: usize>(x: Tensor<D>, cap: f64) -> Tensor<D> {
    (x / cap).tanh() * cap
}

/// [`definition`] if there is a cap, else the identity.
pub(crate) fn optional_softcap<const D: usize>(x: Tensor<D>, cap: Option<f64>) -> Tensor<D> {
    match cap {
        Some(cap) => definition(x, cap),
        None => x,
    }
}

/// One pass over the elements, forward and backward.
#[cfg(feature = "flex")]
mod fast {
    use burn::backend::flex::FlexTensor;

    use crate::flex::{
        Operation,
        blocks::{self, Uninit},
        elementary::{tanh, vectorised},
        tensor, values,
    };

    #[derive(Clone, Debug)]
    pub(super) struct Softcap {
        pub cap: f32,
    }

    impl Operation<1> for Softcap {
        /// The input.
        type Saved = FlexTensor;

        fn forward(&self, [x]: [FlexTensor; 1]) -> (FlexTensor, FlexTensor) {
            let inverse = 1.0 / self.cap;
            let all = values(&x);
            let work = |first: usize, [output]: [Uninit; 1]| {
                let x = &all[first..][..output.len()];
                vectorised(
                    #[inline(always)]
                    || {
                        for (output, &x) in output.iter_mut().zip(x) {
                            output.write(self.cap * tanh(x * inverse));
                        }
                    },
                );
            };
            // SAFETY: the loop writes every element of the block.
            let [output] = unsafe { blocks::elementwise(all.len(), work) };
            (tensor(output, x.layout().shape().clone()), x)
        }

        fn backward(
            &self,
            x: FlexTensor,
            gradient: FlexTensor,
            _wanted: [bool; 1],
        ) -> [Option<FlexTensor>; 1] {
            let inverse = 1.0 / self.cap;
            let (all, g) = (values(&x), values(&gradient));
            let work = |first: usize, [output]: [Uninit; 1]| {
                let range = first..first + output.len();
                let inputs = all[range.clone()].iter().zip(&g[range]);
                vectorised(
                    #[inline(always)]
                    || {
                        for (output, (&x, &g)) in output.iter_mut().zip(inputs) {
                            let t = tanh(x * inverse);
                            output.write(g * (1.0 - t) * (1.0 + t));
                        }
                    },
                );
            };
            // SAFETY: the loop writes every element of the block.
            let [output] = unsafe { blocks::elementwise(all.len(), work) };
            [Some(tensor(output, x.layout().shape().clone()))]
        }
    }
}
