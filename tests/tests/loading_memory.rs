//! Loading a checkpoint takes little more memory than the model that comes of it, saving a model next to none.
#![cfg(target_os = "linux")]

use std::{env, path::Path, process::Command};

use burn::tensor::Device;
use fpo_device::host::peak_rss_mib;
use fpo_transformer::{LanguageModel, LoraConfig, ModelConfig, weights};

/// Names the folder of the checkpoint, in the process that is measured.
const FOLDER: &str = "FPO_TEST_CHECKPOINT";

fn model() -> LanguageModel {
    let config = ModelConfig::from_json(
        r#"{"model_type": "gemma2", "vocab_size": 20000, "hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128,
            "query_pre_attn_scalar": 128}"#,
    );
    weights::random(&config.unwrap(), 0, &Device::flex()).unwrap()
}

/// Runs `test` again in a process of its own with a folder: the MiB that it says it took.
fn took(test: &str, folder: &Path) -> f64 {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(FOLDER, folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let took = said.lines().find_map(|line| line.split("took ").nth(1)).unwrap();
    took.trim().parse().unwrap()
}

fn mebibytes(folder: &Path) -> f64 {
    folder.join("model.safetensors").metadata().unwrap().len() as f64 / f64::from(1 << 20)
}

#[test]
fn a_checkpoint_is_never_in_memory_twice() {
    if let Some(folder) = env::var_os(FOLDER) {
        let before = peak_rss_mib().unwrap();
        let model = weights::load(Path::new(&folder), &Device::flex()).unwrap();
        println!("took {}", peak_rss_mib().unwrap() - before);
        drop(model);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    weights::save(&model(), folder.path()).unwrap();
    let size = mebibytes(folder.path());
    let took = took("a_checkpoint_is_never_in_memory_twice", folder.path());
    println!("{took:.0} MiB for a checkpoint of {size:.0}");
    // One tensor at a time is there twice.
    assert!(took < 1.2 * size && took > 0.9 * size, "{took} MiB for a checkpoint of {size}");
}

#[test]
fn a_model_is_saved_in_small_pieces() {
    if let Some(folder) = env::var_os(FOLDER) {
        // Adapters are merged on the way, a few rows at a time.
        let adapters = LoraConfig { rank: 4, ..LoraConfig::default() };
        let model = model().with_new_lora(&adapters, 0, &Device::flex()).unwrap();
        let before = peak_rss_mib().unwrap();
        weights::save(&model, Path::new(&folder)).unwrap();
        println!("took {}", peak_rss_mib().unwrap() - before);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let took = took("a_model_is_saved_in_small_pieces", folder.path());
    let size = mebibytes(folder.path());
    println!("{took:.0} MiB to save {size:.0}");
    assert!(took < 0.2 * size, "{took} MiB to save {size}");
}
