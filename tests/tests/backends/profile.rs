//! How many kernels a step launches, and what its operations move: the figures of a step that a GPU isn't needed for.

use fpo_bench::{
    profile::PlaceReport,
    step::{StepSizes, measure},
};
use fpo_losses::Method;
use fpo_transformer::Precision;

use crate::support;

const LAYERS: usize = 2;

fn sizes(layers: usize) -> StepSizes {
    StepSizes {
        method: Method::FPO,
        pairs: 2,
        tokens: 32,
        prompt_tokens: None,
        model: None,
        vocab: 512,
        d_model: 64,
        layers,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ffn: 128,
        d_sae: 128,
        k: 16,
        precision: Precision::Float32,
        checkpoint_activations: false,
        lora_rank: None,
        steps: 2,
        profile: true,
    }
}

/// Bounds of what was counted; a change that needs more of either has to say why. Oracle of the sum: the clock around the step.
#[test]
fn a_step_launches_and_moves_no_more_than_it_did() {
    let Some([_, device]) = support::devices() else { return };
    let [one, two] = [1, LAYERS].map(|layers| measure(&sizes(layers), &device).unwrap());
    let [one, two] = [one, two].map(|report| {
        let profile = report.profile.unwrap();
        let sum = |of: fn(&PlaceReport) -> f64| profile.places.iter().map(of).sum::<f64>();
        let watched = profile.watched_step_seconds;
        let seconds = sum(|place| place.seconds);
        assert!((seconds / watched - 1.0).abs() < 0.03, "{seconds} s of {watched}");
        assert_eq!(sum(|place| place.flops), report.model_flops);
        let calls = |operation| {
            let of = profile.places.iter().filter(|place| place.operation == Some(operation));
            of.map(|place| (place.calls, place.launches))
                .fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d))
        };
        for (operation, per_call) in [("adamw_step", 1.0), ("sums_of_squares", 1.0)] {
            let (calls, launches) = calls(operation);
            assert_eq!(launches, per_call * calls, "{operation}");
        }
        for kernel in &profile.kernels {
            println!("{:>5} {}", kernel.launches, kernel.name);
        }
        let moved = sum(|place| place.bytes);
        println!(
            "{} launches, {:.0} watched, {moved} bytes",
            profile.launches,
            sum(|place| place.launches)
        );
        (profile.launches, moved)
    });
    let per_block = two.0 - one.0;
    println!("{per_block} launches per block");
    assert!(two.0 <= LAUNCHES, "{} launches", two.0);
    assert!(per_block <= PER_BLOCK, "{per_block} launches per block");
    assert!(two.1 <= BYTES, "{} bytes", two.1);
}

/// Launches of a step of two blocks.
const LAUNCHES: u64 = 0;
/// Launches of each further block.
const PER_BLOCK: u64 = 0;
/// Bytes that the operations of a step of two blocks move at least.
const BYTES: f64 = 0.0;
