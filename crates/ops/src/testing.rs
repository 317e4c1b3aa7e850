//! Checks operations with their own backward pass against autodiff on their definitions, in float64.

use burn::tensor::{DType, Device, Int, Tensor};

use crate::{
    blocked::Blocks,
    graph::{Operation, apply},
    numbers::{self, Numbers},
};

/// Cases of n, d and vocabulary, with blocks that divide them and blocks that don't.
pub(crate) fn heads() -> impl Iterator<Item = (usize, usize, usize, Blocks)> {
    let sizes = [(1, 1, 2), (5, 3, 17), (9, 4, 16)];
    let blocks = [(1, 1), (4, 8), (3, 5), (100, 100)];
    sizes.into_iter().flat_map(move |(n, d, v)| {
        blocks.into_iter().map(move |(rows, tokens)| (n, d, v, Blocks { rows, tokens }))
    })
}

/// Uniform in ±2, float64, outside any graph.
pub(crate) fn random<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<D> {
    Numbers(seed).tensor(shape, 2.0, (&Device::flex(), DType::F64))
}

pub(crate) fn targets(n: usize, vocabulary: usize) -> Tensor<1, Int> {
    Numbers(9).indices(n, vocabulary, &Device::flex())
}

pub(crate) fn close<const D: usize>(what: &str, found: &Tensor<D>, expected: &Tensor<D>) {
    numbers::close(what, found, expected, 1e-12);
}

/// A vocabulary in one to four parts of different lengths, some of one row.
pub(crate) fn partitions(v: usize) -> Vec<Vec<usize>> {
    let mut found = vec![vec![v], vec![v - 1, 1]];
    if v > 8 {
        found.extend([vec![1, v - 6, 5], vec![3, v - 6, 1, 2]]);
    }
    found
}

/// [`check`]s an operation on hidden states `[n, d]` and a weight `[v, d]` in one to four parts.
pub(crate) fn check_parts<O, const D: usize>(
    operation: O,
    [n, d]: [usize; 2],
    v: usize,
    definition: impl Fn(Tensor<2>, Tensor<2>) -> Tensor<D>,
) where
    O: Operation<2> + Operation<3> + Operation<4> + Operation<5>,
{
    let joined =
        |inputs: &[Tensor<2>]| definition(inputs[0].clone(), Tensor::cat(inputs[1..].to_vec(), 0));
    for parts in partitions(v) {
        let operation = operation.clone();
        match *parts.as_slice() {
            [a] => check(operation, [[n, d], [a, d]], |x| joined(&x)),
            [a, b] => check(operation, [[n, d], [a, d], [b, d]], |x| joined(&x)),
            [a, b, c] => check(operation, [[n, d], [a, d], [b, d], [c, d]], |x| joined(&x)),
            [a, b, c, e] => {
                check(operation, [[n, d], [a, d], [b, d], [c, d], [e, d]], |x| joined(&x));
            }
            _ => unreachable!("one to four parts"),
        }
    }
}

/// Runs both on the same inputs, multiplies the outputs by the same weights, and compares outputs and gradients.
pub(crate) fn check<const N: usize, const D: usize, const O: usize>(
    operation: impl Operation<N>,
    shapes: [[usize; D]; N],
    definition: impl Fn([Tensor<D>; N]) -> Tensor<O>,
) {
    let mut seed = 20;
    let inputs = shapes.map(|shape| {
        seed += 1;
        random(seed, shape)
    });
    let run = |f: &dyn Fn([Tensor<D>; N]) -> Tensor<O>| {
        let leaves = inputs.clone().map(|x| x.autodiff().require_grad());
        let output = f(leaves.clone());
        let size = output.shape().num_elements();
        let weights = random(60, [1, size]).autodiff().reshape(output.dims());
        let gradients = (output.clone() * weights).sum().backward();
        (output.inner(), leaves.map(|leaf| leaf.grad(&gradients).expect("tracked")))
    };
    let (found, found_gradients) = run(&|inputs| {
        let inputs = inputs.map(Tensor::into_dispatch);
        Tensor::from_dispatch(apply(operation.clone(), inputs).expect("a known backend"))
    });
    let (expected, expected_gradients) = run(&definition);
    close("output", &found, &expected);
    for (i, (found, expected)) in found_gradients.iter().zip(&expected_gradients).enumerate() {
        close(&format!("gradient {i}, element"), found, expected);
    }
    // Outside the graph the values are the same.
    let plain = inputs.clone().map(Tensor::into_dispatch);
    let plain = Tensor::from_dispatch(apply(operation.clone(), plain).expect("a known backend"));
    close("outside the graph", &plain, &expected);
}
