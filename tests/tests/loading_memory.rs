//! Loading a checkpoint takes little more memory than the model that comes of it.
#![cfg(target_os = "linux")]

use std::{env, path::Path, process::Command};

use burn::tensor::Device;
use fpo_trainer::bench::peak_rss_mib;
use fpo_transformer::{Gemma2Config, weights};

/// Names the folder to load, in the process that is measured.
const LOAD: &str = "FPO_TEST_LOAD";

#[test]
fn a_checkpoint_is_never_in_memory_twice() {
    if let Some(folder) = env::var_os(LOAD) {
        let before = peak_rss_mib().unwrap();
        let model = weights::load(Path::new(&folder), &Device::flex()).unwrap();
        println!("took {}", peak_rss_mib().unwrap() - before);
        drop(model);
        return;
    }
    let config = Gemma2Config::from_json(
        r#"{"model_type": "gemma2", "vocab_size": 20000, "hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128,
            "query_pre_attn_scalar": 128}"#,
    );
    let folder = tempfile::tempdir().unwrap();
    let model = weights::random(&config.unwrap(), 0, &Device::flex()).unwrap();
    weights::save(&model, folder.path()).unwrap();
    drop(model);
    let bytes = folder.path().join("model.safetensors").metadata().unwrap().len();
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "a_checkpoint_is_never_in_memory_twice", "--nocapture"])
        .env(LOAD, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let took = said.lines().find_map(|line| line.split("took ").nth(1)).unwrap();
    let (took, size) = (took.trim().parse::<f64>().unwrap(), bytes as f64 / f64::from(1 << 20));
    println!("{took:.0} MiB for a checkpoint of {size:.0}");
    // One tensor at a time is there twice.
    assert!(took < 1.2 * size && took > 0.9 * size, "{took} MiB for a checkpoint of {size}");
}
