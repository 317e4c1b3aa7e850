//! What is measured of tokens, against the models' own distributions, position by position.

use burn::tensor::{DType, Int, Tensor};
use fpo_data::TokenizedResponse;
use fpo_losses::{Method, Objective, Options, PerResponse};
use fpo_metrics::{
    Pairs, log,
    metrics::{entropy::ENTROPY, token_accuracy::TOKEN_ACCURACY},
};
use fpo_transformer::LanguageModel;

use crate::world::{World, evaluate, numbers};

/// log p of every token of the vocabulary where each token of a response is predicted, and that token.
fn predictions(model: &LanguageModel, response: &TokenizedResponse) -> Vec<(Vec<f64>, usize)> {
    let ids: Vec<i32> = response.tokens.iter().map(|&t| t as i32).collect();
    let input = Tensor::<1, Int>::from_ints(ids.as_slice(), &model.device());
    let hidden = model.forward(input.unsqueeze::<2>(), &[]).hidden_states.squeeze_dim(0);
    let logits = model.logits(hidden).to_data().iter::<f64>().collect::<Vec<_>>();
    let rows: Vec<&[f64]> = logits.chunks(logits.len() / ids.len()).collect();
    let at = |t: usize| {
        let total = rows[t - 1].iter().map(|z| z.exp()).sum::<f64>().ln();
        (rows[t - 1].iter().map(|z| z - total).collect(), ids[t] as usize)
    };
    (response.prompt_len..ids.len()).map(at).collect()
}

/// Sums a number of each prediction over both responses of every pair, the chosen ones first.
fn sums(world: &World, of: impl Fn(&TokenizedResponse) -> f64) -> Vec<f64> {
    let chosen = world.pairs.iter().map(|pair| of(&pair.chosen));
    chosen.chain(world.pairs.iter().map(|pair| of(&pair.rejected))).collect()
}

#[track_caller]
fn same(found: &PerResponse, expected: &[f64]) {
    let found = [numbers(found.chosen.clone()), numbers(found.rejected.clone())].concat();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 2e-5 * (1.0 + expected.abs()), "{found}, {expected}");
    }
}

#[test]
fn quantities_are_those_of_the_distributions() {
    let world = World::new();
    let (policy, reference) = (&world.policy, &world.reference);
    let options = Options { use_weighting: Some(true), ld_alpha: Some(0.5), ..Options::default() };
    let objective = Objective { options, ..Objective::paper(Method::DPO) };
    let q = world.aligner(objective, DType::F32).compare(policy, &world.all()).unwrap().quantities;
    let log_prob = |model: &LanguageModel, response: &TokenizedResponse, first: usize| -> f64 {
        predictions(model, response).iter().take(first).map(|(log_p, token)| log_p[*token]).sum()
    };
    let whole = usize::MAX;
    same(&q.log_probs, &sums(&world, |r| log_prob(policy, r, whole)));
    same(&q.reference.unwrap(), &sums(&world, |r| log_prob(reference, r, whole)));
    let aligned = |response: &TokenizedResponse| {
        let predictions = predictions(policy, response);
        let token = |(log_p, token): &(Vec<f64>, usize)| {
            log_p[*token] - log_p.iter().map(|x| (2.0 * x).exp()).sum::<f64>().ln()
        };
        predictions.iter().map(token).sum::<f64>() / predictions.len() as f64
    };
    same(&q.aligned.unwrap(), &sums(&world, aligned));
    // As many tokens as the shorter response has.
    let shared = |model| {
        let of = |response: &TokenizedResponse, other: &TokenizedResponse| {
            log_prob(model, response, other.tokens.len() - other.prompt_len)
        };
        let chosen = world.pairs.iter().map(|pair| of(&pair.chosen, &pair.rejected));
        let rejected = world.pairs.iter().map(|pair| of(&pair.rejected, &pair.chosen));
        chosen.chain(rejected).collect::<Vec<f64>>()
    };
    same(&q.shared.unwrap(), &shared(policy));
    same(&q.reference_shared.unwrap(), &shared(reference));

    let tdpo = world.aligner(Objective::paper(Method::TDPO1), DType::F32);
    let q = tdpo.compare(policy, &world.all()).unwrap().quantities;
    let kl = |response: &TokenizedResponse| -> f64 {
        let both = predictions(reference, response).into_iter().zip(predictions(policy, response));
        both.map(|((log_r, _), (log_p, _))| {
            log_r.iter().zip(&log_p).map(|(r, p)| r.exp() * (r - p)).sum::<f64>()
        })
        .sum()
    };
    same(&q.kl.unwrap(), &sums(&world, kl));
    assert!(q.distance.is_none() && q.shared.is_none() && q.aligned.is_none());
}

/// Entropy and token accuracy, measured only where they are asked for.
#[test]
fn token_statistics_are_those_of_the_distributions() {
    let world = World::new();
    let objective = Objective::paper(Method::DPO);
    let mut aligner = world.aligner(objective, DType::F32);
    let plain = aligner.compare(&world.policy, &world.all()).unwrap();
    assert!(plain.statistics.is_none());
    aligner.token_statistics = true;
    let mut pairs = Pairs::default();
    for part in [&[0, 1][..], &[2, 3, 4, 5]] {
        let (comparison, losses) = evaluate(&aligner, &world.policy, &world.batch(part));
        comparison.add_to(&mut pairs);
        pairs.add_losses(&losses);
    }
    let found = pairs.read();

    let (mut entropies, mut right) = (Vec::new(), Vec::new());
    for pair in &world.pairs {
        for response in [&pair.chosen, &pair.rejected] {
            for (log_p, token) in predictions(&world.policy, response) {
                entropies.push(-log_p.iter().map(|x| x.exp() * x).sum::<f64>());
                if std::ptr::eq(response, &pair.chosen) {
                    right.push(log_p.iter().all(|x| *x <= log_p[token]));
                }
            }
        }
    }
    let entropy = entropies.iter().sum::<f64>() / entropies.len() as f64;
    let accuracy = right.iter().filter(|r| **r).count() as f64 / right.len() as f64;
    let [found_entropy, found_accuracy] =
        [ENTROPY, TOKEN_ACCURACY].map(|metric| metric.mean(&found, &[]).unwrap());
    assert!((found_entropy - entropy).abs() < 1e-5);
    assert!((found_accuracy - accuracy).abs() < 1e-9);
    let (_, metrics) = log(&found);
    assert_eq!(metrics["entropy"].as_f64(), Some(found_entropy));
    assert_eq!(metrics["mean_token_accuracy"].as_f64(), Some(found_accuracy));
}
