//! A weight in parts gives what the whole weight gives: outputs, and the gradient of every part.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use fpo_ops::{Rows, definition};
use proptest::prelude::*;

use crate::support::{Numbers, close};

const WIDTH: usize = 3;

fn random(seed: u64, rows: usize, dtype: DType) -> Tensor<2> {
    Numbers(seed).tensor([rows, WIDTH], 1.0, (&Device::flex(), dtype))
}

fn targets(n: usize, vocabulary: usize) -> Tensor<1, Int> {
    Numbers(5).indices(n, vocabulary, &Device::flex().autodiff())
}

/// float64 and float32, with their tolerances.
const TYPES: [(DType, f64); 2] = [(DType::F64, 2e-13), (DType::F32, 1e-5)];

/// The lengths of one to four parts; single rows are likely.
fn parts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![Just(1), 1..20_usize], 1..=Rows::MOST_PARTS)
}

fn split(weight: &Tensor<2>, lengths: &[usize]) -> Rows {
    Rows::new(weight.clone().split_with_sizes(lengths.to_vec(), 0))
}

/// The output of `f`, and the gradients of both inputs of the sum of its squares; those of the parts are joined.
fn run(
    hidden: &Tensor<2>,
    rows: Rows,
    f: impl Fn(Tensor<2>, Rows) -> Tensor<1>,
) -> (Tensor<1>, [Tensor<2>; 2]) {
    let leaf = |x: &Tensor<2>| x.clone().autodiff().require_grad();
    let (hidden, parts) = (leaf(hidden), rows.parts().iter().map(leaf).collect::<Vec<_>>());
    let output = f(hidden.clone(), Rows::new(parts.clone()));
    let gradients = output.clone().square().sum().backward();
    let of = |x: &Tensor<2>| x.grad(&gradients).expect("every input and every part is tracked");
    (output.inner(), [of(&hidden), Tensor::cat(parts.iter().map(of).collect(), 0)])
}

/// Compares `f` on a weight in parts of these `lengths` with the definition on the whole weight.
fn check(
    what: &str,
    n: usize,
    lengths: &[usize],
    f: impl Fn(Tensor<2>, Rows) -> Tensor<1>,
    definition: impl Fn(Tensor<2>, Tensor<2>) -> Tensor<1>,
) {
    for (dtype, tolerance) in TYPES {
        let weight = random(2, lengths.iter().sum(), dtype);
        let hidden = random(1, n, dtype);
        let found = run(&hidden, split(&weight, lengths), &f);
        let expected = run(&hidden, weight.into(), |h, w| definition(h, w.joined()));
        close(&format!("{what} {dtype:?}"), &found.0, &expected.0, tolerance);
        for (i, (found, expected)) in found.1.iter().zip(&expected.1).enumerate() {
            close(&format!("{what} {dtype:?}, gradient {i}"), found, expected, tolerance);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn log_probs(n in 1..12_usize, lengths in parts(), capped: bool) {
        let (vocabulary, softcap) = (lengths.iter().sum(), capped.then_some(2.0));
        check(
            "linear_log_probs",
            n,
            &lengths,
            |h, w| fpo_ops::linear_log_probs(h, w, targets(n, vocabulary), softcap),
            |h, w| definition::linear_log_probs(h, w, targets(n, vocabulary), softcap),
        );
    }

    /// The reference's weight may be split differently.
    #[test]
    fn kl(n in 1..12_usize, lengths in parts(), first in 1..80_usize, capped: bool) {
        let (vocabulary, softcap) = (lengths.iter().sum::<usize>(), capped.then_some(2.0));
        let reference_lengths = match first % vocabulary {
            0 => vec![vocabulary],
            first => vec![first, vocabulary - first],
        };
        let reference = |like: &Tensor<2>| {
            (random(3, n, like.dtype()), random(4, vocabulary, like.dtype()))
        };
        check(
            "linear_kl",
            n,
            &lengths,
            |h, w| {
                let (r_h, r_w) = reference(&h);
                fpo_ops::linear_kl(r_h, split(&r_w, &reference_lengths), h, w, softcap)
            },
            |h, w| {
                let (r_h, r_w) = reference(&h);
                definition::linear_kl(r_h, r_w, h, w, softcap)
            },
        );
    }

    #[test]
    fn token_statistics(n in 1..12_usize, lengths in parts(), capped: bool) {
        let (vocabulary, softcap) = (lengths.iter().sum(), capped.then_some(2.0));
        for (dtype, _) in TYPES {
            let (h, w) = (random(1, n, dtype), random(2, vocabulary, dtype));
            let targets = targets(n, vocabulary).inner();
            let rows = split(&w, &lengths);
            let found =
                fpo_ops::linear_token_statistics(h.clone(), rows, targets.clone(), softcap);
            let expected = definition::linear_token_statistics(h, w, targets, softcap);
            close("log_probs", &found.log_probs, &expected.log_probs, 2e-6);
            close("entropy", &found.entropy, &expected.entropy, 2e-6);
            assert_eq!(found.argmax.to_data(), expected.argmax.to_data());
        }
    }

    /// Exactly the rows of the whole matrix, forward and backward, with repetitions.
    #[test]
    fn selected_rows(lengths in parts(), seed: u64) {
        let total: usize = lengths.iter().sum();
        let mut numbers = Numbers(seed);
        let ends = lengths.iter().scan(0, |first, length| {
            *first += length;
            Some([(*first - length) as i64, *first as i64 - 1])
        });
        // The first and the last row of every part, and some more.
        let ends: Vec<i64> = ends.flatten().collect();
        let ends = Tensor::from_data(TensorData::new(ends.clone(), [ends.len()]), &Device::flex());
        let indices = Tensor::cat(vec![ends, numbers.indices(8, total, &Device::flex())], 0);
        let weight = random(2, total, DType::F32);
        let hidden = random(1, indices.dims()[0], DType::F32);
        let select = |h: Tensor<2>, w: Rows| {
            (w.select(indices.clone().autodiff()) * h).flatten::<1>(0, 1)
        };
        let (found, found_gradients) = run(&hidden, split(&weight, &lengths), select);
        let (expected, expected_gradients) = run(&hidden, weight.clone().into(), |h, w| {
            (w.joined().select(0, indices.clone().autodiff()) * h).flatten::<1>(0, 1)
        });
        assert_eq!(found.to_data(), expected.to_data());
        for (found, expected) in found_gradients.iter().zip(&expected_gradients) {
            assert_eq!(found.to_data(), expected.to_data());
        }
        let plain = split(&weight, &lengths).select(indices.clone());
        assert_eq!(plain.to_data(), weight.select(0, indices).to_data());
    }
}

#[test]
#[should_panic(expected = "expected 1 to 4 non-empty parts of equal width")]
fn parts_of_different_widths_are_refused() {
    let narrow = Tensor::zeros([2, WIDTH - 1], &Device::flex());
    Rows::new(vec![random(1, 4, DType::F32), narrow]);
}
