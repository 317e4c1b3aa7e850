//! Pairs that lie flat, with their prompt there once: each response as if it were a padded row of its own.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{DType, Device, Tensor},
};
use fpo_data::{PairBatch, PairView, ResponseView, SequenceBatch, TokenBatch};
use fpo_interp::reader::{indices, input};
use fpo_transformer::{ForwardOutput, LanguageModel, Placement, Precision, weights};

use crate::common::{
    CASES, Named, all_sites, assert_equal_gradients, checkpoint, difference, load, noise, padded,
    text, values,
};

/// Tokens of prompt, chosen and rejected response: one token, fewer and more than every window.
const PAIRS: [[usize; 3]; 5] = [[1, 1, 1], [23, 4, 1], [2, 1, 30], [9, 9, 8], [1, 12, 3]];

struct Rows {
    rows: Vec<Vec<u32>>,
    prompts: Vec<usize>,
    batch: TokenBatch,
}

/// The pairs, chosen rows first. The responses of the last pair begin with the same tokens, and one of them is a beginning of the
/// other.
fn pairs() -> Rows {
    let mut rows = [Vec::new(), Vec::new()];
    let mut prompts = Vec::new();
    for (&[prompt, chosen, rejected], seed) in PAIRS.iter().zip(1..) {
        let longest = chosen.max(rejected);
        let tokens = text(seed, prompt + longest);
        let mut other = tokens.clone();
        if seed < PAIRS.len() as u64 {
            // None of these is the same token again.
            other[prompt..].iter_mut().for_each(|token| *token = (*token + 7) % 50);
        }
        rows[0].push(tokens[..prompt + chosen].to_vec());
        rows[1].push(other[..prompt + rejected].to_vec());
        prompts.push(prompt);
    }
    let view = |side: usize, pair: usize| ResponseView {
        tokens: &rows[side][pair],
        prompt_len: prompts[pair],
    };
    let views: Vec<_> = (0..PAIRS.len())
        .map(|pair| PairView { id: pair as u64, chosen: view(0, pair), rejected: view(1, pair) })
        .collect();
    let batch = PairBatch::new(&views).unwrap().batch;
    let shared: usize = PAIRS.iter().map(|[prompt, ..]| prompt).sum::<usize>() + 3;
    assert_eq!(batch.tokens.len(), batch.real_tokens() - shared, "prompts are there once");
    Rows { rows: rows.concat(), prompts: [prompts.clone(), prompts].concat(), batch }
}

/// Oracle: [`LanguageModel::forward`] over padded rows, each with its own prompt. Hidden states and all sites at every position,
/// log-probabilities, and the gradients of a loss of all of them.
#[test]
fn flat_pairs_equal_padded_rows() {
    let pairs = pairs();
    for case in CASES {
        let model = load(case, &Device::flex().autodiff());
        // In float32 each layer rounds otherwise; an error would be there in one layer alone.
        for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::F64, 1e-6)] {
            let what = format!("{case}, {dtype:?}");
            check(&what, &cast(&model, dtype), &pairs, tolerance);
        }
    }
}

#[test]
fn so_do_single_sequences() {
    let rows = pairs().rows;
    let items: Vec<_> = rows
        .iter()
        .filter(|row| row.len() > 1)
        .map(|row| fpo_data::tokens::ExampleView {
            id: 0,
            response: ResponseView { tokens: row, prompt_len: 1 },
            context: &[],
        })
        .collect();
    let batch = SequenceBatch::new(&items).unwrap().batch;
    let rows: Vec<_> = items.iter().map(|item| item.response.tokens.to_vec()).collect();
    let rows = Rows { prompts: vec![1; rows.len()], rows, batch };
    for case in ["grouped", "qwen3_tied"] {
        check(case, &load(case, &Device::flex().autodiff()), &rows, 2e-6);
    }
}

/// Keys and values that both rows see have one gradient, which is rounded to bfloat16 once for both rows rather than once for each.
/// Oracle: float32's gradients, from which neither layout is farther than the other. Forward nothing is added in another place.
#[test]
fn and_in_mixed_precision_up_to_rounding() {
    let placement = Placement::new(Device::flex().autodiff(), Precision::Bf16Mixed);
    for case in ["grouped", "gemma3_windows", "llama_grouped"] {
        let mixed = weights::load(&checkpoint(case), &placement).unwrap();
        let [padded, flat, recomputed] = gradients(case, &mixed, &pairs(), 1e-6);
        let [exact, ..] = gradients(case, &load(case, &mixed.device()), &pairs(), 2e-6);
        let [padded, flat, recomputed] =
            [padded, flat, recomputed].map(|gradients| distance(&gradients, &exact));
        println!("{case}: padded {padded:.2e} from float32, flat {flat:.2e}, {recomputed:.2e}");
        assert!(padded < 0.5, "{case}: {padded}");
        for found in [flat, recomputed] {
            assert!(found < 1.1 * padded, "{case}: {found}, {padded} with padded rows");
        }
    }
}

/// The length of the difference of all gradients, in relation to that of `expected`.
fn distance(found: &Gradients, expected: &Gradients) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let pairs = |name: &String| found[name].iter().zip(&expected[name]);
    let apart: f64 = expected.keys().flat_map(pairs).map(|(a, b)| square(a - b)).sum();
    let length: f64 = expected.values().flatten().map(|&x| square(x)).sum();
    (apart / length).sqrt()
}

/// Holds outputs and gradients to a tolerance.
fn check(what: &str, model: &LanguageModel, rows: &Rows, tolerance: f32) {
    let [expected, flat, recomputed] = &gradients(what, model, rows, tolerance);
    assert_equal_gradients(what, flat, expected, tolerance);
    assert_equal_gradients(&format!("{what}, recomputed"), recomputed, expected, tolerance);
}

type Gradients = BTreeMap<String, Vec<f32>>;

/// The gradients of padded rows, of flat ones, and of these with recomputed activations. Holds outputs to a tolerance.
fn gradients(what: &str, model: &LanguageModel, rows: &Rows, of_outputs: f32) -> [Gradients; 3] {
    let (batch, sites, device) = (&rows.batch, all_sites(model), model.device());
    let width = rows.rows.iter().map(Vec::len).max().unwrap();
    let alone: Vec<i32> = rows
        .rows
        .iter()
        .enumerate()
        .flat_map(|(row, tokens)| (0..tokens.len()).map(move |t| (row * width + t) as i32))
        .collect();
    let together: Vec<i32> =
        batch.places.iter().flatten().cloned().flatten().map(|at| at as i32).collect();
    let expected = outputs(&model.forward(padded(&rows.rows, &device), &sites), alone);
    let flat = outputs(&model.forward(input(batch, &device), &sites), together.clone());
    let (output, tape) = model.forward_checkpointed(input(batch, &device), &sites);
    let recomputed = outputs(&output, together);

    let predicting = rows.rows.iter().zip(&rows.prompts).scan(0, |first, (row, prompt)| {
        let start = *first;
        *first += row.len();
        Some((start + prompt - 1..start + row.len() - 1).map(|at| at as i32).collect::<Vec<_>>())
    });
    let predicting: Vec<i32> = predicting.flatten().collect();
    let targets = rows.rows.iter().zip(&rows.prompts).flat_map(|(row, prompt)| &row[*prompt..]);
    let targets: Vec<i32> = targets.map(|&token| token as i32).collect();
    assert_eq!(batch.targets(), targets);
    let log_probs = |outputs: &[Tensor<2>]| {
        let hidden = outputs[0].clone().select(0, indices(predicting.clone(), &device));
        model.head().log_probs(hidden, indices(targets.clone(), &device))
    };
    let loss = |outputs: &[Tensor<2>]| {
        let log_probs = log_probs(outputs);
        let parts = outputs.iter().zip(3..).map(|(x, seed)| {
            let x = x.clone().cast(log_probs.dtype());
            let weights = noise(x.dims(), seed, &device).cast(x.dtype());
            (x * weights).mean()
        });
        parts.reduce(|a, b| a + b).unwrap() + log_probs.mean()
    };
    let mut worst = 0.0f32;
    for found in [&flat, &recomputed] {
        for (found, expected) in found.iter().zip(&expected) {
            worst = worst.max(difference(&values(found.clone()), &values(expected.clone())));
        }
        worst = worst.max(difference(&values(log_probs(found)), &values(log_probs(&expected))));
    }
    println!("{what}: outputs differ by at most {worst:.1e}");
    assert!(worst <= of_outputs, "{what}: {worst}");

    let gradients = |outputs: &[Tensor<2>]| loss(outputs).backward();
    let mut by_name = [BTreeMap::new(), BTreeMap::new(), BTreeMap::new()];
    Named::add(model, &gradients(&expected), &mut by_name[0]);
    Named::add(model, &gradients(&flat), &mut by_name[1]);
    let mut from_outputs = gradients(&recomputed);
    Named::add(model, &from_outputs, &mut by_name[2]);
    Named::add_of_tape(tape, model, &mut from_outputs, &mut by_name[2]);
    by_name
}

/// Hidden states and sites at the rows' tokens, `[tokens of all rows, width]`.
fn outputs(output: &ForwardOutput, at: Vec<i32>) -> Vec<Tensor<2>> {
    let all = std::iter::once(&output.hidden_states).chain(&output.sites);
    let at = indices(at, &output.hidden_states.device());
    all.map(|x| x.clone().flatten::<2>(0, 1).select(0, at.clone())).collect()
}

fn cast(model: &LanguageModel, dtype: DType) -> LanguageModel {
    struct Cast(DType);
    impl ModuleMapper for Cast {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|x| x.without_autodiff().cast(self.0).autodiff().require_grad())
        }
    }
    model.clone().map(&mut Cast(dtype))
}
