//! Loading a checkpoint takes little more memory than the model that comes of it, saving a model next to none.
#![cfg(target_os = "linux")]

use std::{env, fs, io::Write, path::Path, process::Command};

use burn::tensor::Device;
use fpo_device::host::peak_rss_mib;
use fpo_transformer::{LanguageModel, LoraConfig, ModelConfig, Placement, Precision, weights};
use serde_json::{Map, json};

/// Names the folder of the checkpoint, in the process that is measured.
const FOLDER: &str = "FPO_TEST_CHECKPOINT";
/// How many of Llama-3.1-8B's 32 layers are loaded. Its tables of tokens, of a gigabyte each, are whole however few they are.
const LAYERS: &str = "FPO_TEST_LAYERS";
/// Bytes of a shard, as transformers writes them.
const SHARD: usize = 5_000_000_000;

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
        .args(["--exact", test, "--nocapture", "--include-ignored"])
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

/// `FPO_TEST_LAYERS=8 cargo test --release -p fpo-tests --test loading_memory -- --ignored --nocapture`. The files are holes, so they
/// take no room on the disk; the model does in memory: 2.0 GiB and 0.41 for each layer.
#[test]
#[ignore = "takes gigabytes of memory"]
fn llama_8b_in_bfloat16_is_never_in_memory_twice() {
    if let Some(folder) = env::var_os(FOLDER) {
        let before = peak_rss_mib().unwrap();
        let placement = Placement::new(Device::flex(), Precision::Bf16Mixed);
        let model = weights::load(Path::new(&folder), &placement).unwrap();
        println!("took {}", peak_rss_mib().unwrap() - before);
        drop(model);
        return;
    }
    let layers = env::var(LAYERS).map_or(32, |layers| layers.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let bytes = llama_8b(folder.path(), layers);
    let size = bytes as f64 / f64::from(1 << 20);
    let took = took("llama_8b_in_bfloat16_is_never_in_memory_twice", folder.path());
    println!("{layers} layers: {took:.0} MiB for {size:.0}, {:.3} times", took / size);
    assert!(took < 1.1 * size && took > 0.95 * size);
}

/// Writes a checkpoint of zeros with the shapes of Llama-3.1-8B, in shards; returns the bytes of its weights.
fn llama_8b(folder: &Path, layers: usize) -> usize {
    let config = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128_256,
        "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": layers, "num_attention_heads": 32,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": false,
        "max_position_embeddings": 131_072, "hidden_act": "silu", "torch_dtype": "bfloat16"});
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut tensors = vec![("model.embed_tokens".to_owned(), vec![128_256, 4096])];
    for layer in 0..layers {
        let mut add = |part: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{part}"), shape.to_vec()));
        };
        add("input_layernorm", &[4096]);
        add("self_attn.q_proj", &[4096, 4096]);
        add("self_attn.k_proj", &[1024, 4096]);
        add("self_attn.v_proj", &[1024, 4096]);
        add("self_attn.o_proj", &[4096, 4096]);
        add("post_attention_layernorm", &[4096]);
        add("mlp.gate_proj", &[14_336, 4096]);
        add("mlp.up_proj", &[14_336, 4096]);
        add("mlp.down_proj", &[4096, 14_336]);
    }
    tensors.push(("model.norm".into(), vec![4096]));
    tensors.push(("lm_head".into(), vec![128_256, 4096]));

    let mut shards: Vec<(usize, Map<String, serde_json::Value>)> = vec![(0, Map::new())];
    for (name, shape) in tensors {
        let bytes = 2 * shape.iter().product::<usize>();
        if shards.last().unwrap().0 + bytes > SHARD {
            shards.push((0, Map::new()));
        }
        let (end, header) = shards.last_mut().unwrap();
        let offsets = [*end, *end + bytes];
        *end += bytes;
        header.insert(
            format!("{name}.weight"),
            json!({"dtype": "BF16", "shape": shape, "data_offsets": offsets}),
        );
    }
    let (mut weight_map, mut total) = (Map::new(), 0);
    let count = shards.len();
    for (i, (bytes, header)) in shards.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
        let text = serde_json::to_vec(&header).unwrap();
        let mut output = fs::File::create(folder.join(&file)).unwrap();
        output.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
        output.write_all(&text).unwrap();
        output.set_len((8 + text.len() + bytes) as u64).unwrap();
        weight_map.extend(header.into_iter().map(|(name, _)| (name, json!(file))));
        total += bytes;
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    total
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
