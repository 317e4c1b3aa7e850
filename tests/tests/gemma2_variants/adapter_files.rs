//! Files of adapters that are damaged, or hold what is not supported: each is an error that says so.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use burn::tensor::Device;
use fpo_transformer::{Error, LanguageModel, adapter};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    common::{Random, fixture, load},
    lora::{config, tensors},
};

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
        ("target_modules", json!(".*k_proj"), "self_attn.q_proj.lora_A.weight"),
        ("target_modules", json!([]), "target modules"),
        ("target_modules", json!(3), "target_modules"),
        ("target_modules", json!(["k_proj"]), "self_attn.q_proj.lora_A.weight"),
        ("bias", json!("all"), "none"),
        ("use_dora", json!(true), "lora_magnitude_vector"),
        ("use_dora", json!("yes"), "true or false"),
        ("rank_pattern", json!({"q_proj": 8}), "r = 8"),
        ("rank_pattern", json!({"q_proj": 0}), "q_proj = 0"),
        ("rank_pattern", json!([1]), "rank_pattern"),
        ("alpha_pattern", json!({"(": 8}), "alpha_pattern"),
        ("layers_to_transform", json!([0]), "layers.1.self_attn.q_proj.lora_A.weight"),
        ("layers_to_transform", json!("0"), "layers_to_transform"),
        ("exclude_modules", json!(["q_proj"]), "self_attn.q_proj.lora_A.weight"),
        (
            "modules_to_save",
            json!(["lm_head"]),
            "`base_model.model.lm_head.weight` [67, 16] is missing",
        ),
        ("modules_to_save", json!(["score"]), "score"),
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

    fn load(&self) -> Result<LanguageModel, Error> {
        self.load_from(self.write().path())
    }

    fn load_from(&self, folder: &Path) -> Result<LanguageModel, Error> {
        let device = Device::flex();
        adapter::load(&load("one_kv_head", &device), folder, &device)
    }

    fn refused(&self) -> String {
        self.load().map(|_| ()).unwrap_err().to_string()
    }
}
