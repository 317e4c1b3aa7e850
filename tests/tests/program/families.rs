//! A run of the whole program on a model of each family that isn't Gemma-2.

use std::{fs, path::Path};

use burn::tensor::Device;
use fpo_transformer::{ModelConfig, weights};
use serde_json::{Value, json};

use crate::common::{arg, fail, skip_when_quick, succeed};

/// A model of random weights with a tokenizer of 384 tokens.
fn model(tokenizer: &Path, family: &Value, folder: &Path) {
    let mut config = json!({"vocab_size": 384, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 128,
        "initializer_range": 0.2});
    config.as_object_mut().unwrap().extend(family.as_object().unwrap().clone());
    let config = ModelConfig::from_json(&config.to_string()).unwrap();
    fs::create_dir(folder).unwrap();
    weights::save(&weights::random(&config, 0, &Device::flex()).unwrap(), folder).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tokenizer.join(name), folder.join(name)).unwrap();
    }
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Every stage, each family with something else that must work on it: its model is of the same family, the evaluation has numbers,
/// and it answers.
#[test]
fn every_stage_on_every_family() {
    if skip_when_quick("every_stage_on_every_family") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("first");
    succeed(&["train", "--recipe", "smoke", "--run", arg(&first), "--until", "prepare"]);
    let tokenizer = first.join("prepared");
    let cases: [(&str, Value, &[&str]); 4] = [
        (
            "llama",
            json!({"model_type": "llama", "tie_word_embeddings": false}),
            &["align.lora.rank=2", "sae.site=attn_z:1", "align.k=5"],
        ),
        (
            "qwen2",
            json!({"model_type": "qwen2", "tie_word_embeddings": true, "head_dim": null}),
            &["model.precision=bf16-mixed", "sae.site=mlp_out:0"],
        ),
        (
            "qwen3",
            json!({"model_type": "qwen3", "tie_word_embeddings": false}),
            &["align.checkpoint_activations=true", "sft.checkpoint_activations=true"],
        ),
        (
            "gemma3_text",
            json!({"model_type": "gemma3_text", "sliding_window": 16, "query_pre_attn_scalar": 6,
                "layer_types": ["sliding_attention", "full_attention"]}),
            &[
                "sft.lora.rank=2",
                "align.method=tdpo2",
                "evaluate.features=true",
                "sae.site=resid_pre:1",
            ],
        ),
    ];
    for (name, family, settings) in cases {
        let base = folder.path().join(name);
        model(&tokenizer, &family, &base);
        let run = folder.path().join(format!("run-{name}"));
        let path = format!("model.path={}", base.display());
        let mut train = vec!["train", "--recipe", "smoke", "--run", arg(&run), "--set", &path];
        train.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        succeed(&train);
        let written = json_of(&run.join("align/config.json"));
        assert_eq!(written["model_type"], name);
        let evaluation = json_of(&run.join("evaluate/evaluation.json"));
        for measured in ["loss", "chosen_distance"] {
            let value = evaluation["after"][measured].as_f64();
            assert!(value.is_some_and(f64::is_finite), "{name}: {measured} is {value:?}");
        }
        let align = run.join("align");
        succeed(&["generate", "--model", arg(&align), "--prompt", "a", "--max-new-tokens", "3"]);

        // A site that this model lacks is refused before anything runs.
        let never = folder.path().join(format!("never-{name}"));
        let site = ["--set", &path, "--set", "sae.site=resid_post:2"];
        let train = ["train", "--recipe", "smoke", "--run", arg(&never)];
        let printed = fail(&[&train[..], &site].concat());
        assert!(printed.contains("sae.site") && printed.contains("2 layers"), "{printed}");
        assert!(!never.join("prepared").exists());
    }
}
