//! A run of the whole program on a model of each family that isn't Gemma-2.

use std::{fs, path::Path};

use burn::tensor::Device;
use fpo_data::{Preparer, Prompt, Rendering, TemplateChoice, Tokenizer, Truncation};
use fpo_transformer::{GenerationOptions, ModelConfig, generate, weights};
use serde_json::{Value, json};

use crate::{
    common::{arg, fail, skip_when_quick, succeed},
    score::{fixture, json_lines},
};

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

/// Oracle: the tokens that the model gives without any end. Each family's tokenizer, template and list of ends, to which one of
/// those tokens is added, last.
#[test]
fn each_family_ends_where_its_files_say() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str| match name {
        "gemma2" => {
            json!({"model_type": "gemma2", "sliding_window": 16, "query_pre_attn_scalar": 6})
        }
        "gemma3" => {
            json!({"model_type": "gemma3_text", "sliding_window": 16, "query_pre_attn_scalar": 6,
            "layer_types": ["sliding_attention", "full_attention"]})
        }
        "qwen2" => json!({"model_type": "qwen2", "head_dim": null}),
        "qwen3" => json!({"model_type": "qwen3"}),
        _ => json!({"model_type": "llama"}),
    };
    let recorded = json_of(&fixture("tokenizers/recorded.json"));
    let room = Truncation { max_length: 1000, max_prompt_length: None };
    for name in ["gemma2", "gemma3", "llama3", "qwen2", "qwen3", "smollm2"] {
        let base = folder.path().join(name);
        model(&fixture(&format!("tokenizers/{name}")), &of(name), &base);
        let tokenizer = Tokenizer::load(&base).unwrap();
        let template = TemplateChoice::from(tokenizer.chat_template().unwrap());
        let preparer = Preparer::new(&tokenizer, &template, Rendering::Auto, room).unwrap();
        let prompt = preparer.tokenize_prompt(&Prompt::Text("Hi".into())).unwrap();
        // A token that can't be sampled, so that nothing ends it.
        let options = GenerationOptions {
            max_new_tokens: 12,
            temperature: 0.0,
            stop_tokens: vec![u32::MAX],
            ..Default::default()
        };
        let loaded = weights::load(&base, &Device::flex()).unwrap();
        let tokens = generate(&loaded, &[prompt], &options).unwrap().remove(0).tokens;
        let mut ends: Vec<u32> = serde_json::from_value(recorded[name]["ends"].clone()).unwrap();
        let before = tokens.iter().position(|token| ends.contains(token)).unwrap_or(tokens.len());
        let fresh = |&place: &usize| !tokens[..place].contains(&tokens[place]);
        let place = (0..before).rev().find(fresh).unwrap();
        ends.push(tokens[place]);
        let settings = json!({"eos_token_id": ends}).to_string();
        fs::write(base.join("generation_config.json"), settings).unwrap();

        let (prompts, out) = (folder.path().join("prompts.txt"), folder.path().join("out.jsonl"));
        fs::write(&prompts, "Hi\n").unwrap();
        let files = ["--prompts", arg(&prompts), "--out", arg(&out), "--max-new-tokens", "12"];
        succeed(&[&["generate", "--model", arg(&base)], &files[..]].concat());
        let answer = json_lines(&out).remove(0);
        assert_eq!(answer["tokens"], place, "{name}: {tokens:?}, {ends:?}");
        assert_eq!(answer["stopped"], true, "{name}");
        let text = tokenizer.decode(&tokens[..place], true).unwrap();
        assert_eq!(answer["response"], text, "{name}");
    }
}
