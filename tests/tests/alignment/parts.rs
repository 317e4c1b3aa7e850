//! However the pairs of a step are cut into parts, ordered or padded, they come to the same.

use burn::tensor::{DType, Tensor};
use fpo_data::PairBatch;
use fpo_losses::{Method, Objective, Options};
use fpo_trainer::{alignment_step::step_gradients, pair_log::Log};

use crate::{
    gradients::differ,
    world::{World, cast, numbers, objectives, trained},
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
                step_gradients(&aligner, &policy, &parts).unwrap()
            };
            let (whole, log) = step(&[&[0, 1, 2, 3, 4, 5]]);
            let losses = log.numbers(&objective).values("loss").to_vec();
            for parts in [&[&[0, 1, 2][..], &[3, 4, 5]][..], &[&[0], &[1, 2, 3], &[4, 5]]] {
                let (gradients, log) = step(parts);
                let difference = differ(&gradients, &whole);
                assert!(difference < tolerance, "{objective:?} in {parts:?}: {difference}");
                for (a, b) in log.numbers(&objective).values("loss").iter().zip(&losses) {
                    assert!((a - b).abs() < tolerance * (1.0 + b.abs()), "{objective:?}: {a}, {b}");
                }
            }
        }
    }
}

/// Oracle for the test above: the losses of AOT's micro-batches alone are other ones.
#[test]
fn the_whole_step_matters_to_transport() {
    let world = World::new();
    let policy = cast(&world.policy, DType::F64);
    for method in [Method::Aot, Method::AotUnpaired, Method::BcoPair] {
        let objective = Objective { beta: 0.3, ..Objective::paper(method) };
        let aligner = world.aligner(objective, DType::F64);
        let mean = |parts: &[&[usize]]| {
            let losses = parts.iter().flat_map(|part| {
                numbers(aligner.evaluate(&policy, &world.batch(part)).unwrap().1.losses)
            });
            losses.sum::<f64>() / 6.0
        };
        let (whole, parts) = (mean(&[&[0, 1, 2, 3, 4, 5]]), mean(&[&[0, 5], &[1, 4], &[2], &[3]]));
        assert!((whole - parts).abs() > 1e-6, "{method}: {whole}, in parts {parts}");
    }
}

/// D of a pair is its own: alone, among longer ones (which pads it), in another order.
#[test]
fn the_distance_of_a_pair_is_its_own() {
    let world = World::new();
    let aligner = world.aligner(Objective::paper(Method::Fpo), DType::F32);
    let distance = |pairs: &[usize]| -> Vec<[f64; 2]> {
        let measured = aligner.measure(&world.policy, &world.batch(pairs)).unwrap();
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

/// Entropy and token accuracy against the logits themselves; nothing else moves when they are asked for.
#[test]
fn token_statistics_are_those_of_the_logits() {
    let world = World::new();
    let objective = Objective::paper(Method::Dpo);
    let mut aligner = world.aligner(objective, DType::F32);
    let plain = aligner.measure(&world.policy, &world.all()).unwrap();
    assert!(plain.entropy.is_none() && plain.right.is_none());
    aligner.token_statistics = true;
    let mut log = Log::default();
    for part in [&[0, 1][..], &[2, 3, 4, 5]] {
        log.add(&aligner.measure(&world.policy, &world.batch(part)).unwrap());
    }
    let found = log.numbers(&objective);

    let (mut entropy, mut right, mut tokens, mut chosen_tokens) = (0.0, 0.0, 0.0, 0.0);
    for pair in &world.pairs {
        for (is_chosen, response) in [(true, &pair.chosen), (false, &pair.rejected)] {
            let ids: Vec<i32> = response.tokens.iter().map(|&t| t as i32).collect();
            let input =
                Tensor::<1, burn::tensor::Int>::from_ints(ids.as_slice(), &world.policy.device());
            let hidden = world.policy.forward(input.unsqueeze(), &[]).hidden_states.squeeze_dim(0);
            let logits = world.policy.logits(hidden).to_data().iter::<f64>().collect::<Vec<_>>();
            let width = logits.len() / ids.len();
            for t in response.prompt_len..ids.len() {
                let row = &logits[(t - 1) * width..t * width];
                let total = row.iter().map(|z| z.exp()).sum::<f64>();
                entropy -= row.iter().map(|z| z.exp() / total * (z - total.ln())).sum::<f64>();
                let best = (0..width).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
                tokens += 1.0;
                if is_chosen {
                    right += f64::from(best as i32 == ids[t]);
                    chosen_tokens += 1.0;
                }
            }
        }
    }
    assert!((found.entropy().unwrap() - entropy / tokens).abs() < 1e-5);
    assert!((found.mean_token_accuracy().unwrap() - right / chosen_tokens).abs() < 1e-9);
    let (_, metrics) = found.metrics(&objective);
    assert_eq!(metrics["entropy"].as_f64(), found.entropy());
    assert_eq!(plain.quantities.log_probs.chosen.dims(), [6]);
}

/// WPO's weights against the distributions themselves.
#[test]
fn aligned_log_probabilities_are_those_of_the_distribution() {
    let world = World::new();
    let options = Options { use_weighting: Some(true), ..Options::default() };
    let aligner = world.aligner(Objective { options, ..Objective::paper(Method::Dpo) }, DType::F32);
    let measured = aligner.measure(&world.policy, &world.all()).unwrap();
    let aligned = numbers(measured.quantities.aligned.unwrap().chosen);
    for (pair, found) in world.pairs.iter().zip(aligned) {
        let ids: Vec<i32> = pair.chosen.tokens.iter().map(|&t| t as i32).collect();
        let input =
            Tensor::<1, burn::tensor::Int>::from_ints(ids.as_slice(), &world.policy.device());
        let hidden = world.policy.forward(input.unsqueeze(), &[]).hidden_states.squeeze_dim(0);
        let logits = world.policy.logits(hidden).to_data().iter::<f64>().collect::<Vec<_>>();
        let width = logits.len() / ids.len();
        let mut sum = 0.0;
        for t in pair.chosen.prompt_len..ids.len() {
            let row = &logits[(t - 1) * width..t * width];
            let total = row.iter().map(|z| z.exp()).sum::<f64>();
            let p = |v: usize| row[v].exp() / total;
            let squares = (0..width).map(|v| p(v).powi(2)).sum::<f64>();
            sum += (p(ids[t] as usize) / squares).ln();
        }
        let expected = sum / (ids.len() - pair.chosen.prompt_len) as f64;
        assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
    }
}
