//! With low-rank adapters.
//!
//! Oracle: values recorded from PEFT 0.21.2 by `tests/fixtures/lora/generate.py`, which also says what
//! each of them is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use burn::tensor::{Device, Int, Tensor, TensorData};
use fpo_transformer::{
    Error, Gemma2, LoraConfig, Placement, Precision, Projection, adapter, weights,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{
    CASES, Named, Random, assert_equal_gradients, difference, fixture, load, padded, text, values,
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
        let exact = logits_of_saved(&|to| weights::save_merged(&model, &base_folder, to).unwrap());
        let of_rounded = logits_of_saved(&|to| weights::save(&model, to).unwrap());
        println!("{case}: merged logits differ by {exact:.1e}, by {of_rounded:.1e} if rounded");
        assert!(exact < 2e-5 && of_rounded > 1e-4, "{case}: {exact}, {of_rounded}");
    }
    let base = load("grouped", &device).with_new_lora(&LoraConfig::default(), 0, &device).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let other = fixture("gemma2").join("one_kv_head");
    let error = weights::save_merged(&base, &other, folder.path()).unwrap_err();
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
        tape.backward(&model, &mut gradients, |part| Named::add(&model, &part, &mut recomputed));
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
        adapter::save(&model, ours.path()).unwrap();
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
        let hidden = |model: &Gemma2| values(model.forward(tokens.clone(), &[]).hidden_states);
        assert_eq!(hidden(&model), hidden(&base), "{case}");

        let again = base.with_new_lora(&config, 3, &device).unwrap();
        let other = base.with_new_lora(&config, 4, &device).unwrap();
        let a = |model: &Gemma2| {
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

#[test]
fn settings_of_peft_that_are_not_supported_are_named() {
    for (key, value, says) in [
        ("peft_type", json!("IA3"), "LORA"),
        ("task_type", json!("SEQ_CLS"), "CAUSAL_LM"),
        ("r", json!(0), "rank = 0"),
        ("r", json!(-4), "whole number"),
        ("r", json!(u64::MAX), "layers.0.self_attn.q_proj.lora_A"),
        ("r", json!(5), "r = 5"),
        ("lora_alpha", json!("much"), "number"),
        ("lora_alpha", json!(0), "alpha = 0"),
        ("use_rslora", json!("yes"), "true or false"),
        ("target_modules", json!(["q_proj", "lm_head"]), "lm_head"),
        ("target_modules", json!(".*_proj"), ".*_proj"),
        ("target_modules", json!([]), "target modules"),
        ("target_modules", json!(3), "target_modules"),
        ("target_modules", json!(["k_proj"]), "self_attn.q_proj.lora_A.weight"),
        ("bias", json!("all"), "none"),
        ("use_dora", json!(true), "use_dora"),
        ("rank_pattern", json!({"q_proj": 8}), "rank_pattern"),
        ("layers_to_transform", json!([0]), "layers_to_transform"),
        ("modules_to_save", json!(["lm_head"]), "modules_to_save"),
        ("fan_in_fan_out", json!(true), "fan_in_fan_out"),
        ("init_lora_weights", json!("pissa"), "pissa"),
        ("something_new", json!({"a": 1}), "something_new"),
    ] {
        let mut adapter = Adapter::valid();
        adapter.config[key] = value.clone();
        let message = adapter.refused();
        assert!(message.contains(says), "{key} = {value}: {message:?} does not say {says:?}");
        if !matches!(key, "something_new") {
            adapter.config.as_object_mut().unwrap().remove(key);
            let needed = matches!(key, "peft_type" | "r" | "lora_alpha" | "target_modules");
            assert_eq!(adapter.load().is_err(), needed, "without {key}");
        }
    }
    let mut adapter = Adapter::valid();
    adapter.config["lora_dropout"] = json!(0.1);
    adapter.config["init_lora_weights"] = json!("gaussian");
    adapter.load().unwrap();
}

#[test]
fn every_tensor_that_does_not_fit_is_named_at_once() {
    let mut adapter = Adapter::valid();
    let name = |part: &str| format!("base_model.model.model.layers.1.{part}.weight");
    let taken = adapter.tensors.remove(&name("self_attn.q_proj.lora_B")).unwrap();
    adapter.tensors.insert(name("self_attn.k_proj.lora_B"), taken);
    adapter.tensors.get_mut(&name("mlp.down_proj.lora_A")).unwrap().0.reverse();
    match adapter.load() {
        Err(Error::Adapter { problems, .. }) => {
            assert_eq!(problems.len(), 3, "{problems:?}");
            for (part, says) in [
                ("self_attn.q_proj.lora_B", "missing"),
                ("self_attn.k_proj.lora_B", "no place"),
                ("mlp.down_proj.lora_A", "[40, 2]"),
            ] {
                let named = |p: &&String| p.contains(&name(part)) && p.contains(says);
                assert_eq!(problems.iter().filter(named).count(), 1, "{part}: {problems:?}");
            }
        }
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[test]
fn damaged_files_are_errors() {
    let valid = Adapter::valid();
    for (file, whole) in [
        ("adapter_model.safetensors", valid.bytes()),
        ("adapter_config.json", valid.config.to_string().into_bytes()),
    ] {
        for kept in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
            let folder = valid.write();
            fs::write(folder.path().join(file), &whole[..kept]).unwrap();
            let result = valid.load_from(folder.path());
            let expected = matches!(
                result,
                Err(Error::Format { .. } | Error::Config { .. } | Error::Io { .. })
            );
            assert!(expected, "{file}: {kept} bytes");
        }
        let folder = valid.write();
        fs::remove_file(folder.path().join(file)).unwrap();
        match valid.load_from(folder.path()) {
            Err(Error::Io { path, .. }) => assert!(path.ends_with(file)),
            other => panic!("{file}: {:?}", other.map(|_| ())),
        }
    }
}

/// Whatever stands in the two files, loading them returns.
#[test]
fn mutated_files_never_panic() {
    let (valid, device) = (Adapter::valid(), Device::flex());
    let base = load("one_kv_head", &device);
    let folder = valid.write();
    let mut random = Random(0xada);
    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        let path = folder.path().join(file);
        let whole = fs::read(&path).unwrap();
        // Most of the first file is numbers, of which one is as good as another.
        let header = whole.len().min(2000);
        let mut refused = 0;
        for round in 0..400 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random.below(3) {
                let at = random.below(header.min(bytes.len()));
                match random.below(4) {
                    0 => bytes[at] ^= 1 << random.below(8),
                    1 => bytes[at] = b"0123456789[]{},:\"-"[random.below(18)],
                    2 => bytes.splice(at..at, [b'9'; 6]).for_each(drop),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            fs::write(&path, &bytes).unwrap();
            let load = || adapter::load(&base, folder.path(), &device).is_err();
            match catch_unwind(AssertUnwindSafe(load)) {
                Ok(error) => refused += usize::from(error),
                Err(_) => panic!("{file}, round {round}: {:?}", String::from_utf8_lossy(&bytes)),
            }
        }
        fs::write(&path, &whole).unwrap();
        println!("{file}: {refused} of 400 mutations were refused");
        assert!(refused > 200, "{file}: only {refused} mutations were refused");
    }
}

/// An adapter's folder before it is written: a valid one to be damaged.
struct Adapter {
    config: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Adapter {
    fn valid() -> Self {
        let folder = fixture("lora").join("some");
        Self { config: config(&folder), tensors: tensors(&folder) }
    }

    fn bytes(&self) -> Vec<u8> {
        let bytes = |values: &Vec<f32>| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let stored: Vec<(&String, &Vec<usize>, Vec<u8>)> =
            self.tensors.iter().map(|(name, (shape, v))| (name, shape, bytes(v))).collect();
        let views = stored.iter().map(|(name, shape, bytes)| {
            (name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
        });
        safetensors::serialize(views, None::<HashMap<String, String>>).unwrap()
    }

    fn write(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("adapter_config.json"), self.config.to_string()).unwrap();
        fs::write(folder.path().join("adapter_model.safetensors"), self.bytes()).unwrap();
        folder
    }

    fn load(&self) -> Result<Gemma2, Error> {
        self.load_from(self.write().path())
    }

    fn load_from(&self, folder: &Path) -> Result<Gemma2, Error> {
        let device = Device::flex();
        adapter::load(&load("one_kv_head", &device), folder, &device)
    }

    fn refused(&self) -> String {
        self.load().map(|_| ()).unwrap_err().to_string()
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
    fn mean_log_prob(&self, model: &Gemma2, hidden: Tensor<3>) -> Tensor<1> {
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
fn tensors(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| file.tensor(name).unwrap().shape().to_vec();
    floats(&file).into_iter().map(|(name, v)| (name.clone(), (shape(&name), v))).collect()
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
}
