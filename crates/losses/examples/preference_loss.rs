//! DPO and FPO on a batch of two pairs, with the gradients of both losses.
//!
//! `cargo run -p fpo-losses --example preference_loss`

use burn::tensor::{Device, Tensor};
use fpo_losses::{PairLosses, PerResponse, dpo, feature_distance, fpo, mean_loss};

const BETA: f64 = 0.1;
const ALPHA: f64 = 0.5;
const K: usize = 2;

fn main() {
    let device = Device::flex().autodiff();
    let pairs = |chosen: [f32; 2], rejected: [f32; 2]| PerResponse {
        chosen: Tensor::from_floats(chosen, &device),
        rejected: Tensor::from_floats(rejected, &device),
    };

    // Log-probabilities summed over response tokens, in nats, and the token counts.
    let policy = pairs([-12.1, -30.4], [-14.9, -28.0]).map(Tensor::require_grad);
    let reference = pairs([-13.0, -31.0], [-14.0, -29.5]);
    let tokens = pairs([10.0, 24.0], [12.0, 20.0]);

    // Pooled activations of four features, a row per response: the chosen ones first.
    let features = |rows: [[f32; 4]; 4]| Tensor::<2>::from_floats(rows, &device).require_grad();
    let policy_features = features([
        [0.0, 1.8, 0.4, 0.0],
        [0.9, 0.0, 0.2, 0.0],
        [0.0, 2.4, 0.0, 0.0],
        [1.0, 0.7, 0.0, 0.0],
    ]);
    let reference_features = features([
        [0.0, 1.6, 0.5, 0.0],
        [0.8, 0.0, 0.3, 0.0],
        [0.3, 1.5, 0.0, 0.0],
        [1.0, 0.0, 0.2, 0.0],
    ]);
    let distance = feature_distance(policy_features.clone(), reference_features, K, None);

    let report = |name: &str, pairs: PairLosses| {
        println!("{name}\n  loss of each pair: {:.4?}", values(pairs.losses.clone()));
        let gradients = mean_loss(pairs).backward();
        for (side, log_probs) in [("chosen", &policy.chosen), ("rejected", &policy.rejected)] {
            let gradient = log_probs.grad(&gradients).expect("both losses depend on the policy");
            println!("  gradient, log p({side}): {:.4?}", values(gradient));
        }
        // The constraint doesn't pull at the chosen responses: their rows are 0.
        if let Some(gradient) = policy_features.grad(&gradients) {
            println!("  gradient, features: {:.4?}", values(gradient));
        }
    };
    report("DPO", dpo(policy.clone(), reference.clone(), BETA));
    let average = |log_probs: &PerResponse| log_probs.clone() / tokens.clone();
    let distance = PerResponse::split(distance);
    report("FPO", fpo(average(&policy), average(&reference), distance, BETA, ALPHA, true));
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}
