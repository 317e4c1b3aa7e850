//! Folders as users have them: which weights are read, and what a model made from one takes along.
//!
//! Oracle: what transformers 5.24 and PEFT 0.21.2 make of the same folders, recorded by
//! `tests/fixtures/folders/generate.py`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Int, Tensor};
use fpo_transformer::{
    Error, LanguageModel, ModelConfig, Placement, Precision, WeightType, adapter,
    generate::{GenerationOptions, generate},
    hash_model,
    weights::{self, Origin},
};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/folders").join(name)
}

/// The recorded tensors whose names begin so, by the rest of their names.
fn recorded(prefix: &str) -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(fixture("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().filter_map(|(name, view)| {
        let values = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        Some((name.strip_prefix(prefix)?.to_owned(), values.collect()))
    });
    tensors.collect()
}

/// The largest difference to the recorded logits of a folder.
fn difference(model: &LanguageModel, name: &str) -> f32 {
    let tokens: Vec<i32> = recorded("tokens")[""].iter().map(|id| *id as i32).collect();
    let tokens = Tensor::<1, Int>::from_ints(tokens.as_slice(), &model.device()).unsqueeze();
    let hidden = model.forward(tokens, &[]).hidden_states.squeeze_dim(0);
    let logits: Vec<f32> = model.logits(hidden).into_data().iter().collect();
    let expected = &recorded("logits.")[name];
    assert_eq!(logits.len(), expected.len());
    logits.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn load(folder: &Path) -> Result<LanguageModel, Error> {
    weights::load(folder, &Device::flex())
}

/// A copy of a recorded folder, to be changed.
fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

#[test]
fn the_weights_are_those_that_transformers_takes() {
    let cases = [
        "leftover_shards",
        "safe_before_torch",
        "torch",
        "torch_shards",
        "torch_legacy",
        "no_prefix",
        "bf16",
    ];
    for name in cases {
        let found = difference(&load(&fixture(name)).unwrap(), name);
        println!("{name}: logits differ by at most {found:.1e}");
        assert!(found < 2e-6, "{name}: {found}");
        // Only an index beside a single file is in doubt.
        let warning = weights::leftover(&fixture(name));
        let expected = match name {
            "leftover_shards" => Some("model.safetensors.index.json"),
            "torch" => Some("pytorch_model.bin.index.json"),
            _ => None,
        };
        assert_eq!(warning.is_some(), expected.is_some(), "{name}: {warning:?}");
        assert!(warning.is_none_or(|text| text.contains(expected.unwrap())));
    }
    let weights_of = |name| hash_model(&fixture(name)).unwrap();
    assert_ne!(weights_of("leftover_shards"), weights_of("torch"));
    // The hash is of what is read.
    let folder = copy("leftover_shards");
    let before = hash_model(folder.path()).unwrap();
    fs::remove_file(folder.path().join("model-00001-of-00002.safetensors")).unwrap();
    assert_eq!(hash_model(folder.path()).unwrap(), before);
    assert!(difference(&load(folder.path()).unwrap(), "leftover_shards") < 2e-6);
    // Without the single file, the shards count.
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert!(matches!(load(folder.path()), Err(Error::Io { .. })));
}

#[test]
fn folders_without_readable_weights_say_so() {
    let folder = copy("torch");
    fs::remove_file(folder.path().join("pytorch_model.bin")).unwrap();
    fs::remove_file(folder.path().join("pytorch_model.bin.index.json")).unwrap();
    let error = load(folder.path()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("none of model.safetensors, model.safetensors.index.json, pytorch"),
        "{error}"
    );

    let command = fixture("../torch-file/command.pt");
    fs::copy(command, folder.path().join("pytorch_model.bin")).unwrap();
    let error = load(folder.path()).unwrap_err();
    assert!(
        matches!(error, Error::Torch(_)) && error.to_string().contains("posix.system"),
        "{error}"
    );
}

/// A few names and the cause instead of every tensor.
#[test]
fn mismatches_are_short_and_name_the_cause() {
    let cases: [(&str, Value, &str); 3] = [
        ("num_hidden_layers", json!(40), "the files have 2: an unfinished download"),
        ("num_hidden_layers", json!(1), "num_hidden_layers = 1, the files have 2"),
        ("hidden_size", json!(16), "and 18 more are of the wrong shape or type"),
    ];
    for (key, value, expected) in cases {
        let folder = copy("bf16");
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        config["layer_types"] = Value::Null;
        fs::write(&path, config.to_string()).unwrap();
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.lines().count() <= 9, "{error}");
    }
    // Another architecture, adapters, and quantised weights.
    let cases = [
        ("transformer.h.", "another architecture"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.", "adapters"),
        ("model.layers.0.qweight.", "quantised"),
    ];
    for (prefix, expected) in cases {
        let folder = copy("bf16");
        let bytes = [0; 8];
        let names: Vec<String> = (0..20)
            .map(|i| match expected {
                "quantised" => format!("model.layers.{i}.mlp.up_proj.qweight"),
                _ => format!("{prefix}{i}.weight"),
            })
            .collect();
        let view = || safetensors::tensor::TensorView::new(Dtype::F32, vec![2], &bytes).unwrap();
        let file = safetensors::serialize(names.iter().map(|name| (name, view())), None).unwrap();
        fs::write(folder.path().join("model.safetensors"), file).unwrap();
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.lines().count() <= 16, "{error}");
    }
}

/// What a folder holds beside its weights.
const BESIDE: [(&str, &str); 10] = [
    ("tokenizer.json", "{}"),
    ("tokenizer.model", "sentencepiece"),
    ("special_tokens_map.json", "{\"bos_token\": \"<bos>\"}"),
    ("added_tokens.json", "{\"<x>\": 31}"),
    ("chat_template.jinja", "{{ messages }}"),
    ("preprocessor_config.json", "{\"processor_class\": \"P\"}"),
    (
        "generation_config.json",
        "{\n  \"eos_token_id\": [1, 7, 9],\n  \"temperature\": 0.7, \"max_length\": 99\n}\n",
    ),
    ("merges.txt", "a b"),
    ("LICENSE", "text"),
    ("modeling_custom.py", "pass"),
];
/// And what stays there.
const LEFT: [&str; 9] = [
    "optimizer.pt",
    "scheduler.pt",
    "training_args.bin",
    "trainer_state.json",
    "model-00001-of-00009.safetensors",
    "model.safetensors.index.json",
    "weights.gguf",
    ".gitattributes",
    "adapter_config.json",
];

fn base() -> TempDir {
    let folder = copy("bf16");
    for (name, content) in BESIDE {
        fs::write(folder.path().join(name), content).unwrap();
    }
    for name in LEFT {
        fs::write(folder.path().join(name), "left").unwrap();
    }
    for name in [".cache", "checkpoint-500", "additional_chat_templates"] {
        fs::create_dir(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("rag.jinja"), "{{ rag }}").unwrap();
    }
    folder
}

fn read(folder: &Path) -> BTreeMap<String, (Dtype, Vec<u8>)> {
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter();
    tensors.map(|(name, view)| (name, (view.dtype(), view.data().to_vec()))).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Oracle: PEFT's merged weights, in bfloat16 as the base.
#[test]
fn a_merged_model_has_the_types_and_files_of_its_base() {
    let base = base();
    let frame = Placement::new(Device::flex(), Precision::Bf16Mixed);
    let model = weights::load(base.path(), frame).unwrap();
    let model = adapter::load(&model, &fixture("adapter"), &Device::flex()).unwrap();
    let merged = tempfile::tempdir().unwrap();
    weights::save_from(&model, &Origin::base(base.path()), merged.path()).unwrap();

    let (found, before, peft) = (read(merged.path()), read(base.path()), recorded("merged."));
    assert_eq!(found.len(), peft.len());
    let mut differing = 0;
    for (name, (dtype, bytes)) in &found {
        assert_eq!(*dtype, before[name].0, "{name}");
        // PEFT's model is in bfloat16 throughout, so the norms are rounded there.
        let values: Vec<f32> = match dtype {
            Dtype::BF16 => {
                bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
            }
            _ => {
                assert_eq!(bytes, &before[name].1, "{name}");
                continue;
            }
        };
        for (a, b) in values.iter().zip(&peft[name]) {
            differing += usize::from(a != b);
            assert!((a - b).abs() <= b.abs() / 128.0, "{name}: {a}, {b}");
        }
    }
    assert_eq!(differing, 0, "elements that are rounded the other way");

    for (name, content) in BESIDE {
        assert_eq!(fs::read_to_string(merged.path().join(name)).unwrap(), content, "{name}");
    }
    for name in LEFT.into_iter().chain([".cache", "checkpoint-500"]) {
        assert!(!merged.path().join(name).exists(), "{name}");
    }
    assert!(merged.path().join("additional_chat_templates/rag.jinja").is_file());
    let config = json(&merged.path().join("config.json"));
    assert_eq!(config["dtype"], "bfloat16");
    assert_eq!(config["_name_or_path"], "org/base");
    assert_eq!(config["architectures"], json!(["Gemma2ForCausalLM"]));
}

#[test]
fn a_trained_model_has_the_types_of_its_base_unless_told() {
    let base = base();
    let model = load(base.path()).unwrap();
    let cases = [
        (None, Dtype::BF16, Dtype::F32, "bfloat16"),
        (Some(WeightType::Float32), Dtype::F32, Dtype::F32, "float32"),
        (Some(WeightType::Float16), Dtype::F16, Dtype::F16, "float16"),
        (Some(WeightType::Bfloat16), Dtype::BF16, Dtype::BF16, "bfloat16"),
    ];
    for (weight_type, matrix, norm, name) in cases {
        let origin = Origin { weight_type, ..Origin::base(base.path()) };
        let saved = tempfile::tempdir().unwrap();
        weights::save_from(&model, &origin, saved.path()).unwrap();
        let tensors = read(saved.path());
        assert_eq!(tensors["model.embed_tokens.weight"].0, matrix, "{weight_type:?}");
        assert_eq!(tensors["model.norm.weight"].0, norm, "{weight_type:?}");
        assert_eq!(json(&saved.path().join("config.json"))["dtype"], name);
        let worst = difference(&load(saved.path()).unwrap(), "bf16");
        // Only the norms of the last case lose digits.
        assert!(worst < if norm == Dtype::F32 { 2e-6 } else { 0.02 }, "{weight_type:?}: {worst}");
    }
    // Nothing that it is from: float32, as ever.
    let saved = tempfile::tempdir().unwrap();
    weights::save(&model, saved.path()).unwrap();
    assert!(read(saved.path()).values().all(|(dtype, _)| *dtype == Dtype::F32));
    let names = fs::read_dir(saved.path()).unwrap().count();
    assert_eq!(names, 3);
}

#[test]
fn a_tokenizer_of_another_folder_replaces_the_bases_whole() {
    let (base, other) = (base(), tempfile::tempdir().unwrap());
    fs::write(other.path().join("tokenizer.json"), "other").unwrap();
    fs::write(other.path().join("notes.txt"), "not a tokenizer's").unwrap();
    let origin = Origin { tokenizer: Some(other.path().into()), ..Origin::base(base.path()) };
    let saved = tempfile::tempdir().unwrap();
    weights::save_from(&load(base.path()).unwrap(), &origin, saved.path()).unwrap();
    assert_eq!(fs::read_to_string(saved.path().join("tokenizer.json")).unwrap(), "other");
    for name in ["tokenizer.model", "chat_template.jinja", "notes.txt", "merges.txt"] {
        assert!(!saved.path().join(name).exists(), "{name}");
    }
    assert!(saved.path().join("preprocessor_config.json").is_file());
}

/// The list in generation_config.json ends a generation, as in transformers, and not the one in config.json.
#[test]
fn the_end_tokens_are_those_of_the_generation_config() {
    let folder = copy("bf16");
    let path = folder.path().join("generation_config.json");
    let end_tokens = |text: &str| {
        fs::write(&path, text).unwrap();
        ModelConfig::load(folder.path()).map(|config| config.eos_token_ids)
    };
    let cases: [(&str, &[u32]); 6] = [
        (r#"{"eos_token_id": [1, 7, 9], "temperature": 0.7}"#, &[1, 7, 9]),
        (r#"{"eos_token_id": 9}"#, &[9]),
        (r#"{"eos_token_id": null}"#, &[1]),
        (r#"{"eos_token_id": []}"#, &[1]),
        ("{}", &[1]),
        (r#"{"_from_model_config": true, "eos_token_id": [3]}"#, &[3]),
    ];
    for (text, expected) in cases {
        assert_eq!(end_tokens(text).unwrap(), expected, "{text}");
    }
    for text in ["{", "[1]", r#"{"eos_token_id": "</s>"}"#, r#"{"eos_token_id": [-1]}"#] {
        let error = end_tokens(text).unwrap_err().to_string();
        assert!(error.contains("generation_config.json"), "{text}: {error}");
    }

    // Greedy decoding stops where the model first says a token of the list.
    let options = GenerationOptions { max_new_tokens: 12, temperature: 0.0, ..Default::default() };
    let respond = |text: &str| {
        fs::write(&path, text).unwrap();
        let model = load(folder.path()).unwrap();
        generate(&model, &[vec![2, 9, 4]], &options).unwrap().remove(0)
    };
    let free = respond(r#"{"eos_token_id": 30}"#);
    let third = free.tokens[2];
    let first_seen = free.tokens.iter().position(|token| *token == third).unwrap();
    let stopped = respond(&format!("{{\"eos_token_id\": [30, {third}]}}"));
    assert!(stopped.stopped);
    assert_eq!(stopped.tokens, free.tokens[..first_seen]);
    // The reference's identity doesn't depend on how it generates.
    let hash = hash_model(folder.path()).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(hash_model(folder.path()).unwrap(), hash);
}
