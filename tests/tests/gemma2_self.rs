//! `fpo_transformer` agrees with itself (padding, cache, stored types) and survives damaged files.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    panic::catch_unwind,
};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Int, Tensor, TensorData},
};
use fpo_transformer::{
    Error, Gemma2, Gemma2Config, Generated, GenerationOptions, Site, generate, weights,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Oracle: each row alone, without padding, but for the rounding of differently shaped products; and
/// to the bit the same batch padded with other tokens.
#[test]
fn a_padded_batch_equals_its_rows() {
    let model = model(&config());
    let sites: Vec<Site> = (0..3).map(Site::resid_post).collect();
    let forward = |rows: &[Vec<u32>]| {
        let output = model.forward(tokens(rows), &sites);
        [vec![output.hidden_states], output.sites].concat()
    };
    let rows = [text(1, 17), text(2, 9), text(3, 1)];
    let padded_with = |padding: u32| {
        let pad = |row: &Vec<u32>| [row.clone(), vec![padding; 17 - row.len()]].concat();
        forward(&rows.iter().map(pad).collect::<Vec<_>>())
    };
    let (batch, other_padding) = (padded_with(0), padded_with(33));
    for (index, row) in rows.iter().enumerate() {
        let alone = forward(std::slice::from_ref(row));
        for ((batch, other), alone) in batch.iter().zip(&other_padding).zip(alone) {
            let real = |x: &Tensor<3>| x.clone().slice([index..index + 1, 0..row.len()]);
            assert!(real(batch).into_data() == real(other).into_data(), "row {index} sees padding");
            let largest: f32 = alone.clone().abs().max().into_scalar();
            let difference: f32 = (real(batch) - alone).abs().max().into_scalar();
            assert!(difference < 1e-5 * largest, "row {index}: {difference} of {largest}");
        }
    }
}

/// Oracle: the whole text anew for every token, without cache and without padding.
#[test]
fn cached_generation_equals_recomputing() {
    let model = model(&config());
    let prompts = [text(4, 3), text(5, 12), text(6, 1)];
    let answers = generate(&model, &prompts, &greedy(24)).unwrap();
    for (index, (prompt, answer)) in prompts.iter().zip(&answers).enumerate() {
        let mut whole = prompt.clone();
        let mut entropies = Vec::new();
        for _ in 0..24 {
            let hidden = model.forward(tokens(std::slice::from_ref(&whole)), &[]).hidden_states;
            let [_, length, d_model] = hidden.dims();
            let last = hidden.slice([0..1, length - 1..length]).reshape([1, d_model]);
            let logits: Vec<f32> = model.logits(last).into_data().iter::<f32>().collect();
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = logits.iter().map(|l| (l - most).exp()).sum();
            let log_probs: Vec<f32> = logits.iter().map(|l| l - most - sum.ln()).collect();
            entropies.push(log_probs.iter().map(|p| -p * p.exp()).sum::<f32>());
            whole.push(logits.iter().position(|&l| l == most).unwrap() as u32);
        }
        assert_eq!(answer.tokens, whole[prompt.len()..], "prompt {index}");
        assert!(!answer.stopped);
        for (ours, slow) in answer.entropies.iter().zip(&entropies) {
            assert!((ours - slow).abs() < 1e-4, "prompt {index}: {ours} nats, slowly {slow}");
        }
    }
    let different: BTreeSet<u32> = answers.into_iter().flat_map(|a| a.tokens).collect();
    assert!(different.len() > 5, "a dull test: {different:?}");
}

#[test]
fn neighbours_and_stop_tokens_leave_an_answer_alone() {
    let model = model(&config());
    let prompts = [text(7, 5), text(8, 11)];
    let sampled =
        GenerationOptions { temperature: 1.0, top_k: Some(20), top_p: Some(0.95), ..greedy(16) };
    for options in [greedy(16), sampled] {
        let both = generate(&model, &prompts, &options).unwrap();
        assert_eq!(both[0].tokens, generate(&model, &prompts[..1], &options).unwrap()[0].tokens);

        let stop = both[0].tokens[4];
        let ended = GenerationOptions { stop_tokens: vec![stop], ..options };
        for (whole, ended) in both.iter().zip(generate(&model, &prompts, &ended).unwrap()) {
            let until =
                whole.tokens.iter().take_while(|t| **t != stop).copied().collect::<Vec<_>>();
            assert_eq!(ended.tokens, until);
            assert_eq!(ended.stopped, until.len() < 16);
            assert_eq!(ended.entropies.len(), until.len() + usize::from(ended.stopped));
        }
    }
    let prompt = vec![2, config().vocab_size as u32];
    for (prompts, options) in
        [(vec![vec![]], greedy(1)), (vec![prompt], greedy(1)), (vec![vec![2]], greedy(1 << 20))]
    {
        assert!(matches!(generate(&model, &prompts, &options), Err(Error::Prompt { .. })));
    }
    assert_eq!(generate(&model, &prompts[..1], &greedy(0)).unwrap(), [Generated::default()]);
}

/// Oracle: bit patterns and their values by IEEE 754 and the definition of bfloat16.
#[test]
fn half_precision_weights_load_to_their_values() {
    let bfloat16 = [
        (0x0000u16, 0.0f32),
        (0x3f80, 1.0),
        (0xc020, -2.5),
        (0x3dcd, f32::from_bits(0x3dcd_0000)),
        (0x0001, f32::from_bits(0x0001_0000)),
        (0x7f7f, 3.389_531_4e38),
    ];
    let float16 = [
        (0x8000u16, -0.0f32),
        (0x3c00, 1.0),
        (0xc100, -2.5),
        (0x2e66, 0.099_975_586),
        (0x0001, 5.960_464_5e-8),
        (0x7bff, 65504.0),
    ];
    for (dtype, table) in [(Dtype::BF16, bfloat16), (Dtype::F16, float16)] {
        let mut checkpoint = Checkpoint::valid();
        for stored in checkpoint.tensors.values_mut() {
            let count = stored.shape.iter().product::<usize>();
            let bits = table.iter().cycle().take(count).flat_map(|(bits, _)| bits.to_le_bytes());
            *stored = Stored { dtype, shape: stored.shape.clone(), bytes: bits.collect() };
        }
        let folder = checkpoint.write();
        let model = weights::load(folder.path(), &Device::flex()).unwrap();
        for (name, values) in parameters(&model) {
            let expected = table.iter().cycle().map(|(_, value)| value.to_bits());
            assert!(values.iter().map(|v| v.to_bits()).eq(expected.take(values.len())), "{name}");
        }
    }
}

#[test]
fn every_tensor_that_does_not_fit_is_named_at_once() {
    let mut checkpoint = Checkpoint::valid();
    let tensors = &mut checkpoint.tensors;
    tensors.remove("model.norm.weight");
    let down = tensors.get_mut("model.layers.0.mlp.down_proj.weight").unwrap();
    down.shape.reverse();
    let gate = tensors.get_mut("model.layers.0.mlp.gate_proj.weight").unwrap();
    gate.dtype = Dtype::I32;
    let extra = tensors["model.layers.0.input_layernorm.weight"].clone();
    tensors.insert("model.layers.1.input_layernorm.weight".into(), extra);
    match checkpoint.load() {
        Err(Error::Weights { problems, .. }) => {
            let expected = [
                ("model.norm.weight", "missing"),
                ("mlp.down_proj.weight", "[8, 4]"),
                ("mlp.gate_proj.weight", "I32"),
                ("model.layers.1.input_layernorm.weight", "not part of"),
            ];
            assert_eq!(problems.len(), expected.len(), "{problems:?}");
            for (name, says) in expected {
                let named = |p: &&String| p.contains(name) && p.contains(says);
                assert_eq!(problems.iter().filter(named).count(), 1, "{name} {says}: {problems:?}");
            }
        }
        other => panic!("{other:?}"),
    }
}

/// A copy of the tied embedding is harmless, another head is not.
#[test]
fn a_stored_head_must_be_the_embedding() {
    let mut checkpoint = Checkpoint::valid();
    let embedding = checkpoint.tensors["model.embed_tokens.weight"].clone();
    checkpoint.tensors.insert("lm_head.weight".into(), embedding);
    checkpoint.load().unwrap();
    checkpoint.tensors.get_mut("lm_head.weight").unwrap().bytes[5] ^= 1;
    assert!(matches!(checkpoint.load(), Err(Error::Weights { .. })));
}

/// Sizes that no machine could hold must be refused before they are allocated.
#[test]
fn a_configuration_that_contradicts_the_weights_is_an_error() {
    for (key, value) in [
        ("num_hidden_layers", json!(2)),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(1 << 24)),
        ("num_hidden_layers", json!(u64::MAX)),
        ("vocab_size", json!(12)),
        ("vocab_size", json!(1 << 24)),
        ("hidden_size", json!(1 << 24)),
        ("intermediate_size", json!(1 << 24)),
        ("head_dim", json!(4)),
        ("head_dim", json!(1 << 24)),
        ("num_key_value_heads", json!(2)),
        ("num_attention_heads", json!(1 << 24)),
        ("layer_types", json!(["full_attention", "full_attention"])),
        ("layer_types", json!(["chunked_attention"])),
        ("pad_token_id", json!(11)),
        ("sliding_window", json!(-1)),
        ("rms_norm_eps", json!("small")),
        ("use_bidirectional_attention", json!(true)),
        ("model_type", json!("gemma3")),
    ] {
        let mut checkpoint = Checkpoint::valid();
        checkpoint.config[key] = value.clone();
        match checkpoint.load() {
            Err(Error::Config { message, .. }) => assert!(!message.is_empty()),
            Err(Error::Weights { problems, .. }) => assert!(!problems.is_empty()),
            other => panic!("{key} = {value}: {other:?}"),
        }
    }
}

#[test]
fn damaged_files_are_errors() {
    let whole = Checkpoint::valid().bytes();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap());
    let with_header = |length: u64| [&length.to_le_bytes()[..], &whole[8..]].concat();
    let shifted = |text: &str, by: &str| {
        let at = whole.windows(text.len()).position(|w| w == text.as_bytes()).unwrap();
        [&whole[..at], by.as_bytes(), &whole[at + text.len()..]].concat()
    };
    for (what, bytes) in [
        ("empty", vec![]),
        ("seven bytes", whole[..7].to_vec()),
        ("half a header", whole[..8 + header as usize / 2].to_vec()),
        ("no data", whole[..8 + header as usize].to_vec()),
        ("a byte short", whole[..whole.len() - 1].to_vec()),
        ("a byte too long", [&whole[..], &[0]].concat()),
        ("a header beyond the file", with_header(whole.len() as u64)),
        ("a header beyond memory", with_header(u64::MAX)),
        ("a header of nothing", with_header(0)),
        ("offsets that run backwards", shifted("[0,", "[9,")),
        ("an unknown type", shifted("\"F32\"", "\"F31\"")),
    ] {
        let folder = Checkpoint::valid().write();
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let result = weights::load(folder.path(), &Device::flex());
        assert!(
            matches!(result, Err(Error::Format { .. } | Error::Io { .. })),
            "{what}: {result:?}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(weights::load(folder.path(), &Device::flex()), Err(Error::Io { .. })));
}

#[test]
fn an_index_names_plain_files_of_its_own_folder() {
    let outside = Checkpoint::valid().write();
    let absolute = outside.path().join("model.safetensors");
    let absolute = absolute.to_str().unwrap();
    let map = |file: &str| json!({ "weight_map": { "model.norm.weight": file } }).to_string();
    let two = json!({ "weight_map": { "a": "model.safetensors", "b": "copy.safetensors" } });
    for (text, says) in [
        (map("../model.safetensors"), "plain file name"),
        (map(absolute), "plain file name"),
        (map("sub/model.safetensors"), "plain file name"),
        (map(".."), "plain file name"),
        (map("/"), "plain file name"),
        (map(""), "plain file name"),
        (map("absent.safetensors"), "absent.safetensors"),
        ("{}".into(), "weight_map"),
        ("[1]".into(), "weight_map"),
        (json!({ "weight_map": { "model.norm.weight": 3 } }).to_string(), "weight_map"),
        ("{\"weight_map\"".into(), "EOF"),
        (two.to_string(), "two files"),
    ] {
        let folder = Checkpoint::valid().write();
        let copy = folder.path().join("copy.safetensors");
        fs::copy(folder.path().join("model.safetensors"), copy).unwrap();
        fs::write(folder.path().join("model.safetensors.index.json"), &text).unwrap();
        let error = weights::load(folder.path(), &Device::flex()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(says), "{text}: {error}");
    }
}

/// Whatever stands in the two files, loading them returns.
#[test]
fn mutated_files_never_panic() {
    let valid = Checkpoint::valid();
    let folder = valid.write();
    let mut random = Random(0x5eed);
    for file in ["model.safetensors", "config.json"] {
        let path = folder.path().join(file);
        let whole = fs::read(&path).unwrap();
        let mut refused = 0;
        for round in 0..600 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random.below(3) {
                let at = random.below(bytes.len());
                match random.below(5) {
                    0 => bytes[at] ^= 1 << random.below(8),
                    1 => bytes[at] = random.below(256) as u8,
                    2 => bytes[at] = b"0123456789[]{},:\"-"[random.below(18)],
                    3 => bytes.splice(at..at, [b'9'; 6]).for_each(drop),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            fs::write(&path, &bytes).unwrap();
            let result = catch_unwind(|| weights::load(folder.path(), &Device::flex()).is_err());
            match result {
                Ok(error) => refused += usize::from(error),
                Err(_) => panic!("{file}, round {round}: {:?}", String::from_utf8_lossy(&bytes)),
            }
        }
        fs::write(&path, &whole).unwrap();
        println!("{file}: {refused} of 600 mutations were refused");
        assert!(refused > 300, "{file}: only {refused} mutations were refused");
    }
}

/// A stored tensor.
#[derive(Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// A checkpoint's folder before it is written: a valid one to be damaged.
struct Checkpoint {
    config: Value,
    tensors: BTreeMap<String, Stored>,
}

impl Checkpoint {
    fn valid() -> Self {
        let config = json!({
            "model_type": "gemma2", "vocab_size": 11, "hidden_size": 4, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 2, "query_pre_attn_scalar": 2, "max_position_embeddings": 16,
        });
        let model = model(&Gemma2Config::from_json(&config.to_string()).unwrap());
        let folder = tempfile::tempdir().unwrap();
        weights::save(&model, folder.path()).unwrap();
        let bytes = fs::read(folder.path().join("model.safetensors")).unwrap();
        let stored = |(name, view): (String, TensorView)| {
            let (dtype, shape, bytes) = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            (name, Stored { dtype, shape, bytes })
        };
        let file = SafeTensors::deserialize(&bytes).unwrap();
        Self { config, tensors: file.tensors().into_iter().map(stored).collect() }
    }

    fn bytes(&self) -> Vec<u8> {
        let views = self
            .tensors
            .iter()
            .map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
        safetensors::serialize(views, None::<HashMap<String, String>>).unwrap()
    }

    fn write(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), self.config.to_string()).unwrap();
        fs::write(folder.path().join("model.safetensors"), self.bytes()).unwrap();
        folder
    }

    fn load(&self) -> Result<Gemma2, Error> {
        weights::load(self.write().path(), &Device::flex())
    }
}

/// Three layers, a window of four tokens, soft-caps that bend.
fn config() -> Gemma2Config {
    let config = json!({
        "model_type": "gemma2", "vocab_size": 61, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "query_pre_attn_scalar": 6, "sliding_window": 4, "max_position_embeddings": 64,
        "attn_logit_softcapping": 4.0, "final_logit_softcapping": 8.0,
    });
    Gemma2Config::from_json(&config.to_string()).unwrap()
}

/// A random model whose norms have random gains too, and whose blocks outweigh the embedding: else a
/// tied head only repeats the last token.
fn model(config: &Gemma2Config) -> Gemma2 {
    let mut random = Random(42);
    Gemma2::build(config, &Device::flex(), &mut |name, shape| {
        let (offset, scale) = match shape.len() {
            1 if name == "model.norm.weight" => (4.0, 1.0),
            1 => (0.0, 0.5),
            _ if name.contains("embed") => (0.0, 0.2),
            _ => (0.0, 2.2 / (shape[1] as f32).sqrt()),
        };
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|_| offset + scale * random.signed()).collect();
        Ok(TensorData::new(values, shape.to_vec()))
    })
    .unwrap()
}

/// Every parameter's values by name.
fn parameters(model: &Gemma2) -> BTreeMap<String, Vec<f32>> {
    #[derive(Default)]
    struct Named(Vec<String>, BTreeMap<String, Vec<f32>>);
    impl ModuleVisitor for Named {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.insert(self.0.join("."), param.val().into_data().iter::<f32>().collect());
        }
    }
    let mut named = Named::default();
    model.visit(&mut named);
    assert!(!named.1.is_empty());
    named.1
}

fn greedy(max_new_tokens: usize) -> GenerationOptions {
    let stop_tokens = vec![u32::MAX];
    GenerationOptions { max_new_tokens, temperature: 0.0, stop_tokens, ..Default::default() }
}

/// A beginning-of-sequence token and random ones after it.
fn text(seed: u64, length: usize) -> Vec<u32> {
    let mut random = Random(seed);
    let rest = std::iter::repeat_with(|| 3 + random.below(58) as u32);
    std::iter::once(2).chain(rest).take(length).collect()
}

fn tokens(rows: &[Vec<u32>]) -> Tensor<2, Int> {
    let shape = [rows.len(), rows[0].len()];
    let ids: Vec<i32> = rows.iter().flatten().map(|&id| id as i32).collect();
    Tensor::from_data(TensorData::new(ids, shape), &Device::flex())
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Between −1 and 1.
    fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
