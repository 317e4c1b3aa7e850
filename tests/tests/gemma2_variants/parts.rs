//! With the embedding table in parts, and a head of its own too, as on devices that take no tensor of its size: the model with the
//! tables whole.

use std::{collections::BTreeMap, fs, path::Path};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Int, Tensor, TensorData},
};
use fpo_config::{OptimizerKind, OptimizerSettings, Schedule};
use fpo_trainer::optim::{Optimizer, StepGradients};
use fpo_transformer::{
    Error, GenerationOptions, LanguageModel, LoraConfig, ModelConfig, Placement, Precision, Sizes,
    generate, weights,
};

use crate::common::{difference, padded, text, values};

const VOCABULARY: usize = 403;
const D_MODEL: usize = 13;
/// Bytes of a tensor, and in how many parts the table then is.
const LIMITS: [(usize, usize); 4] =
    [(20_956, 1), (20_955, 2), (135 * 4 * D_MODEL, 3), (101 * 4 * D_MODEL + 3, 4)];

fn config() -> ModelConfig {
    let config = format!(
        r#"{{"model_type": "gemma2", "vocab_size": {VOCABULARY}, "hidden_size": {D_MODEL},
            "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 6, "query_pre_attn_scalar": 6, "sliding_window": 4,
            "initializer_range": 0.3, "max_position_embeddings": 64}}"#
    );
    ModelConfig::from_json(&config).unwrap()
}

/// A model whose head is a table of its own.
fn untied() -> ModelConfig {
    let config = format!(
        r#"{{"model_type": "llama", "vocab_size": {VOCABULARY}, "hidden_size": {D_MODEL},
            "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 6, "initializer_range": 0.3,
            "max_position_embeddings": 64}}"#
    );
    ModelConfig::from_json(&config).unwrap()
}

fn placement(largest_tensor: Option<usize>, device: Device) -> Placement {
    Placement { largest_tensor, ..Placement::from(&device) }
}

/// The same weights, whole or in parts.
fn model(config: &ModelConfig, largest_tensor: Option<usize>, device: Device) -> LanguageModel {
    weights::random(config, 3, placement(largest_tensor, device)).unwrap()
}

/// The model whole, and in each number of parts.
fn models(
    config: &ModelConfig,
    device: &Device,
) -> (LanguageModel, impl Iterator<Item = (usize, LanguageModel)> + use<>) {
    let (config, device) = (config.clone(), device.clone());
    let whole = model(&config, None, device.clone());
    let in_parts = LIMITS
        .into_iter()
        .map(move |(limit, parts)| (parts, model(&config, Some(limit), device.clone())));
    (whole, in_parts)
}

#[test]
fn the_table_is_cut_where_it_must_be() {
    for config in [config(), untied()] {
        let (whole, in_parts) = models(&config, &Device::flex());
        for (parts, model) in in_parts {
            let rows = model.unembedding();
            assert_eq!(rows.parts().len(), parts);
            for part in rows.parts() {
                assert!(part.dims()[0] * 4 * D_MODEL <= LIMITS[parts - 1].0, "{:?}", part.dims());
            }
            assert!(rows.joined().to_data() == whole.unembedding().joined().to_data());
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let refused = |largest| {
        let found = weights::random(&config(), 3, placement(Some(largest), Device::flex()));
        let error = found.map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        error.to_string()
    };
    let message = refused(100 * 4 * D_MODEL);
    assert!(
        message.contains("model.embed_tokens.weight") && message.contains("20956"),
        "{message}"
    );
    assert!(message.contains("5200") && message.contains("4 parts"), "{message}");
    let mut config = config();
    config.sizes.vocab_size = 4;
    let found = weights::random(&config, 3, placement(Some(300), Device::flex()));
    let message = found.map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("model.layers.0.self_attn.q_proj.weight"), "{message}");
    assert!(message.contains("1248") && !message.contains("parts"), "{message}");
}

/// Looking rows up is exact, and so is all before the head; the head's sums are in another order.
#[test]
fn hidden_states_logits_and_answers() {
    let rows = [text(1, 17), text(2, 9), vec![402, 0, 401, 202, 201, 100, 101, 302, 303]];
    let prompts = [vec![2, 40, 399], vec![2, 9, 361, 30, 5], vec![402]];
    let options = GenerationOptions { max_new_tokens: 20, ..Default::default() };
    for config in [config(), untied()] {
        let (whole, in_parts) = models(&config, &Device::flex());
        let tokens = padded(&rows, &whole.device());
        let hidden = whole.forward(tokens.clone(), &[]).hidden_states;
        let flat = |x: Tensor<3>| x.flatten::<2>(0, 1);
        let logits = values(whole.logits(flat(hidden.clone())));
        let answers = generate(&whole, &prompts, &options).unwrap();
        assert!(answers.iter().any(|answer| answer.tokens.len() > 10), "nothing to compare");
        for (parts, model) in in_parts {
            let found = model.forward(tokens.clone(), &[]).hidden_states;
            assert!(found.to_data() == hidden.to_data(), "{parts} parts");
            let apart = difference(&values(model.logits(flat(found))), &logits);
            assert!(apart < 1e-6, "{parts} parts: logits differ by {apart}");
            let found = generate(&model, &prompts, &options).unwrap();
            for (found, expected) in found.iter().zip(&answers) {
                assert_eq!(found.tokens, expected.tokens, "{parts} parts");
            }
        }
    }
}

/// The gradients of a loss by the names of a checkpoint: those of a table's parts one after the other.
fn gradients(
    model: &LanguageModel,
    checkpointed: bool,
) -> (StepGradients, BTreeMap<String, Vec<f32>>) {
    let rows =
        [text(5, 14), vec![402, 0, 401, 202, 201, 100, 101, 302, 303, 134, 135, 269, 270, 7]];
    let tokens = padded(&rows, &model.device());
    let targets: Vec<i32> = rows.iter().flatten().rev().map(|&id| id as i32).collect();
    let targets = TensorData::new(targets, [28]);
    let targets = Tensor::<1, Int>::from_data(targets, &model.device());
    let (output, tape) = match checkpointed {
        false => (model.forward(tokens, &[]), None),
        true => {
            let (output, tape) = model.forward_checkpointed(tokens, &[]);
            (output, Some(tape))
        }
    };
    let hidden = output.hidden_states.flatten::<2>(0, 1);
    let loss = -fpo_ops::linear_log_probs(hidden, model.unembedding(), targets, Some(30.0)).mean();
    let map = StepGradients::of(&loss, model, tape);
    let mut found: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (path, gradient) in map.iter() {
        let name = weights::stored_name(path).to_owned();
        found.entry(name).or_default().extend(values(gradient.clone()));
    }
    (map, found)
}

#[test]
fn gradients_of_every_parameter() {
    for (config, checkpointed) in
        [(config(), false), (config(), true), (untied(), false), (untied(), true)]
    {
        let (whole, in_parts) = models(&config, &Device::flex().autodiff());
        let (_, expected) = gradients(&whole, checkpointed);
        for (parts, model) in in_parts {
            let (map, found) = gradients(&model, checkpointed);
            let of_table = map.iter().filter(|(path, _)| path.contains("embed_tokens"));
            assert_eq!(of_table.count(), parts);
            let of_head = map.iter().filter(|(path, _)| path.contains("lm_head"));
            assert_eq!(of_head.count(), if config.tie_word_embeddings { 0 } else { parts });
            assert!(found.keys().eq(expected.keys()));
            for (name, expected) in &expected {
                let apart = difference(&found[name], expected);
                assert!(apart < 2e-6, "{parts} parts, {checkpointed}: {name} differs by {apart}");
            }
        }
    }
}

fn optimizer() -> Optimizer {
    let settings = OptimizerSettings {
        kind: OptimizerKind::Adamw,
        learning_rate: 1e-2,
        warmup_steps: 0,
        schedule: Schedule::Constant,
        weight_decay: 0.1,
        max_grad_norm: 1.0,
        warmup_ratio: None,
        betas: [0.9, 0.999],
    };
    Optimizer::new(&settings, 10)
}

fn saved(model: &LanguageModel) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    weights::save(model, folder.path()).unwrap();
    fs::read(folder.path().join("model.safetensors")).unwrap()
}

/// Oracle: the step of the whole model, and its files.
#[test]
fn a_step_its_files_and_the_way_on() {
    let device = Device::flex().autodiff();
    for config in [config(), untied()] {
        let (whole, in_parts) = models(&config, &device);
        let start = saved(&whole);
        let expected = stepped(whole, optimizer()).0;
        for (parts, model) in in_parts {
            assert!(saved(&model) == start, "{parts} parts are saved otherwise");
            let (moved, optimizer) = stepped(model, optimizer());
            let apart = named(&moved, &expected).filter(|(a, b)| (a - b).abs() > 1e-5).count();
            // A gradient of next to nothing moves a weight by a whole step in either direction.
            assert!(apart < 20, "{parts} parts: {apart} weights differ after a step");

            let folder = tempfile::tempdir().unwrap();
            weights::save(&moved, folder.path()).unwrap();
            let moments = folder.path().join("moments");
            optimizer.save(&moments).unwrap();
            // Read in any number of parts, the files are the same again, and so is the next step.
            let (next, _) = stepped(moved.clone(), optimizer);
            for (limit, other) in LIMITS {
                let place = placement(Some(limit), device.clone());
                let read = weights::load(folder.path(), place).unwrap();
                assert_eq!(read.unembedding().parts().len(), other);
                assert!(saved(&read) == saved(&moved), "{parts} parts read as {other}");
                let restored = restored(&moments, &read);
                let again = folder.path().join("again");
                restored.save(&again).unwrap();
                assert!(fs::read(&again).unwrap() == fs::read(&moments).unwrap());
                let (found, _) = stepped(read, restored);
                let apart = named(&found, &next).filter(|(a, b)| (a - b).abs() > 1e-5).count();
                assert!(apart < 20, "{parts} parts, on with {other}: {apart} weights differ");
            }
        }
    }
}

fn restored(path: &Path, model: &LanguageModel) -> Optimizer {
    let mut optimizer = optimizer();
    optimizer.restore(path, 1, model).unwrap();
    optimizer
}

fn stepped(model: LanguageModel, mut optimizer: Optimizer) -> (LanguageModel, Optimizer) {
    let (gradients, _) = gradients(&model, false);
    let (moved, _) = optimizer.step(model, gradients);
    (moved, optimizer)
}

/// The weights of both side by side.
fn named(a: &LanguageModel, b: &LanguageModel) -> impl Iterator<Item = (f32, f32)> {
    #[derive(Default)]
    struct Values(Vec<f32>);
    impl ModuleVisitor for Values {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.extend(values(param.val()));
        }
    }
    let [a, b] = [a, b].map(|model| {
        let mut found = Values::default();
        model.visit(&mut found);
        found.0
    });
    assert_eq!(a.len(), b.len());
    a.into_iter().zip(b)
}

/// Moments of another model are no moments of this one.
#[test]
fn other_moments_are_refused() {
    let device = Device::flex().autodiff();
    let (_, optimizer) = stepped(model(&config(), Some(LIMITS[2].0), device.clone()), optimizer());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("moments");
    optimizer.save(&path).unwrap();
    for (vocabulary, what) in
        [(VOCABULARY - 1, "does not fit"), (VOCABULARY + 1, "has no elements")]
    {
        for limit in [None, Some(101 * 4 * D_MODEL + 3)] {
            let config = config();
            let sizes = Sizes { vocab_size: vocabulary, ..config.sizes };
            let config = ModelConfig { sizes, ..config };
            let Ok(other) = weights::random(&config, 3, placement(limit, device.clone())) else {
                continue;
            };
            let error = self::optimizer().restore(&path, 1, &other).unwrap_err().to_string();
            assert!(error.contains("embed_tokens.weight") && error.contains(what), "{error}");
        }
    }
}

/// Adapters beside frozen parts: their gradients, and the merged model to the bit.
#[test]
fn adapters() {
    let device = Device::flex();
    let lora = LoraConfig { rank: 3, ..LoraConfig::default() };
    let adapted = |model: &LanguageModel| {
        let model = model.with_new_lora(&lora, 1, &device.clone().autodiff()).unwrap();
        // B begins at zero: a step makes it count.
        stepped(model, optimizer()).0
    };
    for config in [config(), untied()] {
        let (whole, in_parts) = models(&config, &device);
        let expected = adapted(&whole);
        let (_, expected_gradients) = gradients(&expected, false);
        for (parts, model) in in_parts {
            let model = adapted(&model);
            let (_, found) = gradients(&model, false);
            assert!(!found.is_empty() && found.keys().eq(expected_gradients.keys()));
            for (name, expected) in &expected_gradients {
                let apart = difference(&found[name], expected);
                assert!(apart < 1e-3, "{parts} parts: {name} differs by {apart}");
            }
            let merged = model.merged();
            assert_eq!(merged.unembedding().parts().len(), parts);
            let folder = tempfile::tempdir().unwrap();
            weights::save(&model, folder.path()).unwrap();
            let read = weights::load(folder.path(), &device).unwrap();
            assert!(named(&read, &merged).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}

/// The parts are rounded as the table is; a model that is not trained is held in bfloat16, so that its table is in fewer parts.
#[test]
fn mixed_precision() {
    let limit = LIMITS[3].0;
    for (device, parts) in [(Device::flex(), 2), (Device::flex().autodiff(), 4)] {
        let of = |largest_tensor| {
            let placement = Placement::new(device.clone(), Precision::Bf16Mixed);
            weights::random(&config(), 3, Placement { largest_tensor, ..placement }).unwrap()
        };
        let (whole, model) = (of(None), of(Some(limit)));
        assert_eq!(model.unembedding().parts().len(), parts);
        let log_probs = |model: &LanguageModel| {
            let tokens = padded(&[text(1, 30)], &device);
            let targets = tokens.clone().flip([1]).flatten::<1>(0, 1);
            let hidden = model.forward(tokens, &[]).hidden_states.flatten::<2>(0, 1);
            values(fpo_ops::linear_log_probs(hidden, model.unembedding(), targets, Some(30.0)))
        };
        let apart = difference(&log_probs(&model), &log_probs(&whole));
        assert!(apart < 1e-6, "log-probabilities differ by {apart}");
        if device.is_autodiff() {
            // Every block's product is rounded to bfloat16, and the parts are other blocks: as near to float32 as the whole.
            let (_, exact) = gradients(&self::model(&config(), None, device.clone()), false);
            let error = |model: &LanguageModel| {
                let (_, found) = gradients(model, true);
                assert!(found.keys().eq(exact.keys()));
                let pairs = found.values().flatten().zip(exact.values().flatten());
                let squares = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
                let norm = exact.values().flatten().map(|x| f64::from(*x).powi(2)).sum::<f64>();
                (squares / norm).sqrt()
            };
            let (in_parts, whole) = (error(&model), error(&whole));
            println!("gradients are {in_parts:.4} from float32's, with the table whole {whole:.4}");
            assert!(in_parts < 1.3 * whole && whole < 0.06, "{in_parts}, whole {whole}");
        }
        assert!(saved(&model) == saved(&whole));
    }
}

/// A table in parts that is missing is missing once.
#[test]
fn problems_are_told_once() {
    let folder = tempfile::tempdir().unwrap();
    weights::save(&model(&config(), None, Device::flex()), folder.path()).unwrap();
    let config = folder.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("403", "404")).unwrap();
    let place = placement(Some(LIMITS[2].0 + 4 * D_MODEL), Device::flex());
    match weights::load(folder.path(), place).map(|_| ()).unwrap_err() {
        Error::Weights { problems, .. } => {
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains("model.embed_tokens.weight"), "{problems:?}");
        }
        error => panic!("{error}"),
    }
}
