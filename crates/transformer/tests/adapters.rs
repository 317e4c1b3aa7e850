//! Adapters of PEFT, however they say where they belong.
//!
//! Oracle: what PEFT 0.21.2 computes with them, recorded by `tests/fixtures/adapters/generate.py`.

use std::{collections::BTreeMap, fs, path::PathBuf};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Gradients, Int, Tensor, activation::log_softmax},
};
use fpo_transformer::{
    Error, LanguageModel, LoraConfig, Projection, adapter,
    weights::{self, Origin},
};
use safetensors::SafeTensors;
use serde_json::{Value, json};

const CASES: [&str; 15] = [
    "regex",
    "full_names",
    "layers",
    "one_layer",
    "excluded",
    "excluded_names",
    "patterns",
    "orthogonal",
    "gaussian",
    "old_file",
    "dora",
    "saved_embedding",
    "saved_head",
    "saved_both",
    "saved_norms",
];

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn recorded() -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(fixture("adapters/expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(name, view)| {
        let values = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        (name, values.collect())
    });
    tensors.collect()
}

fn base() -> LanguageModel {
    weights::load(&fixture("folders/torch"), &Device::flex()).unwrap()
}

fn load(name: &str, device: &Device) -> LanguageModel {
    adapter::load(&base(), &fixture("adapters").join(name), device).unwrap()
}

fn tokens() -> Vec<i32> {
    recorded()["tokens"].iter().map(|id| *id as i32).collect()
}

/// `[7, vocab]`
fn logits(model: &LanguageModel) -> Tensor<2> {
    let tokens = Tensor::<1, Int>::from_ints(tokens().as_slice(), &Device::flex());
    model.logits(model.forward(tokens.unsqueeze::<2>(), &[]).hidden_states.squeeze_dim(0))
}

fn difference(found: Tensor<2>, expected: &[f32]) -> f32 {
    let found: Vec<f32> = found.into_data().iter().collect();
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn pefts_adapters_compute_the_same_wherever_they_are() {
    let expected = recorded();
    for name in CASES {
        let model = load(name, &Device::flex());
        let adapted = difference(logits(&model), &expected[&format!("logits.{name}")]);
        let merged = difference(logits(&model.merged()), &expected[&format!("merged.{name}")]);
        println!("{name}: logits differ by {adapted:.1e}, merged by {merged:.1e}");
        assert!(adapted < 2e-5 && merged < 2e-5, "{name}: {adapted}, {merged}");
        // The same of the merged model's folder, whose base is read again.
        let folder = tempfile::tempdir().unwrap();
        let origin = Origin::base(&fixture("folders/torch"));
        weights::save_from(&model, &origin, folder.path()).unwrap();
        let saved = weights::load(folder.path(), &Device::flex()).unwrap();
        let saved = difference(logits(&saved), &expected[&format!("merged.{name}")]);
        assert!(saved < 2e-5, "{name}: {saved} from the folder");
    }
}

/// A parameter's gradient by its name in PEFT's files.
struct Found<'a> {
    path: Vec<String>,
    gradients: &'a Gradients,
    values: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for Found<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad(self.gradients) {
            let name = self.path.join(".").replace(".lora.a", ".lora_A.weight");
            let name = name.replace(".lora.b", ".lora_B.weight");
            let name = name.replace(".lora.magnitude", ".lora_magnitude_vector");
            let values = gradient.into_data().iter().collect();
            self.values.insert(format!("base_model.model.{name}"), values);
        }
    }
}

#[test]
fn their_gradients_are_pefts() {
    let expected = recorded();
    for name in CASES {
        let model = load(name, &Device::flex().autodiff());
        let next: Vec<i32> = tokens()[1..].to_vec();
        let next = Tensor::<1, Int>::from_ints(next.as_slice(), &Device::flex());
        let log_probs = log_softmax(logits(&model).narrow(0, 0, 6), 1);
        let gradients = log_probs.gather(1, next.unsqueeze_dim(1)).mean().backward();
        let mut found = Found { path: Vec::new(), gradients: &gradients, values: BTreeMap::new() };
        model.visit(&mut found);
        let prefix = format!("grad.{name}.");
        let theirs: BTreeMap<&str, &Vec<f32>> = expected
            .iter()
            .filter_map(|(key, values)| Some((key.strip_prefix(&prefix)?, values)))
            .collect();
        assert!(
            found.values.keys().eq(theirs.keys().copied()),
            "{name}: {:?}",
            found.values.keys()
        );
        for (key, ours) in &found.values {
            let largest = theirs[key.as_str()].iter().fold(0f32, |m, x| m.max(x.abs()));
            for (a, b) in ours.iter().zip(theirs[key.as_str()]) {
                assert!((a - b).abs() <= 1e-4 * largest.max(1e-2), "{name}: {key}: {a}, {b}");
            }
        }
    }
}

/// What was read is written, and read again it is the same.
#[test]
fn saved_adapters_are_the_same_and_name_their_base() {
    let device = Device::flex();
    let base_folder = fixture("folders/torch");
    for name in CASES {
        let model = load(name, &device);
        let folder = tempfile::tempdir().unwrap();
        adapter::save(&model, folder.path(), Some(&base_folder)).unwrap();
        let again = adapter::load(&base(), folder.path(), &device).unwrap();
        assert_eq!(again.lora(), model.lora(), "{name}");
        let same = logits(&again).into_data() == logits(&model).into_data();
        assert!(same, "{name}");
        let config = fs::read(folder.path().join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let path = config["base_model_name_or_path"].as_str().unwrap();
        assert_eq!(PathBuf::from(path), base_folder.canonicalize().unwrap());
    }
}

/// The layers of new adapters, of which each is named with its rank.
#[test]
fn settings_choose_layers_and_ranks_as_peft_does() {
    let cases: [(&str, Value); 10] = [
        (
            "regex",
            json!({"rank": 2, "target_modules": r".*layers\.[01]\.(self_attn|mlp).*(q_proj|down_proj)"}),
        ),
        (
            "full_names",
            json!({"rank": 2, "target_modules": ["model.layers.1.mlp.up_proj", "self_attn.k_proj"]}),
        ),
        (
            "layers",
            json!({"rank": 2, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]}),
        ),
        (
            "excluded",
            json!({"rank": 2, "target_modules": "all-linear", "exclude_modules": r".*layers\.0\..*|.*_proj.*o_proj"}),
        ),
        (
            "excluded_names",
            json!({"rank": 2, "target_modules": "all-linear", "exclude_modules": ["mlp.up_proj", "v_proj"]}),
        ),
        (
            "dora",
            json!({"rank": 2, "use_dora": true, "target_modules": ["q_proj", "o_proj", "gate_proj", "down_proj"]}),
        ),
        (
            "saved_both",
            json!({"rank": 2, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
        ),
        ("saved_norms", json!({"rank": 2, "modules_to_save": ["norm", "up_proj"]})),
        ("gaussian", json!({"rank": 2, "target_modules": ["gate_proj"]})),
        (
            "patterns",
            json!({"rank": 2, "target_modules": ["q_proj", "up_proj", "o_proj"], "rank_pattern": {
                r"layers\.1\.mlp\.up_proj": 5, r"model\.layers\.0\.self_attn\.q_proj": 3, "q_proj": 1}}),
        ),
    ];
    let device = Device::flex();
    for (name, settings) in cases {
        let config: LoraConfig = serde_json::from_value(settings).unwrap();
        config.check().unwrap();
        let ranks = |config: &LoraConfig| -> Vec<Option<usize>> {
            let layers = (0..2).flat_map(|layer| Projection::ALL.map(|p| config.rank(layer, p)));
            layers.collect()
        };
        assert_eq!(ranks(&config), ranks(load(name, &device).lora().unwrap()), "{name}");
        let model = base().with_new_lora(&config, 1, &device).unwrap();
        let folder = tempfile::tempdir().unwrap();
        adapter::save(&model, folder.path(), None).unwrap();
        let again = adapter::load(&base(), folder.path(), &device).unwrap();
        assert_eq!(ranks(again.lora().unwrap()), ranks(&config), "{name}");
        let outputs = logits(&model).sub(logits(&base())).abs().max().into_scalar::<f32>();
        assert!(outputs < 1e-6, "{name}: new adapters change outputs by {outputs}");
        // As settings are kept.
        let kept = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<LoraConfig>(&kept).unwrap(), config);
    }
}

#[test]
fn settings_that_fit_nothing_are_refused() {
    let cases: [(Value, &str); 10] = [
        (json!({"target_modules": ["q"]}), "`q`"),
        (json!({"target_modules": ["lm_head"]}), "lm_head"),
        (json!({"target_modules": []}), "no target modules"),
        (json!({"target_modules": "q_proj"}), "a list of names"),
        (json!({"target_modules": ".*(q_proj"}), "regular expression"),
        (
            json!({"target_modules": r".*\.q_proj", "layers_to_transform": [1]}),
            "layers_to_transform",
        ),
        (json!({"rank_pattern": {"q_proj": 0}}), "q_proj = 0"),
        (json!({"alpha_pattern": {"(": 1.0}}), "regular expression"),
        (json!({"exclude_modules": ["q"]}), "`q`"),
        (json!({"modules_to_save": [""]}), "modules_to_save"),
    ];
    for (settings, expected) in cases {
        let config = serde_json::from_value::<LoraConfig>(settings.clone());
        let error = config.map_err(|e| e.to_string()).and_then(|config| config.check());
        assert!(error.as_ref().is_err_and(|e| e.contains(expected)), "{settings}: {error:?}");
    }
    // A name of a block that this model lacks, and a pattern that nothing matches.
    for settings in [
        json!({"target_modules": ["model.layers.7.mlp.up_proj"]}),
        json!({"target_modules": r".*\.nothing"}),
        json!({"modules_to_save": ["score"]}),
    ] {
        let config = serde_json::from_value(settings).unwrap();
        let error = base().with_new_lora(&config, 1, &Device::flex()).unwrap_err();
        assert!(matches!(error, Error::Adapters(_)), "{error}");
    }
}

/// Initialisations that change the base weights, and what isn't plain LoRA.
#[test]
fn what_is_not_read_is_refused_by_name() {
    let cases = [
        ("init_lora_weights", json!("pissa_niter_4")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("loftq")),
        ("trainable_token_indices", json!([1])),
        ("target_parameters", json!(["x"])),
        ("lora_bias", json!(true)),
        ("layer_replication", json!([[0, 1]])),
        ("alora_invocation_tokens", json!([1])),
        ("bias", json!("all")),
        ("modules_to_save", json!(3)),
    ];
    for (key, value) in cases {
        let folder = tempfile::tempdir().unwrap();
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(fixture("adapters/layers").join(name), folder.path().join(name)).unwrap();
        }
        let path = folder.path().join("adapter_config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(&path, config.to_string()).unwrap();
        let error = adapter::load(&base(), folder.path(), &Device::flex()).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}
