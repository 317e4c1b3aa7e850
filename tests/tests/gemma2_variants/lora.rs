//! With low-rank adapters.
//!
//! Oracle: values recorded from PEFT 0.21.2 by `tests/fixtures/lora/generate.py`, which also says what
//! each of them is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use burn::tensor::{Device, Int, Tensor, TensorData};
use fpo_transformer::{
    Error, LanguageModel, LoraConfig, Placement, Precision, Projection, adapter,
    weights::{self, Origin},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

use crate::common::{
    CASES, Named, assert_equal_gradients, difference, fixture, load, padded, text, values,
};

/// Adapters and the models that they are for.
const ADAPTERS: [(&str, &str); 2] = [("all_linear", "grouped"), ("some", "one_kv_head")];

#[test]
fn pefts_adapters_compute_the_same() {
    let device = Device::flex();
    for (case, base) in ADAPTERS {
        let expected = Expected::read(case);
        let base = load(base, &device);
        let model = adapter::load(&base, &fixture("lora").join(case), &device).unwrap();
        let merged = model.merged();
        assert!(model.lora().is_some() && merged.lora().is_none() && base.lora().is_none());
        for (model, name) in [(model, "logits"), (merged, "merged_logits")] {
            let hidden = model.forward(expected.tokens(), &[]).hidden_states;
            let worst = expected.difference(name, &values(model.logits(flat(hidden))));
            println!("{case}: {name} differ by at most {worst:.1e}");
            assert!(worst < 2e-5, "{case}: {name} differ by {worst}");
        }
    }
}

/// Oracle: PEFT's logits of the merged model; a base held in bfloat16 computes others.
#[test]
fn merging_takes_the_base_from_its_files() {
    let device = Device::flex();
    for (case, name) in ADAPTERS {
        let expected = Expected::read(case);
        let base_folder = fixture("gemma2").join(name);
        let rounded = Placement::new(device.clone(), Precision::Bf16Mixed);
        let base = weights::load(&base_folder, &rounded).unwrap();
        let model = adapter::load(&base, &fixture("lora").join(case), &device).unwrap();
        let logits_of_saved = |save: &dyn Fn(&Path)| {
            let folder = tempfile::tempdir().unwrap();
            save(folder.path());
            let saved = weights::load(folder.path(), &device).unwrap();
            let hidden = saved.forward(expected.tokens(), &[]).hidden_states;
            expected.difference("merged_logits", &values(saved.logits(flat(hidden))))
        };
        let origin = Origin::base(&base_folder);
        let exact = logits_of_saved(&|to| weights::save_from(&model, &origin, to).unwrap());
        let of_rounded = logits_of_saved(&|to| weights::save(&model, to).unwrap());
        println!("{case}: merged logits differ by {exact:.1e}, by {of_rounded:.1e} if rounded");
        assert!(exact < 2e-5 && of_rounded > 1e-4, "{case}: {exact}, {of_rounded}");
    }
    let base = load("grouped", &device).with_new_lora(&LoraConfig::default(), 0, &device).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let other = fixture("gemma2").join("one_kv_head");
    let error = weights::save_from(&base, &Origin::base(&other), folder.path()).unwrap_err();
    assert!(matches!(error, Error::Weights { .. }), "{error}");
}

#[test]
fn adapters_alone_have_gradients_and_they_are_pefts() {
    let device = Device::flex();
    for (case, base) in ADAPTERS {
        let (expected, base) = (Expected::read(case), load(base, &device));
        let folder = fixture("lora").join(case);
        let model = adapter::load(&base, &folder, &device.clone().autodiff()).unwrap();
        let theirs: BTreeMap<String, Vec<f32>> = expected
            .floats
            .iter()
            .filter_map(|(name, values)| {
                let name = name.strip_prefix("grad.base_model.model.")?.strip_suffix(".weight")?;
                Some((name.replace(".lora_A", ".lora.a").replace(".lora_B", ".lora.b"), values))
            })
            .map(|(name, values)| (name, values.clone()))
            .collect();

        let output = model.forward(expected.tokens(), &[]);
        let mut plain = BTreeMap::new();
        let loss = expected.mean_log_prob(&model, output.hidden_states);
        Named::add(&model, &loss.backward(), &mut plain);
        assert_equal_gradients(case, &plain, &theirs, 1e-4);

        let (output, tape) = model.forward_checkpointed(expected.tokens(), &[]);
        let mut recomputed = BTreeMap::new();
        let mut gradients = expected.mean_log_prob(&model, output.hidden_states).backward();
        Named::add_of_tape(tape, &model, &mut gradients, &mut recomputed);
        assert_equal_gradients(&format!("{case}, recomputed"), &recomputed, &plain, 1e-6);
    }
}

/// Oracle: PEFT's own file of the same adapter.
#[test]
fn what_is_saved_is_what_peft_saves() {
    for (case, base) in ADAPTERS {
        let theirs = fixture("lora").join(case);
        let device = Device::flex();
        let model = adapter::load(&load(base, &device), &theirs, &device).unwrap();
        let ours = tempfile::tempdir().unwrap();
        adapter::save(&model, ours.path(), None).unwrap();
        assert_eq!(tensors(ours.path()), tensors(&theirs), "{case}");

        let (ours, theirs) = (config(ours.path()), config(&theirs));
        for (key, ours) in ours.as_object().unwrap() {
            let names = |list: &Value| -> Option<BTreeSet<String>> {
                serde_json::from_value(list.clone()).ok()
            };
            match key.as_str() {
                "base_model_name_or_path" => assert!(ours.is_null()),
                "target_modules" => assert_eq!(names(ours), names(&theirs[key])),
                _ => assert_eq!(ours, &theirs[key], "{case}: {key}"),
            }
        }
    }
}

/// Oracle: the model without adapters, to the bit; PEFT's bounds.
#[test]
fn new_adapters_change_nothing_yet() {
    let device = Device::flex();
    for case in CASES {
        let base = load(case, &device);
        let config = LoraConfig { rank: 5, ..LoraConfig::default() };
        let model = base.with_new_lora(&config, 3, &device).unwrap();
        let tokens = padded(&[text(1, 11), text(2, 6)], &device);
        let hidden =
            |model: &LanguageModel| values(model.forward(tokens.clone(), &[]).hidden_states);
        assert_eq!(hidden(&model), hidden(&base), "{case}");

        let again = base.with_new_lora(&config, 3, &device).unwrap();
        let other = base.with_new_lora(&config, 4, &device).unwrap();
        let a = |model: &LanguageModel| {
            let lora = model.model.layers[0].mlp.down_proj.lora.as_ref().unwrap();
            assert_eq!(values(lora.b.val()).iter().filter(|x| **x != 0.0).count(), 0);
            (lora.a.dims(), values(lora.a.val()))
        };
        assert_eq!(a(&model), a(&again));
        assert_ne!(a(&model), a(&other));
        let ([rank, width], a) = a(&model);
        assert_eq!((rank, width), (5, base.config().intermediate_size));
        let bound = (width as f32).powf(-0.5);
        let largest = a.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
        assert!(largest <= bound && largest > 0.9 * bound, "{case}: {largest} of {bound}");
        // Uniform numbers have a variance of bound² / 3.
        let variance = a.iter().map(|x| x * x).sum::<f32>() / a.len() as f32;
        assert!((variance / (bound * bound) - 1.0 / 3.0).abs() < 0.08, "{case}: {variance}");
    }
}

/// Oracle: the base's own weights, and the product of B and A by its definition.
#[test]
fn saved_weights_are_the_base_and_the_adapter() {
    let device = Device::flex();
    let (case, base) = ADAPTERS[1];
    let base = load(base, &device);
    let folder = fixture("lora").join(case);
    let model = adapter::load(&base, &folder, &device).unwrap();
    let saved = tempfile::tempdir().unwrap();
    weights::save(&model, saved.path()).unwrap();
    let saved = weights::load(saved.path(), &device).unwrap();
    let (adapter, scale) = (tensors(&folder), 5.0 / 2f32.sqrt());
    for (layer, (block, saved)) in base.model.layers.iter().zip(&saved.model.layers).enumerate() {
        let pairs = [
            (Projection::Q, &block.self_attn.q_proj, &saved.self_attn.q_proj),
            (Projection::K, &block.self_attn.k_proj, &saved.self_attn.k_proj),
            (Projection::Down, &block.mlp.down_proj, &saved.mlp.down_proj),
        ];
        for (projection, base, saved) in pairs {
            let mut expected = values(base.weight.val());
            let prefix = format!("base_model.model.model.layers.{layer}.{}", projection.path());
            let part = |part: &str| adapter.get(&format!("{prefix}.{part}.weight"));
            if let Some(((a_shape, a), (_, b))) = part("lora_A").zip(part("lora_B")) {
                let (rank, width) = (a_shape[0], a_shape[1]);
                for (i, w) in expected.iter_mut().enumerate() {
                    let (row, column) = (i / width, i % width);
                    let terms = (0..rank).map(|r| b[row * rank + r] * a[r * width + column]);
                    *w += scale * terms.sum::<f32>();
                }
            }
            assert_eq!(
                adapter.contains_key(&format!("{prefix}.lora_A.weight")),
                projection != Projection::K
            );
            let worst = difference(&values(saved.weight.val()), &expected);
            assert!(worst < 1e-6, "{prefix}: {worst}");
        }
    }
}

/// What PEFT recorded: values by name, and the tokens.
struct Expected {
    floats: BTreeMap<String, Vec<f32>>,
    tokens: Vec<i32>,
    lengths: Vec<usize>,
}

impl Expected {
    fn read(case: &str) -> Self {
        let bytes = fs::read(fixture("lora").join(case).join("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let ints = |name: &str| -> Vec<i32> {
            let view = file.tensor(name).unwrap();
            view.data().as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect()
        };
        let lengths = ints("lengths").into_iter().map(|length| length as usize).collect();
        Self { floats: floats(&file), tokens: ints("tokens"), lengths }
    }

    fn tokens(&self) -> Tensor<2, Int> {
        let shape = [self.lengths.len(), self.tokens.len() / self.lengths.len()];
        Tensor::from_data(TensorData::new(self.tokens.clone(), shape), &Device::flex())
    }

    /// Of all real tokens but the first of each row.
    fn mean_log_prob(&self, model: &LanguageModel, hidden: Tensor<3>) -> Tensor<1> {
        let [_, width, _] = hidden.dims();
        let lengths = self.lengths.iter().enumerate();
        let predicting: Vec<i32> = lengths
            .flat_map(|(row, length)| row * width..row * width + length - 1)
            .map(|at| at as i32)
            .collect();
        let targets = predicting.iter().map(|&at| self.tokens[at as usize + 1]).collect();
        let int = |ids: Vec<i32>| {
            let count = ids.len();
            Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), &Device::flex())
        };
        let hidden = flat(hidden).select(0, int(predicting));
        let cap = model.config().final_logit_softcapping;
        fpo_ops::linear_log_probs(hidden, model.unembedding(), int(targets), cap).mean()
    }

    /// The largest difference at real positions.
    fn difference(&self, name: &str, ours: &[f32]) -> f32 {
        let theirs = &self.floats[name];
        assert_eq!(ours.len(), theirs.len(), "{name}");
        let width = self.tokens.len() / self.lengths.len();
        let size = ours.len() / self.tokens.len();
        let rows = self.lengths.iter().enumerate().flat_map(|(row, length)| {
            let range = row * width * size..(row * width + length) * size;
            ours[range.clone()].iter().zip(&theirs[range])
        });
        let known = |d: f32| if d.is_nan() { f32::INFINITY } else { d };
        rows.map(|(a, b)| known((a - b).abs())).fold(0.0, f32::max)
    }
}

fn flat(x: Tensor<3>) -> Tensor<2> {
    let [batch, tokens, width] = x.dims();
    x.reshape([batch * tokens, width])
}

fn floats(file: &SafeTensors) -> BTreeMap<String, Vec<f32>> {
    let tensors = file.tensors().into_iter().filter(|(_, view)| view.dtype() == Dtype::F32);
    let floats = |view: &TensorView| -> Vec<f32> {
        view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    tensors.map(|(name, view)| (name, floats(&view))).collect()
}

/// An adapter's tensors by name: shapes and values.
pub fn tensors(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| file.tensor(name).unwrap().shape().to_vec();
    floats(&file).into_iter().map(|(name, v)| (name.clone(), (shape(&name), v))).collect()
}

pub fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
}
