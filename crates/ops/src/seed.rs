//! Where a backward pass starts from the gradient of a tensor rather than from a loss.

use burn::tensor::Tensor;

use crate::{graph, profile};

/// A zero, `[1]`. The backward pass from it, or from a sum of such zeros, gives `output` the gradient `gradient`, as that from
/// `Σ output·gradient` does, which costs passes over both.
///
/// # Shapes
/// * `output`, `gradient`: equal
pub fn seed<const D: usize>(output: Tensor<D>, gradient: Tensor<D>) -> Tensor<1> {
    assert_eq!(output.dims(), gradient.dims(), "seed: output and gradient differ in shape");
    let _within = profile::operation("seed", || 0.0);
    let operation = known::Seed { gradient: gradient.clone().without_autodiff() };
    match graph::apply(operation, [output.clone().into_dispatch()]) {
        Some(zero) => Tensor::from_dispatch(zero),
        None => definition(output, gradient),
    }
}

/// [`seed`] in plain tensor operations, apart from the value, which is `Σ output·gradient`.
pub fn definition<const D: usize>(output: Tensor<D>, gradient: Tensor<D>) -> Tensor<1> {
    (output * gradient).sum()
}

mod known {
    use super::Tensor;
    use crate::{
        at_least_f32_type,
        graph::{Operation, Plain},
    };

    #[derive(Clone, Debug)]
    pub(super) struct Seed<const D: usize> {
        pub gradient: Tensor<D>,
    }

    impl<const D: usize> Operation<1> for Seed<D> {
        type Saved = ();

        fn forward(&self, _: [Plain; 1]) -> (Plain, ()) {
            // Outputs of different types have zeros of one, so that these can be added.
            let dtype = at_least_f32_type(self.gradient.dtype());
            (Tensor::<1>::zeros([1], (&self.gradient.device(), dtype)).into(), ())
        }

        fn read(&self, _: [f64; 1], _output: f64) -> [f64; 1] {
            [0.0]
        }

        fn kept(&self, _: [Plain; 1]) -> [Plain; 1] {
            [self.gradient.clone().into()]
        }

        fn backward(
            &self,
            [gradient]: [Plain; 1],
            (): (),
            _one: Plain,
            _wanted: [bool; 1],
        ) -> [Option<Plain>; 1] {
            [Some(gradient)]
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::testing::{close, random};

    /// Oracle: the definition, in float64, through an operation before it; two ends are added.
    #[test]
    fn gradients_are_those_of_the_definition() {
        let [x, g, h] = [1, 2, 3].map(|seed| random(seed, [3, 5]));
        let gradient = |start: fn(Tensor<2>, Tensor<2>) -> Tensor<1>| {
            let leaf = x.clone().autodiff().require_grad();
            let ends = start(leaf.clone().square(), g.clone()) + start(leaf.clone(), h.clone());
            leaf.grad(&ends.backward()).expect("tracked")
        };
        close("the gradient", &gradient(seed), &gradient(|x, g| definition(x, g.autodiff())));
        let zero = seed(x.autodiff().require_grad(), g).into_scalar::<f64>();
        assert_eq!(zero, 0.0);
    }
}
