//! Dropout of adapters.

use std::{collections::BTreeMap, fs};

use burn::tensor::{Device, Int, Tensor};
use fpo_transformer::{LanguageModel, LoraConfig, adapter};
use serde_json::{Value, json};

use crate::common::{
    Named, assert_equal_gradients, difference, fixture, load, noise, padded, text, values,
};

/// A model with PEFT's adapters, whose configuration has a dropout.
fn adapted(dropout: f64, device: &Device) -> LanguageModel {
    let folder = tempfile::tempdir().unwrap();
    let theirs = fixture("lora").join("all_linear");
    fs::copy(
        theirs.join("adapter_model.safetensors"),
        folder.path().join("adapter_model.safetensors"),
    )
    .unwrap();
    let config = fs::read(theirs.join("adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["lora_dropout"] = json!(dropout);
    fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    adapter::load(&load("grouped", &Device::flex()), folder.path(), device).unwrap()
}

fn tokens(rows: &[u64]) -> Tensor<2, Int> {
    let rows: Vec<Vec<u32>> = rows.iter().map(|&row| text(row, 5 + row as usize)).collect();
    padded(&rows, &Device::flex())
}

/// The tokens of padded rows.
fn keys(rows: &[u64]) -> Vec<(u64, usize)> {
    let [_, width] = tokens(rows).dims();
    rows.iter().flat_map(|&row| (0..width).map(move |position| (row, position))).collect()
}

fn hidden(model: &LanguageModel, tokens: Tensor<2, Int>) -> Vec<f32> {
    values(model.forward(tokens, &[]).hidden_states)
}

/// Only where it is asked for; the same of the same step, whichever rows are beside.
#[test]
fn a_step_has_its_mask_and_evaluation_none() {
    let device = Device::flex();
    let (with, without) = (adapted(0.3, &device), adapted(0.0, &device));
    let plain = hidden(&without, tokens(&[1, 4]));
    assert_eq!(hidden(&with, tokens(&[1, 4])), plain, "evaluation");
    assert_eq!(hidden(&without.dropping(0, 3).for_tokens(keys(&[1, 4])), tokens(&[1, 4])), plain);
    assert_eq!(hidden(&with.for_tokens(keys(&[1, 4])), tokens(&[1, 4])), plain);

    let at =
        |seed, step| hidden(&with.dropping(seed, step).for_tokens(keys(&[1, 4])), tokens(&[1, 4]));
    let first = at(0, 3);
    assert_eq!(at(0, 3), first);
    let moved = difference(&first, &plain);
    assert!(moved > 0.01, "{moved}");
    for (seed, step) in [(0, 4), (1, 3)] {
        assert!(difference(&at(seed, step), &first) > 0.01, "seed {seed}, step {step}");
    }
    let alone = hidden(&with.dropping(0, 3).for_tokens(keys(&[4])), tokens(&[4]));
    let width = alone.len();
    assert!(difference(&first[width..], &alone) < 1e-5);
    let other = hidden(
        &with.dropping(0, 3).for_tokens(keys(&[4]).into_iter().map(|(_, position)| (5, position))),
        tokens(&[4]),
    );
    assert!(difference(&other, &alone) > 0.01, "another row");
}

/// Oracle: the pass that keeps all activations.
#[test]
fn recomputed_blocks_have_the_same_mask() {
    let model = adapted(0.3, &Device::flex().autodiff()).dropping(5, 9).for_tokens(keys(&[1, 4]));
    let (output, tape) = model.forward_checkpointed(tokens(&[1, 4]), &[]);
    let kept = model.forward(tokens(&[1, 4]), &[]).hidden_states;
    let weights = noise(kept.dims(), 3, &Device::flex().autodiff());
    assert_eq!(values(output.hidden_states.clone()), values(kept.clone()));
    let mut expected = BTreeMap::new();
    Named::add(&model, &(kept * weights.clone()).sum().backward(), &mut expected);
    let mut found = BTreeMap::new();
    let mut gradients = (output.hidden_states * weights).sum().backward();
    Named::add_of_tape(tape, &model, &mut gradients, &mut found);
    assert_equal_gradients("recomputed", &found, &expected, 1e-6);

    let without = adapted(0.0, &Device::flex().autodiff());
    let mut other = BTreeMap::new();
    let kept = without.forward(tokens(&[1, 4]), &[]).hidden_states;
    let weights = noise(kept.dims(), 3, &Device::flex().autodiff());
    Named::add(&without, &(kept * weights).sum().backward(), &mut other);
    let name = other.keys().next().unwrap();
    assert!(difference(&found[name], &other[name]) > 0.01, "{name}");
}

#[test]
fn the_rate_is_read_and_written_as_lora_dropout() {
    let device = Device::flex();
    let model = adapted(0.25, &device);
    let folder = tempfile::tempdir().unwrap();
    adapter::save(&model, folder.path(), None).unwrap();
    let config = fs::read(folder.path().join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["lora_dropout"], json!(0.25));
    let again = adapter::load(&load("grouped", &device), folder.path(), &device).unwrap();
    assert_eq!(again.lora().map(|lora| lora.dropout), Some(0.25));

    for dropout in [-0.1, 1.0, f64::NAN] {
        let refused = LoraConfig { dropout, ..LoraConfig::default() }.check().unwrap_err();
        assert!(refused.contains("must be in [0, 1)"), "{refused}");
    }
}
