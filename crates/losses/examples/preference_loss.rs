//! DPO and FPO on a batch of three pairs, with the gradients of both losses.
//!
//! `cargo run -p fpo-losses --example preference_loss`

use burn::tensor::{Device, Tensor};
use fpo_losses::{PairLosses, PerResponse, dpo, feature_distance, fpo, mean_loss};

const BETA: f64 = 0.1;
const ALPHA: f64 = 0.5;
/// Features compared: the k strongest of policy and of reference.
const K: usize = 2;

fn main() {
    let device = Device::flex().autodiff();
    let pairs = |chosen: [f32; 3], rejected: [f32; 3]| PerResponse {
        chosen: Tensor::from_floats(chosen, &device),
        rejected: Tensor::from_floats(rejected, &device),
    };

    // Log-probabilities summed over response tokens, in nats, and the token counts.
    let policy = pairs([-12.1, -30.4, -8.2], [-14.9, -28.0, -9.9]).map(Tensor::require_grad);
    let reference = pairs([-13.0, -31.0, -8.0], [-14.0, -29.5, -9.0]);
    let tokens = pairs([10.0, 24.0, 6.0], [12.0, 20.0, 8.0]);

    // Pooled activations of four features, a row per response: the chosen ones first.
    let features = |rows: [[f32; 4]; 6]| Tensor::<2>::from_floats(rows, &device);
    let of_chosen = [[0.0, 1.8, 0.4, 0.0], [0.9, 0.0, 0.2, 0.0], [0.0, 0.0, 1.1, 0.3]];
    let of_rejected = [[0.0, 2.4, 0.0, 0.0], [1.0, 0.7, 0.0, 0.0], [0.0, 0.0, 0.6, 0.9]];
    let [a, b, c] = of_chosen;
    let [d, e, f] = of_rejected;
    let policy_features = features([a, b, c, d, e, f]).require_grad();
    let reference_features = features([a, b, c, a, b, c]);
    let distance = feature_distance(policy_features.clone(), reference_features, K, None);
    let distance = PerResponse::split(distance);

    let report = |name: &str, pairs: PairLosses| {
        println!("{name}\n  losses               {}", row(pairs.losses.clone()));
        let gradients = mean_loss(pairs).backward();
        for (side, leaf) in [("chosen", &policy.chosen), ("rejected", &policy.rejected)] {
            let gradient = leaf.grad(&gradients).expect("both losses depend on the policy");
            println!("  d mean / d log p({side:<8}) {}", row(gradient));
        }
        if let Some(gradient) = policy_features.grad(&gradients) {
            println!("  d mean / d features, a row per response");
            for response in gradient.iter_dim(0) {
                println!("    {}", row(response.squeeze_dim(0)));
            }
        }
    };
    report("DPO", dpo(policy.clone(), reference.clone(), BETA));
    let average = |log_probs: &PerResponse| log_probs.clone() / tokens.clone();
    report("FPO", fpo(average(&policy), average(&reference), distance, BETA, ALPHA, true));
}

fn row(values: Tensor<1>) -> String {
    values.into_data().iter::<f32>().map(|x| format!("{x:>9.5}")).collect()
}
