//! A weight in parts is the weight: outputs and every part's gradient.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use fpo_ops::{Rows, definition};

const WIDTH: usize = 3;

fn random(seed: u64, rows: usize, dtype: DType) -> Tensor<2> {
    let value = |i: usize| {
        let z = (seed << 32 | i as u64).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ (z >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((z ^ (z >> 32)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    let values: Vec<f64> = (0..rows * WIDTH).map(value).collect();
    Tensor::from_data(TensorData::new(values, [rows, WIDTH]), (&Device::flex(), dtype))
}

fn numbers<const D: usize>(x: &Tensor<D>) -> Vec<f64> {
    x.to_data().iter::<f64>().collect()
}

fn close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance * (1.0 + e.abs()), "{what} {i}: {f}, expected {e}");
    }
}

/// Values, the gradient of the first input, and that of all rows, of the sum of squares of what `f` makes of them.
fn run(
    hidden: &Tensor<2>,
    parts: &[Tensor<2>],
    f: impl Fn(Tensor<2>, Rows) -> Tensor<1>,
) -> [Vec<f64>; 3] {
    let hidden = hidden.clone().autodiff().require_grad();
    let parts: Vec<_> = parts.iter().map(|part| part.clone().autodiff().require_grad()).collect();
    let output = f(hidden.clone(), Rows::new(parts.clone()));
    let gradients = output.clone().square().sum().backward();
    let of = |x: &Tensor<2>| x.grad(&gradients).map_or(Vec::new(), |g| numbers(&g));
    let of_parts = parts.iter().flat_map(|part| {
        let found = of(part);
        assert_eq!(found.len(), part.shape().num_elements(), "a gradient for each part");
        found
    });
    [numbers(&output), of(&hidden), of_parts.collect()]
}

/// One to four parts, uneven, some of one row.
const PARTS: [&[usize]; 5] = [&[23], &[22, 1], &[1, 1, 21], &[7, 3, 13], &[1, 9, 11, 2]];

fn check(
    what: &str,
    n: usize,
    f: impl Fn(Tensor<2>, Rows) -> Tensor<1>,
    whole: impl Fn(Tensor<2>, Tensor<2>) -> Tensor<1>,
) {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-5)] {
        let (hidden, weight) = (random(1, n, dtype), random(2, 23, dtype));
        let expected = run(&hidden, std::slice::from_ref(&weight), |h, w| whole(h, w.joined()));
        for sizes in PARTS {
            let parts = weight.clone().split_with_sizes(sizes.to_vec(), 0);
            let found = run(&hidden, &parts, &f);
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                close(&format!("{what} {sizes:?} {dtype:?}, {i}"), found, expected, tolerance);
            }
        }
    }
}

fn targets(n: usize) -> Tensor<1, Int> {
    let values: Vec<i32> = (0..n as i32).map(|i| (i * 7 + 22) % 23).collect();
    Tensor::from_data(TensorData::new(values, [n]), &Device::flex().autodiff())
}

#[test]
fn log_probs_and_kl() {
    for softcap in [None, Some(2.0)] {
        check(
            "linear_log_probs",
            9,
            |h, w| fpo_ops::linear_log_probs(h, w, targets(9), softcap),
            |h, w| definition::linear_log_probs(h, w, targets(9), softcap),
        );
        for reference in PARTS {
            let of_reference = |x: &Tensor<2>| (random(3, 9, x.dtype()), random(4, 23, x.dtype()));
            check(
                "linear_kl",
                9,
                |h, w| {
                    let (r_h, r_w) = of_reference(&h);
                    let r_w = Rows::new(r_w.split_with_sizes(reference.to_vec(), 0));
                    fpo_ops::linear_kl(r_h, r_w, h, w, softcap)
                },
                |h, w| {
                    let (r_h, r_w) = of_reference(&h);
                    definition::linear_kl(r_h, r_w, h, w, softcap)
                },
            );
        }
    }
}

#[test]
fn token_statistics() {
    for dtype in [DType::F64, DType::F32] {
        let (hidden, weight) = (random(1, 9, dtype), random(2, 23, dtype));
        let targets = targets(9).inner();
        let expected = definition::linear_token_statistics(
            hidden.clone(),
            weight.clone(),
            targets.clone(),
            Some(2.0),
        );
        for sizes in PARTS {
            let rows = Rows::new(weight.clone().split_with_sizes(sizes.to_vec(), 0));
            let found =
                fpo_ops::linear_token_statistics(hidden.clone(), rows, targets.clone(), Some(2.0));
            for (found, expected) in
                [(&found.log_probs, &expected.log_probs), (&found.entropy, &expected.entropy)]
            {
                close("statistics", &numbers(found), &numbers(expected), 2e-6);
            }
            assert_eq!(found.argmax.to_data(), expected.argmax.to_data(), "{sizes:?}");
        }
    }
}

/// Exactly what the whole table's rows are, forward and backward; Flex refuses an index beyond a part.
#[test]
fn selected_rows() {
    // The ends of every part, some of them twice.
    let indices: Vec<i32> = vec![0, 1, 22, 21, 9, 10, 7, 6, 2, 22, 20, 0, 13, 22];
    let n = indices.len();
    let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [n]), &Device::flex());
    let weight = random(2, 23, DType::F32);
    let flat = |x: Tensor<2>| x.flatten::<1>(0, 1);
    let hidden = random(1, n, DType::F32);
    let select = |h: Tensor<2>, w: Rows| flat(w.select(indices.clone().autodiff()) * h);
    let expected = run(&hidden, std::slice::from_ref(&weight), |h, w| {
        flat(w.joined().select(0, indices.clone().autodiff()) * h)
    });
    for sizes in PARTS {
        let parts = weight.clone().split_with_sizes(sizes.to_vec(), 0);
        let found = run(&hidden, &parts, select);
        assert!(found == expected, "{sizes:?}");
        let plain = Rows::new(parts).select(indices.clone());
        assert!(plain.to_data() == weight.clone().select(0, indices.clone()).to_data());
    }
}

#[test]
#[should_panic(expected = "expected 1 to 4 non-empty parts of equal width")]
fn parts_of_other_widths_are_refused() {
    let narrow = Tensor::zeros([2, WIDTH - 1], &Device::flex());
    Rows::new(vec![random(1, 4, DType::F32), narrow]);
}
