//! However the pairs of a step are cut into parts, ordered or padded, they come to the same.

use burn::tensor::{DType, Device};
use fpo_data::PairBatch;
use fpo_losses::{Method, Objective};
use fpo_trainer::{
    aligner::Aligner, alignment_step::step_gradients, forward::Keep, optim::StepGradients,
};
use fpo_transformer::{LanguageModel, LoraConfig};

use crate::{
    gradients::differ,
    world::{World, cast, evaluate, logged_losses, numbers, objectives, shifted, trained},
};

#[test]
fn micro_batches_add_up_to_the_batch() {
    let world = World::new();
    for (dtype, tolerance) in [(DType::F64, 1e-10), (DType::F32, 1e-5)] {
        let policy = trained(&cast(&world.policy, dtype));
        for objective in objectives() {
            let aligner = world.aligner(objective, dtype);
            let step = |parts: &[&[usize]]| {
                let parts: Vec<PairBatch> = parts.iter().map(|p| world.batch(p)).collect();
                step_gradients(&aligner, &policy, &parts, StepGradients::default()).unwrap()
            };
            let (whole, log) = step(&[&[0, 1, 2, 3, 4, 5]]);
            let losses = logged_losses(&log);
            for parts in [&[&[0, 1, 2][..], &[3, 4, 5]][..], &[&[0], &[1, 2, 3], &[4, 5]]] {
                let (gradients, log) = step(parts);
                let difference = differ(&gradients, &whole);
                assert!(difference < tolerance, "{objective:?} in {parts:?}: {difference}");
                for (a, b) in logged_losses(&log).iter().zip(&losses) {
                    assert!((a - b).abs() < tolerance * (1.0 + b.abs()), "{objective:?}: {a}, {b}");
                }
            }
        }
    }
}

/// With dropout too: the mask of a row is its own, also in the two passes of losses of the whole step.
#[test]
fn micro_batches_have_the_masks_of_the_batch() {
    let world = World::new();
    let config = LoraConfig { rank: 3, dropout: 0.3, ..LoraConfig::default() };
    let policy = world.policy.with_new_lora(&config, 4, &Device::flex()).unwrap();
    // B moves away from zero, so that what is dropped matters.
    let policy = trained(&shifted(&cast(&policy, DType::F64), 5, 0.3)).dropping(1, 7);
    for objective in objectives() {
        let aligner = world.aligner(objective, DType::F64);
        let step = |parts: &[&[usize]], policy: &LanguageModel| {
            let parts: Vec<PairBatch> = parts.iter().map(|p| world.batch(p)).collect();
            step_gradients(&aligner, policy, &parts, StepGradients::default()).unwrap()
        };
        let (whole, log) = step(&[&[0, 1, 2, 3, 4, 5]], &policy);
        let (parts, log_of_parts) = step(&[&[0], &[1, 2, 3], &[4, 5]], &policy);
        let difference = differ(&parts, &whole);
        assert!(difference < 1e-10, "{objective:?}: {difference}");
        for (a, b) in logged_losses(&log_of_parts).iter().zip(&logged_losses(&log)) {
            assert!((a - b).abs() < 1e-10 * (1.0 + b.abs()), "{objective:?}: {a}, {b}");
        }
        let (other, _) = step(&[&[0, 1, 2, 3, 4, 5]], &policy.dropping(1, 8));
        assert!(differ(&other, &whole) > 1e-4, "{objective:?}: another step, the same mask");
    }
}

/// Oracle: the step with all activations kept.
#[test]
fn recomputed_activations_are_the_same_step() {
    let world = World::new();
    let policy = trained(&cast(&world.policy, DType::F64));
    for objective in objectives() {
        for parts in [&[&[0, 1, 2, 3, 4, 5][..]][..], &[&[0, 1], &[2, 3, 4, 5]]] {
            let parts: Vec<PairBatch> = parts.iter().map(|p| world.batch(p)).collect();
            let step = |keep| {
                let aligner = Aligner { keep, ..world.aligner(objective, DType::F64) };
                step_gradients(&aligner, &policy, &parts, StepGradients::default()).unwrap().0
            };
            let difference = differ(&step(Keep::BlockInputs), &step(Keep::All));
            assert!(difference < 1e-12, "{objective:?} in {} parts: {difference}", parts.len());
        }
    }
}

/// Oracle for the first test above: the losses of AOT's micro-batches alone are other ones.
#[test]
fn the_whole_step_matters_to_transport() {
    let world = World::new();
    let policy = cast(&world.policy, DType::F64);
    for name in ["aot", "aot-unpaired", "bco-pair"] {
        let method = name.parse().unwrap();
        let objective = Objective { beta: 0.3, ..Objective::paper(method) };
        let aligner = world.aligner(objective, DType::F64);
        let mean = |parts: &[&[usize]]| {
            let losses = parts
                .iter()
                .flat_map(|part| numbers(evaluate(&aligner, &policy, &world.batch(part)).1.losses));
            losses.sum::<f64>() / 6.0
        };
        let (whole, parts) = (mean(&[&[0, 1, 2, 3, 4, 5]]), mean(&[&[0, 5], &[1, 4], &[2], &[3]]));
        assert!((whole - parts).abs() > 1e-6, "{name}: {whole}, in parts {parts}");
    }
}

/// D of a pair is its own: alone, among longer ones (which pads it), in another order.
#[test]
fn the_distance_of_a_pair_is_its_own() {
    let world = World::new();
    let aligner = world.aligner(Objective::paper(Method::FPO), DType::F32);
    let distance = |pairs: &[usize]| -> Vec<[f64; 2]> {
        let measured = aligner.compare(&world.policy, &world.batch(pairs)).unwrap();
        let distance = measured.quantities.distance.unwrap();
        let [chosen, rejected] = [numbers(distance.chosen), numbers(distance.rejected)];
        chosen.into_iter().zip(rejected).map(|(c, r)| [c, r]).collect()
    };
    let all = distance(&[0, 1, 2, 3, 4, 5]);
    let reversed = distance(&[5, 4, 3, 2, 1, 0]);
    for i in 0..6 {
        for side in 0..2 {
            let expected = distance(&[i])[0][side];
            assert!(expected > 1e-4, "nothing to compare: {expected}");
            for found in [all[i][side], reversed[5 - i][side]] {
                assert!((found - expected).abs() < 1e-6 * (1.0 + expected), "{found}, {expected}");
            }
        }
    }
}
