//! Training adapters rather than the model.

use std::{collections::BTreeMap, fs, path::Path};

use crate::common::{arg, fail, skip_when_quick, succeed};
use serde_json::Value;

fn last_loss(run: &Path) -> [f64; 2] {
    let text = fs::read_to_string(run.join("align/metrics.jsonl")).unwrap();
    let losses = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["loss"].as_f64().unwrap()
    });
    let losses: Vec<f64> = losses.collect();
    [losses[0], losses[losses.len() - 1]]
}

/// Oracle: the model that alignment wrote; the one it began with is what the adapters are merged into,
/// so that it cannot have moved.
#[test]
fn adapters_merged_into_their_base_are_the_aligned_model() {
    if skip_when_quick("adapters_merged_into_their_base_are_the_aligned_model") {
        return;
    }
    for (precision, tolerance) in [("float32", 1e-6), ("bf16-mixed", 1e-3)] {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let train = ["train", "--recipe", "smoke", "--run", arg(&run), "--until", "evaluate"];
        let lora = ["--set", "align.lora.rank=4", "--set", "align.epochs=5"];
        let precision = format!("model.precision={precision}");
        let quick = ["--set", "align.optimizer.learning_rate=1e-2", "--set", &precision];
        let train = [&train[..], &lora, &quick].concat();
        succeed(&train);
        let [first, last] = last_loss(&run);
        assert!((first - 2f64.ln()).abs() < tolerance, "{precision}: a first loss of {first}");
        assert!(last < 0.95 * first, "{precision}: loss from {first} to {last}");

        let (base, adapter) = (run.join("sft"), run.join("align/adapter"));
        let out = folder.path().join("merged");
        let merge =
            ["merge", "--model", arg(&base), "--adapter", arg(&adapter), "--out", arg(&out)];
        succeed(&merge);
        let aligned = run.join("align");
        for file in ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json"]
        {
            let [merged, aligned] = [&out, &aligned].map(|f| fs::read(f.join(file)).unwrap());
            assert!(merged == aligned, "{precision}: {file} differs");
        }
        let before = fs::read(base.join("model.safetensors")).unwrap();
        assert!(before != fs::read(out.join("model.safetensors")).unwrap());

        assert!(fail(&merge).contains("already exists"));
        let nowhere = folder.path().join("other");
        let other =
            ["merge", "--model", arg(&base), "--adapter", arg(&base), "--out", arg(&nowhere)];
        assert!(fail(&other).contains("adapter_config.json"));
        assert!(!nowhere.exists());

        // What is measured beside the base is what is measured of the merged model.
        let beside = measured(&run);
        fs::remove_dir_all(run.join("evaluate")).unwrap();
        fs::remove_dir_all(&adapter).unwrap();
        succeed(&train);
        for (name, alone) in measured(&run) {
            let apart = (beside[&name] - alone).abs() / alone.abs().max(1.0);
            assert!(
                apart < 30.0 * tolerance,
                "{precision}: {name} {} beside, {alone}",
                beside[&name]
            );
        }
    }
}

/// Numbers of the model after alignment that don't depend on sampled answers.
fn measured(run: &Path) -> BTreeMap<String, f64> {
    let text = fs::read_to_string(run.join("evaluate/evaluation.json")).unwrap();
    let evaluation: Value = serde_json::from_str(&text).unwrap();
    let names = ["loss", "reward_margin", "chosen_kl", "rejected_kl", "chosen_distance"];
    names.map(|name| (name.to_owned(), evaluation["after"][name].as_f64().unwrap())).into()
}

/// What methods with a second model compare with is the base: nothing has diverged before the first step.
#[test]
fn the_reference_is_the_base_without_adapters() {
    if skip_when_quick("the_reference_is_the_base_without_adapters") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let train = ["train", "--recipe", "smoke", "--run", arg(&run), "--until", "align"];
    let settings = [
        "--set",
        "align.method=tdpo2",
        "--set",
        "align.lora.target_modules=[\"q_proj\", \"down_proj\"]",
        "--set",
        "align.checkpoint_activations=true",
        "--set",
        "sft.lora.rank=2",
        "--set",
        "sft.optimizer.kind=rmsprop",
    ];
    succeed(&[&train[..], &settings].concat());
    let text = fs::read_to_string(run.join("align/metrics.jsonl")).unwrap();
    let kl = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["kl/chosen"].as_f64().unwrap()
    };
    let (first, last) = (text.lines().next().unwrap(), text.lines().last().unwrap());
    assert!(kl(first).abs() < 1e-5 && kl(last) > 1e-5, "{} then {}", kl(first), kl(last));
    assert!(run.join("sft/adapter/adapter_config.json").is_file());
    let config = fs::read(run.join("align/adapter/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["target_modules"], serde_json::json!(["q_proj", "down_proj"]));
}
