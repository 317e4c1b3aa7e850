//! The feature distance of equation 10 against sets and loops, and where it must vanish.

use burn::tensor::{DType, Device, Tensor, TensorData};
use fpo_losses::feature_distance;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::scalar::{close, to_vec};

/// Equation 10 by sets and loops.
fn scalar_distance(policy: &[f64], reference: &[f64], k: usize, weights: &[f64]) -> f64 {
    let top = |values: &[f64]| -> Vec<usize> {
        let mut order: Vec<usize> = (0..values.len()).filter(|&i| values[i] > 0.0).collect();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
        order.truncate(k);
        order
    };
    let (a, b) = (top(policy), top(reference));
    let union = (0..policy.len()).filter(|i| a.contains(i) || b.contains(i));
    union.map(|i| weights[i] * (policy[i] - reference[i]).powi(2)).sum::<f64>() / k as f64
}

fn matrix(rows: &[Vec<f64>], device: &Device) -> Tensor<2> {
    let shape = [rows.len(), rows[0].len()];
    Tensor::from_data(TensorData::new(rows.concat(), shape), (device, DType::F64))
}

/// Sparse rows: most features are zero in most responses.
fn random_rows(seed: u64, rows: usize, width: usize, density: f64) -> Vec<Vec<f64>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut entry = || match rng.random::<f64>() < density {
        true => 3.0 * rng.random::<f64>(),
        false => 0.0,
    };
    (0..rows).map(|_| (0..width).map(|_| entry()).collect()).collect()
}

#[test]
fn distance_is_equation_10() {
    let device = Device::flex();
    for (seed, (rows, width, k, density)) in [
        (1, 1, 1, 1.0),
        (4, 17, 3, 0.3),
        (5, 64, 10, 0.05),
        (3, 8, 8, 0.9),
        (2, 8, 20, 0.5),
        (3, 9, 4, 0.0),
    ]
    .into_iter()
    .enumerate()
    {
        let policy = random_rows(seed as u64, rows, width, density);
        let reference = random_rows(seed as u64 + 100, rows, width, density);
        let weights: Vec<f64> = (0..width).map(|i| (i % 3) as f64).collect();
        let ones = vec![1.0; width];
        let tensor = |rows: &[Vec<f64>]| matrix(rows, &device);
        let plain = to_vec(feature_distance(tensor(&policy), tensor(&reference), k, None));
        let w = Tensor::from_data(TensorData::new(weights.clone(), [width]), (&device, DType::F64));
        let weighted = to_vec(feature_distance(tensor(&policy), tensor(&reference), k, Some(w)));
        for row in 0..rows {
            close(plain[row], scalar_distance(&policy[row], &reference[row], k, &ones));
            close(weighted[row], scalar_distance(&policy[row], &reference[row], k, &weights));
        }
    }
}

/// With k at least the number of features the union is everything: a mean square times width / k.
#[test]
fn a_large_k_compares_every_feature() {
    let device = Device::flex();
    let (policy, reference) = (random_rows(7, 3, 12, 0.5), random_rows(8, 3, 12, 0.5));
    let distance =
        to_vec(feature_distance(matrix(&policy, &device), matrix(&reference, &device), 12, None));
    for row in 0..3 {
        let squares = policy[row].iter().zip(&reference[row]).map(|(a, b)| (a - b).powi(2));
        close(distance[row], squares.sum::<f64>() / 12.0);
    }
}

/// Where alignment starts: policy equals reference, so distance and gradient are zero.
#[test]
fn nothing_pulls_at_the_start() {
    let device = Device::flex().autodiff();
    let rows = random_rows(9, 4, 32, 0.4);
    let policy = matrix(&rows, &device).require_grad();
    let distance = feature_distance(policy.clone(), matrix(&rows, &device), 5, None);
    assert_eq!(to_vec(distance.clone()), [0.0; 4]);
    let gradient = policy.grad(&distance.sum().backward()).unwrap();
    assert!(gradient.into_data().iter::<f64>().all(|g| g == 0.0));
}

#[test]
fn the_gradient_of_the_distance_is_that_of_the_selected_squares() {
    let device = Device::flex().autodiff();
    let (policy, reference) = (random_rows(11, 3, 20, 0.4), random_rows(12, 3, 20, 0.4));
    let leaf = matrix(&policy, &device).require_grad();
    let k = 4;
    let distance = feature_distance(leaf.clone(), matrix(&reference, &device), k, None);
    let gradient: Vec<f64> =
        leaf.grad(&distance.sum().backward()).unwrap().into_data().iter::<f64>().collect();
    let ones = vec![1.0; 20];
    for row in 0..3 {
        for i in 0..20 {
            // A feature that is zero stays where it is: a step down would leave the domain.
            let at = |shift: f64| {
                let mut values = policy[row].clone();
                values[i] += shift;
                scalar_distance(&values, &reference[row], k, &ones)
            };
            let step = 1e-6;
            let expected = match policy[row][i] > 0.0 {
                true => (at(step) - at(-step)) / (2.0 * step),
                // Only the reference can have selected it: −2 r / k.
                false if at(0.0) != at_without(&policy[row], &reference[row], k, i) => {
                    -2.0 * reference[row][i] / k as f64
                }
                false => 0.0,
            };
            assert!((gradient[row * 20 + i] - expected).abs() < 1e-6, "row {row} feature {i}");
        }
    }
}

/// The distance with one feature's weight at zero.
fn at_without(policy: &[f64], reference: &[f64], k: usize, feature: usize) -> f64 {
    let weights: Vec<f64> = (0..policy.len()).map(|i| f64::from(i != feature)).collect();
    scalar_distance(policy, reference, k, &weights)
}
