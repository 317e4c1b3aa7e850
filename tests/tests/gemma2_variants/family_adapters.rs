//! Adapters of the families beside Gemma-2, and of Gemma-3's multimodal model, whose language model alone is read.
//!
//! Oracle: what PEFT 0.21.2 computes with them and how it names them, recorded by `tests/fixtures/adapters/families.py`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Int, Tensor, activation::log_softmax};
use fpo_transformer::{LanguageModel, LoraConfig, adapter, weights};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::common::{Named, checkpoint, difference, fixture, load, values};

/// The folder of an adapter and its base.
const CASES: [(&str, &str); 11] = [
    ("llama", "llama_grouped"),
    ("qwen2", "qwen2_odd_heads"),
    ("qwen2_tied", "qwen2_tied"),
    ("qwen3", "qwen3_odd_heads"),
    ("gemma3", "gemma3_windows"),
    ("multimodal_regex", "gemma3_multimodal"),
    ("multimodal_names", "gemma3_multimodal"),
    ("multimodal_all", "gemma3_multimodal"),
    ("multimodal_full", "gemma3_multimodal"),
    ("multimodal_saved", "gemma3_multimodal"),
    ("multimodal_old", "gemma3_multimodal"),
];

fn folder(name: &str) -> PathBuf {
    fixture("adapters/families").join(name)
}

fn recorded() -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(fixture("adapters/families/expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(name, view)| {
        let values = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        (name, values.collect())
    });
    tensors.collect()
}

fn tokens() -> Vec<i32> {
    recorded()["tokens"].iter().map(|id| *id as i32).collect()
}

/// `[7, vocab]`
fn logits(model: &LanguageModel) -> Tensor<2> {
    let tokens = Tensor::<1, Int>::from_ints(tokens().as_slice(), &Device::flex());
    model.logits(model.forward(tokens.unsqueeze::<2>(), &[]).hidden_states.squeeze_dim(0))
}

#[test]
fn logits_and_gradients_are_pefts() {
    let expected = recorded();
    for (name, base) in CASES {
        let base = load(base, &Device::flex());
        let model = adapter::load(&base, &folder(name), &Device::flex().autodiff()).unwrap();
        for (what, found) in [("logits", logits(&model)), ("merged", logits(&model.merged()))] {
            let far = difference(&values(found), &expected[&format!("{what}.{name}")]);
            println!("{name}: {what} differ by {far:.1e}");
            assert!(far < 1e-5, "{name}: {what} differ by {far}");
        }

        let next = Tensor::<1, Int>::from_ints(&tokens()[1..], &Device::flex());
        let log_probs = log_softmax(logits(&model).narrow(0, 0, 6), 1);
        let gradients = log_probs.gather(1, next.unsqueeze_dim(1)).mean().backward();
        let mut found = BTreeMap::new();
        Named::add(&model, &gradients, &mut found);
        let parts = [
            ("a", "lora_A.weight"),
            ("b", "lora_B.weight"),
            ("magnitude", "lora_magnitude_vector"),
        ];
        let found: BTreeMap<String, Vec<f32>> = found
            .into_iter()
            .map(|(name, values)| {
                let name = parts.iter().fold(name, |name, (ours, theirs)| {
                    name.replace(&format!(".lora.{ours}"), &format!(".{theirs}"))
                });
                (format!("base_model.model.{name}"), values)
            })
            .collect();
        let prefix = format!("grad.{name}.");
        let theirs = expected.iter().filter_map(|(key, v)| Some((key.strip_prefix(&prefix)?, v)));
        let theirs: BTreeMap<&str, &Vec<f32>> = theirs.collect();
        assert!(found.keys().eq(theirs.keys()), "{name}: {:?}", found.keys());
        for (key, ours) in &found {
            let far = difference(ours, theirs[key.as_str()]);
            assert!(far < 1e-4, "{name}: {key} differs by {far}");
        }
    }
}

/// Without what reads images, and in the spelling of transformers 5.
fn names(folder: &Path) -> BTreeSet<String> {
    let bytes = fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let names = file.names().into_iter().filter(|name| !name.contains("vision_tower"));
    names.map(|name| name.replace(".language_model.model.", ".model.language_model.")).collect()
}

/// Oracles: the adapter that was read, and PEFT's names. That PEFT computes the same with what is written,
/// `families.py --check` shows.
#[test]
fn what_is_written_has_the_names_that_peft_looks_for() {
    let kept = std::env::var_os("FPO_TEST_KEEP").map(PathBuf::from);
    for (name, base_name) in CASES {
        let (device, base_folder) = (Device::flex(), checkpoint(base_name));
        let base = load(base_name, &device);
        let model = adapter::load(&base, &folder(name), &device).unwrap();
        let temporary = tempfile::tempdir().unwrap();
        let out = kept.as_ref().map_or(temporary.path().to_owned(), |kept| kept.join(name));
        fs::create_dir_all(&out).unwrap();
        adapter::save(&model, &out, Some(&base_folder)).unwrap();
        assert_eq!(names(&out), names(&folder(name)), "{name}");

        let again = adapter::load(&base, &out, &device).unwrap();
        assert!(values(logits(&again)) == values(logits(&model)), "{name}");
        let text = fs::read_to_string(out.join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        let targets = config["target_modules"].as_array().unwrap();
        let inside =
            targets.iter().filter(|t| t.as_str().unwrap().starts_with("model.language_model."));
        let multimodal = base_name == "gemma3_multimodal";
        assert_eq!(inside.count(), if multimodal { targets.len() } else { 0 }, "{name}: {text}");
    }
}

/// An adapter of the multimodal model, written for its language model alone, has that model's names.
#[test]
fn an_adapter_moves_to_the_language_model_alone() {
    let device = Device::flex();
    for name in ["multimodal_regex", "multimodal_full", "multimodal_saved"] {
        let base = load("gemma3_multimodal", &device);
        let alone = tempfile::tempdir().unwrap();
        weights::save(&base, alone.path()).unwrap();
        let model = adapter::load(&base, &folder(name), &device).unwrap();
        let out = tempfile::tempdir().unwrap();
        adapter::save(&model, out.path(), Some(alone.path())).unwrap();
        let text = fs::read_to_string(out.path().join("adapter_config.json")).unwrap();
        assert!(!text.contains("language_model"), "{name}: {text}");
        assert!(names(out.path()).iter().all(|name| !name.contains("language_model")));
        let base = weights::load(alone.path(), &device).unwrap();
        let again = adapter::load(&base, out.path(), &device).unwrap();
        assert!(values(logits(&again)) == values(logits(&model)), "{name}");
    }
}

/// Settings may name modules as PEFT does for the multimodal model.
#[test]
fn settings_may_have_the_names_of_the_multimodal_model() {
    let device = Device::flex();
    let base = load("gemma3_multimodal", &device);
    for (settings, expected) in [
        (json!({"target_modules": r".*language_model.*\.q_proj"}), 6),
        (json!({"target_modules": ["model.language_model.layers.2.mlp.up_proj"]}), 1),
        (
            json!({"target_modules": ["q_proj"], "exclude_modules": r".*language_model\.layers\.0.*"}),
            5,
        ),
    ] {
        let config: LoraConfig = serde_json::from_value(settings.clone()).unwrap();
        config.check().unwrap();
        let model = base.with_new_lora(&config, 0, &device).unwrap();
        let out = tempfile::tempdir().unwrap();
        adapter::save(&model, out.path(), Some(&checkpoint("gemma3_multimodal"))).unwrap();
        assert_eq!(names(out.path()).len(), 2 * expected, "{settings}");
    }
}

/// An exclusion that only Python's regular expressions can say, or that is about the vision tower alone.
#[test]
fn exclusions_that_say_nothing_here_are_passed_over() {
    let device = Device::flex();
    let base = load("gemma3_multimodal", &device);
    for exclude in
        [json!("(?!.*language).*"), json!("vision_tower"), json!(["vision_tower.encoder"])]
    {
        let copy = tempfile::tempdir().unwrap();
        for file in fs::read_dir(folder("multimodal_all")).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
        let path = copy.path().join("adapter_config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        config["exclude_modules"] = exclude.clone();
        fs::write(&path, config.to_string()).unwrap();
        let model = adapter::load(&base, copy.path(), &device).unwrap();
        let far = difference(&values(logits(&model)), &recorded()["logits.multimodal_all"]);
        assert!(far < 1e-5, "{exclude}: {far}");
    }
}
