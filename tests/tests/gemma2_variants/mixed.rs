//! In mixed precision: the same numbers whichever way they are held, and small steps that are not lost.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{DType, Device, Tensor},
};
use fpo_transformer::{
    ForwardOutput, GenerationOptions, LanguageModel, Placement, Precision, Projection, Site,
    generate, weights,
};

use crate::common::{
    CASES, Named, all_sites, assert_equal_gradients, checkpoint, load, padded, text, values,
};

fn mixed(device: Device) -> Placement {
    Placement::new(device, Precision::Bf16Mixed)
}

fn load_mixed(case: &str, placement: &Placement) -> LanguageModel {
    weights::load(&checkpoint(case), placement).unwrap()
}

/// Hidden states and activations on a few texts.
fn outputs(model: &LanguageModel) -> Vec<Vec<f32>> {
    let tokens = padded(&[text(1, 17), text(2, 9)], &model.device());
    let output = model.forward(tokens, &all_sites(model));
    assert!(output.sites.iter().all(|site| site.dtype() == DType::F32));
    let hidden = values(output.hidden_states.cast(DType::F32));
    std::iter::once(hidden).chain(output.sites.into_iter().map(values)).collect()
}

/// A reference is frozen, its policy is not: held in bfloat16 and in float32, they must begin as one function.
#[test]
fn frozen_and_trained_models_compute_the_same() {
    for case in CASES {
        let frozen = load_mixed(case, &mixed(Device::flex()));
        let trained = load_mixed(case, &mixed(Device::flex().autodiff()));
        let held = |model: &LanguageModel| {
            let block = &model.model.layers[0];
            [model.unembedding().dtype(), block.mlp.up_proj.weight.val().dtype()]
        };
        assert_eq!([held(&frozen), held(&trained)], [[DType::BF16; 2], [DType::F32; 2]]);
        assert!(outputs(&frozen) == outputs(&trained), "{case}");
        assert!(outputs(&frozen) != outputs(&load(case, &Device::flex())), "{case}: no rounding");
    }
}

/// Oracle: the model that was saved; its matrices are bfloat16 numbers, which float32 holds.
#[test]
fn a_frozen_model_is_saved_in_float32() {
    let model = load_mixed("grouped", &mixed(Device::flex()));
    let folder = tempfile::tempdir().unwrap();
    weights::save(&model, folder.path()).unwrap();
    let again = weights::load(folder.path(), mixed(Device::flex())).unwrap();
    assert!(outputs(&again) == outputs(&model));
}

/// Oracle: the plain pass, to the bit. Sums of gradients are in the same order as long as the loss uses each output once, which is
/// what multiplying by 1 is for. A square uses it twice, and in the plain graph its two halves are added one by one to the rest of
/// the residual stream's gradient, which may change the last bit of the sum, and by that how a factor is rounded to bfloat16.
#[test]
fn recomputed_activations_give_the_same_gradients() {
    for case in CASES {
        let model = load_mixed(case, &mixed(Device::flex().autodiff()));
        let check = |what: &str, sites: &[Site], hidden: bool| {
            let tokens = padded(&[text(1, 17), text(2, 9)], &model.device());
            let loss = |output: &ForwardOutput| {
                let sites = output.sites.iter().map(|site| (site.clone() * 1.0).square().mean());
                let hidden =
                    hidden.then(|| output.hidden_states.clone().cast(DType::F32).square().mean());
                hidden.into_iter().chain(sites).reduce(|a, b| a + b).unwrap()
            };
            let (mut expected, mut found) = (BTreeMap::new(), BTreeMap::new());
            let plain = loss(&model.forward(tokens.clone(), sites));
            Named::add(&model, &plain.backward(), &mut expected);
            let (output, tape) = model.forward_checkpointed(tokens, sites);
            let mut gradients = loss(&output).backward();
            Named::add(&model, &gradients, &mut found);
            Named::add_of_tape(tape, &model, &mut gradients, &mut found);
            assert_equal_gradients(&format!("{case}, {what}"), &found, &expected, 0.0);
        };
        let sites = all_sites(&model);
        check("hidden states", &[], true);
        for site in &sites {
            check(&site.to_string(), &[*site], false);
        }
        check("all", &sites, true);
    }
}

/// Adapters begin by adding nothing, and merging them changes nothing but the type.
#[test]
fn adapters_lie_beside_a_model_in_bfloat16() {
    let base = load_mixed("grouped", &mixed(Device::flex()));
    let config = fpo_transformer::LoraConfig { rank: 2, ..Default::default() };
    let model = base.with_new_lora(&config, 0, &Device::flex().autodiff()).unwrap();
    assert!(outputs(&model) == outputs(&base));
    let lora = model.model.layers[0].self_attn.q_proj.lora.as_ref().unwrap();
    assert_eq!(lora.a.val().dtype(), DType::F32);
    let tokens = padded(&[text(3, 9)], &model.device());
    let loss = model.forward(tokens, &[]).hidden_states.cast(DType::F32).square().mean();
    let mut found = BTreeMap::new();
    Named::add(&model, &loss.backward(), &mut found);
    let per_layer = 2 * Projection::ALL.len();
    assert_eq!(found.len(), per_layer * model.config().num_hidden_layers);
    assert!(outputs(&model.merged()) == outputs(&base));
}

/// Every matrix grows by a part that bfloat16 can't tell from one.
struct Grow(f64);

impl ModuleMapper for Grow {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match D {
            2 => param.map(|x| (x.inner() * self.0).autodiff().require_grad()),
            _ => param,
        }
    }
}

#[test]
fn small_steps_add_up() {
    let model = load_mixed("grouped", &mixed(Device::flex().autodiff()));
    let before = outputs(&model);
    let step = 1.0 + 2f64.powi(-14);
    let once = model.clone().map(&mut Grow(step));
    let mut often = model;
    for _ in 0..256 {
        often = often.map(&mut Grow(step));
    }
    let far = |model: &LanguageModel| -> f32 {
        let differences = outputs(model).concat().into_iter().zip(before.concat());
        differences.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    let (once, often) = (far(&once), far(&often));
    println!("one step moves outputs by {once}, 256 by {often}");
    assert!(often > 2.0 * once && often > 0.05);
}

/// Greedy answers come from the cache; the oracle is the pass over the whole text.
#[test]
fn generation_chooses_what_the_whole_text_says() {
    let model = load_mixed("six_layers", &mixed(Device::flex()));
    let prompt = text(5, 11);
    let options = GenerationOptions {
        max_new_tokens: 24,
        temperature: 0.0,
        stop_tokens: vec![u32::MAX],
        ..GenerationOptions::default()
    };
    let answer =
        generate(&model, std::slice::from_ref(&prompt), &options).unwrap().remove(0).tokens;
    let whole: Vec<u32> = prompt.iter().chain(&answer).copied().collect();
    let hidden =
        model.forward(padded(std::slice::from_ref(&whole), &model.device()), &[]).hidden_states;
    let [_, width, d_model] = hidden.dims();
    let logits = model.logits(hidden.reshape([width, d_model]));
    assert_eq!(logits.dtype(), DType::F32);
    let [_, vocabulary] = logits.dims();
    let logits = values(logits);
    for (at, &token) in (prompt.len()..).zip(&answer) {
        let row = &logits[(at - 1) * vocabulary..][..vocabulary];
        let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // The cache attends in another order: what is chosen is among what rounding can't tell apart.
        assert!(
            row[token as usize] > best - 0.25,
            "at {at}: {} against {best}",
            row[token as usize]
        );
    }
}
