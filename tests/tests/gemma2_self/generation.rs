//! Padding, cache and sampling leave a text's numbers alone.

use std::collections::BTreeSet;

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::Tensor,
};
use fpo_transformer::{
    Error, Generated, GenerationOptions, Site, generate, generate::generate_with,
};

use crate::support::{config, model, text, tokens};

/// Oracle: each row alone, without padding, but for the rounding of differently shaped products; and
/// to the bit the same batch padded with other tokens.
#[test]
fn a_padded_batch_equals_its_rows() {
    let model = model(&config());
    let sites: Vec<Site> = (0..3).map(Site::resid_post).collect();
    let forward = |rows: &[Vec<u32>]| {
        let output = model.forward(tokens(rows), &sites);
        [vec![output.hidden_states], output.sites].concat()
    };
    let rows = [text(1, 17), text(2, 9), text(3, 1)];
    let padded_with = |padding: u32| {
        let pad = |row: &Vec<u32>| [row.clone(), vec![padding; 17 - row.len()]].concat();
        forward(&rows.iter().map(pad).collect::<Vec<_>>())
    };
    let (batch, other_padding) = (padded_with(0), padded_with(33));
    for (index, row) in rows.iter().enumerate() {
        let alone = forward(std::slice::from_ref(row));
        for ((batch, other), alone) in batch.iter().zip(&other_padding).zip(alone) {
            let real = |x: &Tensor<3>| x.clone().slice([index..index + 1, 0..row.len()]);
            assert!(real(batch).into_data() == real(other).into_data(), "row {index} sees padding");
            let largest: f32 = alone.clone().abs().max().into_scalar();
            let difference: f32 = (real(batch) - alone).abs().max().into_scalar();
            assert!(difference < 1e-5 * largest, "row {index}: {difference} of {largest}");
        }
    }
}

/// Oracle: the whole text anew for every token, without cache and without padding.
#[test]
fn cached_generation_equals_recomputing() {
    let model = model(&config());
    let prompts = [text(4, 3), text(5, 12), text(6, 1)];
    let answers = generate(&model, &prompts, &greedy(24)).unwrap();
    for (index, (prompt, answer)) in prompts.iter().zip(&answers).enumerate() {
        let mut whole = prompt.clone();
        let mut entropies = Vec::new();
        for _ in 0..24 {
            let hidden = model.forward(tokens(std::slice::from_ref(&whole)), &[]).hidden_states;
            let [_, length, d_model] = hidden.dims();
            let last = hidden.slice([0..1, length - 1..length]).reshape([1, d_model]);
            let logits: Vec<f32> = model.logits(last).into_data().iter::<f32>().collect();
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = logits.iter().map(|l| (l - most).exp()).sum();
            let log_probs: Vec<f32> = logits.iter().map(|l| l - most - sum.ln()).collect();
            entropies.push(log_probs.iter().map(|p| -p * p.exp()).sum::<f32>());
            whole.push(logits.iter().position(|&l| l == most).unwrap() as u32);
        }
        assert_eq!(answer.tokens, whole[prompt.len()..], "prompt {index}");
        assert!(!answer.stopped);
        for (ours, slow) in answer.entropies.iter().zip(&entropies) {
            assert!((ours - slow).abs() < 1e-4, "prompt {index}: {ours} nats, slowly {slow}");
        }
    }
    let different: BTreeSet<u32> = answers.into_iter().flat_map(|a| a.tokens).collect();
    assert!(different.len() > 5, "a dull test: {different:?}");
}

#[test]
fn neighbours_and_stop_tokens_leave_an_answer_alone() {
    let model = model(&config());
    let prompts = [text(7, 5), text(8, 11)];
    let sampled =
        GenerationOptions { temperature: 1.0, top_k: Some(20), top_p: Some(0.95), ..greedy(16) };
    for options in [greedy(16), sampled] {
        let both = generate(&model, &prompts, &options).unwrap();
        assert_eq!(both[0].tokens, generate(&model, &prompts[..1], &options).unwrap()[0].tokens);

        let stop = both[0].tokens[4];
        let ended = GenerationOptions { stop_tokens: vec![stop], ..options };
        for (whole, ended) in both.iter().zip(generate(&model, &prompts, &ended).unwrap()) {
            let until =
                whole.tokens.iter().take_while(|t| **t != stop).copied().collect::<Vec<_>>();
            assert_eq!(ended.tokens, until);
            assert_eq!(ended.stopped, until.len() < 16);
            assert_eq!(ended.entropies.len(), until.len() + usize::from(ended.stopped));
        }
    }
    let prompt = vec![2, config().vocab_size as u32];
    for (prompts, options) in
        [(vec![vec![]], greedy(1)), (vec![prompt], greedy(1)), (vec![vec![2]], greedy(1 << 20))]
    {
        assert!(matches!(generate(&model, &prompts, &options), Err(Error::Prompt { .. })));
    }
    assert_eq!(generate(&model, &prompts[..1], &greedy(0)).unwrap(), [Generated::default()]);
}

fn greedy(max_new_tokens: usize) -> GenerationOptions {
    let stop_tokens = vec![u32::MAX];
    GenerationOptions { max_new_tokens, temperature: 0.0, stop_tokens, ..Default::default() }
}

/// Oracle: the prompts one by one; and a list cut elsewhere.
#[test]
fn an_answer_depends_on_its_number_and_not_on_how_the_list_was_cut() {
    let model = model(&config());
    let prompts = [text(9, 4), text(10, 9), text(11, 2)];
    let options =
        GenerationOptions { temperature: 1.3, repetition_penalty: 1.2, seed: 5, ..greedy(12) };
    let whole = generate(&model, &prompts, &options).unwrap();
    for (index, prompt) in prompts.iter().enumerate() {
        let alone = GenerationOptions { first_prompt: index as u64, ..options.clone() };
        let mut told = Vec::new();
        let tell = |row, token| told.push((row, token));
        let answer = generate_with(&model, std::slice::from_ref(prompt), &alone, tell).unwrap();
        assert_eq!(answer[0].tokens, whole[index].tokens, "prompt {index}");
        assert!(told.into_iter().eq(answer[0].tokens.iter().map(|&token| (0, token))));
    }
    assert_ne!(whole[0].tokens, generate(&model, &prompts[1..], &options).unwrap()[0].tokens);
}

/// A penalty large enough leaves no token a second time.
#[test]
fn a_penalty_covers_prompt_and_answer() {
    let model = model(&config());
    let prompt = text(12, 6);
    let options = GenerationOptions { repetition_penalty: 1e6, ..greedy(20) };
    let answer = generate(&model, std::slice::from_ref(&prompt), &options).unwrap();
    let plain = generate(&model, std::slice::from_ref(&prompt), &greedy(20)).unwrap();
    let all: Vec<u32> = prompt.iter().chain(&answer[0].tokens).copied().collect();
    let different: BTreeSet<u32> = all.iter().copied().collect();
    assert!(answer[0].tokens != plain[0].tokens);
    assert!(different.len() + prompt.len() >= all.len(), "{all:?} repeats itself");
}

struct Broken;

impl ModuleMapper for Broken {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|x| x * f32::NAN)
    }
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let model = model(&config()).map(&mut Broken);
    let error = generate(&model, &[vec![1, 2]], &greedy(4)).unwrap_err();
    assert!(error.to_string().contains("check the model's weights for NaN"), "{error}");
}
