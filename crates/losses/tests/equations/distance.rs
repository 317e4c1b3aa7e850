//! The feature distance of equation 10 against sets and loops, its gradient, and the weights of a set of features.

use burn::tensor::{DType, Device, Tensor, TensorData};
use fpo_losses::{FeatureSelection, feature_distance};
use proptest::{
    bool::weighted,
    collection::vec,
    prelude::{ProptestConfig, proptest},
    strategy::Strategy,
};

use crate::scalar::{close, sample, to_vec};

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

type Rows = Vec<Vec<f64>>;

/// Pooled activations of policy and reference, a share of `density` not 0.
fn rows(rows: usize, width: usize, density: f64) -> impl Strategy<Value = [Rows; 2]> {
    let entry = (weighted(density), 0.0..3.0).prop_map(|(active, x)| if active { x } else { 0.0 });
    let activations = vec(vec(entry, width), rows);
    [activations.clone(), activations]
}

fn any_rows() -> impl Strategy<Value = [Rows; 2]> {
    (1..6usize, 1..40usize, 0.0..=1.0)
        .prop_flat_map(|(count, width, density)| rows(count, width, density))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn distance_is_equation_10([policy, reference] in any_rows(), k in 1..48usize) {
        let device = Device::flex();
        let width = policy[0].len();
        let weights: Vec<f64> = (0..width).map(|i| (i % 3) as f64).collect();
        let ones = vec![1.0; width];
        let tensor = |rows: &Rows| matrix(rows, &device);
        let plain = to_vec(feature_distance(tensor(&policy), tensor(&reference), k, None));
        let w = Tensor::from_data(TensorData::new(weights.clone(), [width]), (&device, DType::F64));
        let weighted = to_vec(feature_distance(tensor(&policy), tensor(&reference), k, Some(w)));
        for row in 0..policy.len() {
            close(plain[row], scalar_distance(&policy[row], &reference[row], k, &ones));
            close(weighted[row], scalar_distance(&policy[row], &reference[row], k, &weights));
        }
    }

    /// With k at least the number of features, every feature is compared.
    #[test]
    fn a_large_k_compares_every_feature([policy, reference] in any_rows(), more in 0..5usize) {
        let (device, k) = (Device::flex(), policy[0].len() + more);
        let tensor = |rows: &Rows| matrix(rows, &device);
        let distance = to_vec(feature_distance(tensor(&policy), tensor(&reference), k, None));
        for ((policy, reference), distance) in policy.iter().zip(&reference).zip(distance) {
            let squares = policy.iter().zip(reference).map(|(a, b)| (a - b).powi(2));
            close(distance, squares.sum::<f64>() / k as f64);
        }
    }

    /// Where alignment starts the policy is the reference: distance and gradient are 0.
    #[test]
    fn nothing_pulls_at_the_start([rows, _] in any_rows(), k in 1..48usize) {
        let device = Device::flex().autodiff();
        let policy = matrix(&rows, &device).require_grad();
        let distance = feature_distance(policy.clone(), matrix(&rows, &device), k, None);
        assert_eq!(to_vec(distance.clone()), vec![0.0; rows.len()]);
        let gradient = policy.grad(&distance.sum().backward()).unwrap();
        assert!(gradient.into_data().iter::<f64>().all(|g| g == 0.0));
    }
}

#[test]
fn the_gradient_of_the_distance_is_that_of_the_selected_squares() {
    let device = Device::flex().autodiff();
    let [policy, reference] = sample(rows(3, 20, 0.4));
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

#[test]
fn a_selection_weights_its_features_or_frees_them() {
    let weights = |selection: FeatureSelection| -> Vec<f32> {
        let weights = selection.weights([(2, 1.0), (0, 0.5)], 4, &Device::flex());
        weights.into_data().iter::<f32>().collect()
    };
    assert_eq!(weights(FeatureSelection::Only), [0.5, 0.0, 1.0, 0.0]);
    assert_eq!(weights(FeatureSelection::Except), [0.0, 1.0, 0.0, 1.0]);
}
