//! The offline reference against a reference that is run beside the policy.

use std::num::NonZeroUsize;

use burn::tensor::DType;
use fpo_data::reference::StoredFeatures;
use fpo_losses::{Method, Objective, PerResponse, feature_distance};
use fpo_trainer::{
    aligner::Aligner,
    forward::{DeviceBatch, Forward},
};

use crate::world::{D_SAE, K, World, constraint, numbers};

fn distances(world: &World, stored: StoredFeatures, k: usize) -> Vec<f64> {
    let aligner = world.aligner(Objective::paper(Method::FPO), DType::F32);
    let features = Some(constraint(world.reader(DType::F32), k));
    let aligner = Aligner { cache: world.cache(stored), features, ..aligner };
    let distance = aligner.compare(&world.policy, &world.all()).unwrap().quantities.distance;
    let PerResponse { chosen, rejected } = distance.unwrap();
    [numbers(chosen), numbers(rejected)].concat()
}

/// Pooled features of policy and reference, run side by side on one batch, and D of them.
fn online(world: &World, k: usize) -> (Vec<f64>, Vec<Vec<f64>>) {
    let batch = world.all();
    let device_batch = DeviceBatch::new(&batch.batch, &world.policy.device());
    let reader = world.reader(DType::F32);
    let pooled =
        |model| Forward::new(model, &batch.batch, &device_batch, Some(&reader)).pooled.remove(0);
    let policy = pooled(&world.policy);
    let values: Vec<f64> = policy.to_data().iter::<f64>().collect();
    let rows = values.chunks(D_SAE).map(<[f64]>::to_vec).collect();
    (numbers(feature_distance(policy, pooled(&world.reference), k, None)), rows)
}

#[test]
fn the_exact_cache_is_the_online_reference() {
    let world = World::new();
    for k in [1, K, D_SAE] {
        let expected = online(&world, k).0;
        for (found, expected) in distances(&world, StoredFeatures::All, k).iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-6 * (1.0 + expected), "{found}, {expected}");
        }
    }
}

/// The reference's dropped activations are at most b. Where one stands in the policy's top k, its square
/// is (p − r)² with r taken as 0, which is off by r·|2p − r| ≤ b·max(2p, b).
#[test]
fn a_cut_cache_is_off_by_no_more_than_its_bound() {
    let world = World::new();
    let k = 2;
    let (exact, policy) = online(&world, k);
    let mut moved = 0;
    for n in [2, 3, 6, 12] {
        let stored = StoredFeatures::Top(NonZeroUsize::new(n).unwrap());
        let bound = f64::from(world.cache(stored).dropped_at_most());
        for (row, (found, exact)) in distances(&world, stored, k).iter().zip(&exact).enumerate() {
            let mut values = policy[row].clone();
            values.sort_by(|a, b| b.total_cmp(a));
            let worst: f64 = values.iter().take(k).map(|p| bound * (2.0 * p).max(bound)).sum();
            let off = (found - exact).abs();
            assert!(off <= worst / k as f64 + 1e-6, "n = {n}, row {row}: off by {off}");
            moved += usize::from(off > 1e-4);
        }
    }
    assert!(moved > 0, "no cut was ever felt: the test says nothing");
}
