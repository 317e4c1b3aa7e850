//! Weights of every stored type, and files that are damaged or hostile.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    panic::catch_unwind,
};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Tensor},
};
use fpo_transformer::{Error, LanguageModel, ModelConfig, weights};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Random, model};

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
                ("config.json", "num_hidden_layers = 1, the files have 2"),
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
    let two = json!({ "weight_map": { "a": "other.safetensors", "b": "copy.safetensors" } });
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
        // Without the single file, which would be read rather than what an index names.
        let (single, copy) = ("model.safetensors", folder.path().join("copy.safetensors"));
        fs::copy(folder.path().join(single), &copy).unwrap();
        fs::rename(folder.path().join(single), folder.path().join("other.safetensors")).unwrap();
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
        let model = model(&ModelConfig::from_json(&config.to_string()).unwrap());
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

    fn load(&self) -> Result<LanguageModel, Error> {
        weights::load(self.write().path(), &Device::flex())
    }
}

/// Every parameter's values by name.
fn parameters(model: &LanguageModel) -> BTreeMap<String, Vec<f32>> {
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
