//! The folders of models that a run reads and writes.

use std::{fs, path::Path};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::common::{arg, fail, skip_when_quick, succeed};

/// The types of the tensors in a model's folder, each once.
fn types(folder: &Path) -> Vec<Dtype> {
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut types: Vec<Dtype> = file.tensors().iter().map(|(_, view)| view.dtype()).collect();
    types.dedup();
    types
}

/// Oracle: the base's own files and types.
#[test]
fn models_keep_the_types_and_files_of_their_base() {
    if skip_when_quick("models_keep_the_types_and_files_of_their_base") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [first, base, run] = ["first", "base", "run"].map(|name| folder.path().join(name));
    succeed(&[
        "train",
        "--recipe",
        "smoke",
        "--run",
        arg(&first),
        "--until",
        "sft",
        "--set",
        "model.save_dtype=bfloat16",
    ]);
    assert_eq!(types(&first.join("sft")), [Dtype::BF16]);

    fs::create_dir(&base).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(first.join("sft").join(name), base.join(name)).unwrap();
    }
    let beside = [
        ("tokenizer.model", "sentencepiece"),
        ("special_tokens_map.json", "{}"),
        ("generation_config.json", "{\"eos_token_id\": [1, 5], \"temperature\": 0.5}"),
        ("preprocessor_config.json", "{\"a\": 1}"),
    ];
    for (name, content) in beside {
        fs::write(base.join(name), content).unwrap();
    }
    // Left from another save, and named.
    fs::write(base.join("model.safetensors.index.json"), "{}").unwrap();
    let path = format!("model.path={}", base.display());
    // Steps too small for the base's type.
    for (weight_type, said) in [("bfloat16", true), ("float32", false)] {
        let run = folder.path().join(weight_type);
        let weight_type = format!("model.save_dtype={weight_type}");
        let train = ["train", "--recipe", "smoke", "--run", arg(&run), "--until", "sft"];
        let settings = ["--set", &path, "--set", &weight_type];
        let small = ["--set", "sft.optimizer.learning_rate=1e-6"];
        let printed = succeed(&[&train[..], &settings, &small].concat());
        assert_eq!(printed.contains("of what training changed"), said, "{printed}");
    }
    let train = ["train", "--recipe", "smoke", "--run", arg(&run), "--until", "align"];
    let settings = ["--set", &path, "--set", "align.lora.rank=2"];
    let layers =
        ["--set", "align.lora.rank_pattern={'q_proj'=3}", "--set", "align.lora.use_dora=true"];
    let printed = succeed(&[&train[..], &settings, &layers].concat());
    assert!(printed.contains("model.safetensors.index.json"), "{printed}");
    for stage in ["sft", "align"] {
        let made = run.join(stage);
        assert_eq!(types(&made), [Dtype::BF16], "{stage}");
        for (name, content) in beside {
            assert_eq!(fs::read_to_string(made.join(name)).unwrap(), content, "{stage}: {name}");
        }
        let tokenizer = fs::read(made.join("tokenizer.json")).unwrap();
        assert!(tokenizer == fs::read(base.join("tokenizer.json")).unwrap());
        assert!(!made.join("model.safetensors.index.json").exists());
    }
    let config = fs::read(run.join("align/adapter/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let named = config["base_model_name_or_path"].as_str().unwrap();
    assert_eq!(Path::new(named), run.join("sft").canonicalize().unwrap());
    assert_eq!(config["rank_pattern"], serde_json::json!({"q_proj": 3}));
    assert_eq!(config["use_dora"], true);

    let merged = folder.path().join("merged");
    let (sft, adapter) = (run.join("sft"), run.join("align/adapter"));
    let merge = ["merge", "--model", arg(&sft), "--adapter", arg(&adapter), "--out", arg(&merged)];
    let other = fail(&[&merge[..], &["--dtype", "int8"]].concat());
    assert!(other.contains("float32, bfloat16, float16"), "{other}");
    succeed(&[&merge[..], &["--dtype", "float32"]].concat());
    assert_eq!(types(&merged), [Dtype::F32]);
    let config = fs::read(merged.join("config.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&config).unwrap()["torch_dtype"], "float32");
}
