//! A model, its features, the loss, the gradient of every parameter, one step of the optimiser; and an autoencoder's training.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Int, Tensor, TensorData},
};
use fpo_config::{OptimizerKind, OptimizerSettings, Schedule};
use fpo_data::{PairBatch, Pooling, TokenizedPair, TokenizedResponse};
use fpo_interp::reader::FeatureReader;
use fpo_losses::{PerResponse, feature_distance, fpo, mean_loss};
use fpo_ops::{Activation, Encoder, Normalization};
use fpo_plan::check_precision;
use fpo_sae::{Provenance, Sae, SaeTrainer, SaeTraining};
use fpo_trainer::{
    forward::{DeviceBatch, Forward},
    optim::{Optimizer, StepGradients},
};
use fpo_transformer::{LanguageModel, ModelConfig, Placement, Precision, Site, weights};

use crate::support::{close, devices, random, tolerance, values};

const D_MODEL: usize = 16;
const D_SAE: usize = 48;

fn model(placement: impl Into<Placement>) -> LanguageModel {
    let config = ModelConfig::from_json(
        r#"{"model_type": "gemma2", "vocab_size": 90, "hidden_size": 16, "intermediate_size": 40,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
            "query_pre_attn_scalar": 6, "sliding_window": 4, "initializer_range": 0.25}"#,
    );
    weights::random(&config.unwrap(), 1, placement).unwrap()
}

fn sae(device: &Device) -> Sae {
    let vector = |seed, scale| random(seed, [1, D_SAE], scale, device).squeeze_dim::<1>(0);
    Sae {
        encoder: Encoder {
            normalization: Normalization::None,
            w_enc: random(31, [D_MODEL, D_SAE], 1.0, device),
            b_enc: vector(32, 0.1),
            activation: Activation::JumpRelu { threshold: vector(33, 0.2).abs() },
        },
        w_dec: random(34, [D_SAE, D_MODEL], 1.0, device),
        b_dec: random(35, [1, D_MODEL], 0.1, device).squeeze_dim(0),
        provenance: Provenance::default(),
    }
}

/// Pairs of unequal lengths.
fn batch() -> PairBatch {
    let response = |seed: u32, prompt_len: usize, len: usize| TokenizedResponse {
        tokens: (0..len as u32).map(|i| (seed * 31 + i * 17) % 90).collect(),
        prompt_len,
    };
    let pairs =
        [(0, 3, 9, 7), (1, 2, 5, 12), (2, 6, 8, 8)].map(|(id, prompt, chosen, rejected)| {
            let seed = id as u32;
            TokenizedPair {
                id,
                chosen: response(seed, prompt, chosen),
                rejected: response(seed + 9, prompt, rejected),
            }
        });
    PairBatch::new(&pairs.each_ref().map(TokenizedPair::view)).unwrap()
}

fn settings(kind: OptimizerKind, max_grad_norm: f64) -> OptimizerSettings {
    OptimizerSettings {
        kind,
        learning_rate: 1e-2,
        warmup_steps: 0,
        schedule: Schedule::Constant,
        weight_decay: 0.1,
        max_grad_norm,
        warmup_ratio: None,
        betas: [0.9, 0.999],
    }
}

/// What a step leaves behind.
struct Step {
    forward: [Vec<f64>; 5],
    gradients: BTreeMap<String, Vec<f64>>,
    parameters: BTreeMap<String, Vec<f64>>,
}

impl Step {
    fn new(device: Device, precision: Precision, kind: OptimizerKind) -> Self {
        let placement = Placement::new(device.clone().autodiff(), precision);
        let (policy, sae, batch) = (model(placement), sae(&device), batch());
        let device_batch = DeviceBatch::new(&batch.batch, &policy.device());
        let reader =
            FeatureReader::new(Pooling::Predicting, vec![]).with(&sae, Site::resid_post(1));
        let forward = Forward::new(&policy, &batch.batch, &device_batch, Some(&reader));
        let log_probs = PerResponse::split(device_batch.sum_by_row(forward.token_log_probs()));
        let pooled = forward.pooled[0].clone();
        let reference = random(41, pooled.dims(), 0.5, &policy.device()).abs();
        let distance = PerResponse::split(feature_distance(pooled.clone(), reference, 9, None));
        let of_reference = log_probs.clone().map(|x| x.inner().autodiff() * 0.9);
        let preference = fpo(log_probs.clone(), of_reference, distance.clone(), 0.1, 0.5, true);
        let loss = mean_loss(preference);
        let gradients = StepGradients::of(&loss, &policy, None);
        let found = BTreeMap::from_iter(
            gradients.iter().map(|(name, gradient)| (name.to_owned(), values(gradient))),
        );
        let (moved, _) = Optimizer::new(&settings(kind, 1.0), 10).step(policy, gradients);
        let numbers = [
            values(&log_probs.chosen),
            values(&log_probs.rejected),
            values(&pooled),
            values(&distance.chosen),
            values(&loss),
        ];
        Self { forward: numbers, gradients: found, parameters: parameters(&moved) }
    }

    /// Fails where forward pass or gradients differ by more than `tolerance`.
    fn assert_close(&self, expected: &Self, tolerance: f64) {
        for (i, (found, expected)) in self.forward.iter().zip(&expected.forward).enumerate() {
            close(&format!("number {i} of the forward pass"), found, expected, tolerance);
        }
        let (found, expected) = (&self.gradients, &expected.gradients);
        assert!(found.len() > 30 && found.keys().eq(expected.keys()));
        for (name, found) in found {
            close(&format!("gradient of {name}"), found, &expected[name], tolerance);
        }
    }
}

#[test]
fn a_step_of_alignment() {
    let Some(devices) = devices() else { return };
    for kind in [OptimizerKind::Adamw, OptimizerKind::Rmsprop] {
        let [expected, found] =
            devices.clone().map(|device| Step::new(device, Precision::Float32, kind));
        found.assert_close(&expected, tolerance());
        for (name, found) in &found.parameters {
            // A gradient near zero moves a weight by a whole step in either direction: its sign is noise.
            let expected = &expected.parameters[name];
            let apart = found.iter().zip(expected).filter(|(f, e)| (*f - *e).abs() > 1e-4).count();
            let all = found.len();
            assert!(apart * 200 <= all, "{kind:?}, {name}: {apart} of {all} weights differ");
        }
    }
}

/// The table in three parts on the device, whole on Flex.
#[test]
fn an_embedding_table_in_parts() {
    let Some([flex, gpu]) = devices() else { return };
    let limits = [(flex, None, 1), (gpu, Some(2560), 3)];
    let [expected, found] = limits.map(|(device, largest_tensor, parts)| {
        let place = |device: &Device| Placement { largest_tensor, ..Placement::from(device) };
        let policy = model(place(&device.clone().autodiff()));
        assert_eq!(policy.unembedding().parts().len(), parts);
        let batch = batch();
        let device_batch = DeviceBatch::new(&batch.batch, &policy.device());
        let forward = Forward::new(&policy, &batch.batch, &device_batch, None);
        let log_probs = device_batch.sum_by_row(forward.token_log_probs());
        let gradients = StepGradients::of(&log_probs.clone().sum(), &policy, None);
        let mut of_table = Vec::new();
        for (path, gradient) in gradients.iter().filter(|(path, _)| path.contains("embed_tokens")) {
            assert_eq!(weights::stored_name(path), "model.embed_tokens.weight");
            of_table.extend(values(gradient));
        }
        let options =
            fpo_transformer::GenerationOptions { max_new_tokens: 12, ..Default::default() };
        let prompts = [vec![2, 40, 7], vec![2, 89, 61, 30, 5]];
        let answers =
            fpo_transformer::generate(&model(place(&device)), &prompts, &options).unwrap();
        let answers: Vec<_> = answers.into_iter().map(|answer| answer.tokens).collect();
        (values(&log_probs), of_table, answers)
    });
    close("log-probabilities", &found.0, &expected.0, tolerance());
    close("gradient of the table", &found.1, &expected.1, tolerance());
    assert_eq!(found.2, expected.2);
}

/// What the device says of itself.
#[test]
fn the_largest_tensor() {
    let Some([flex, gpu]) = devices() else { return };
    assert_eq!(fpo_ops::largest_tensor(&flex), None);
    let limit = fpo_ops::largest_tensor(&gpu).expect("a GPU holds tensors of a limited size");
    assert_eq!(fpo_ops::largest_tensor(&gpu.autodiff()), Some(limit));
    assert!(limit >= 1 << 26, "{limit}");
}

/// Two roundings of the same numbers, or a refusal that says what is refused.
#[test]
fn a_step_in_mixed_precision() {
    let Some(devices) = devices() else { return };
    let precision = Precision::Bf16Mixed;
    if let Err(error) = check_precision(&devices[1], precision) {
        let message = error.to_string();
        assert!(message.contains("bf16-mixed") && message.contains("bfloat16"), "{message}");
        eprintln!("skipped: {message}");
        return;
    }
    let [expected, found] =
        devices.map(|device| Step::new(device, precision, OptimizerKind::Adamw));
    found.assert_close(&expected, 0.1);
}

#[test]
fn cached_generation() {
    let Some(devices) = devices() else { return };
    let [expected, found] = devices.map(|device| {
        let options =
            fpo_transformer::GenerationOptions { max_new_tokens: 12, ..Default::default() };
        let prompts = [vec![2, 40, 7], vec![2, 9, 61, 30, 5]];
        let answers = fpo_transformer::generate(&model(&device), &prompts, &options).unwrap();
        answers.into_iter().map(|answer| answer.tokens).collect::<Vec<_>>()
    });
    assert_eq!(found, expected);
}

#[test]
fn recomputed_activations() {
    let Some([_, device]) = devices() else { return };
    let policy = model(&device.autodiff());
    let tokens: Vec<i32> = (0..12).map(|i| i * 7 % 90).collect();
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(tokens, [2, 6]), &policy.device());
    let loss = |hidden: Tensor<3>| hidden.square().sum();
    let plain =
        StepGradients::of(&loss(policy.forward(tokens.clone(), &[]).hidden_states), &policy, None);
    let (output, tape) = policy.forward_checkpointed(tokens, &[]);
    let recomputed = StepGradients::of(&loss(output.hidden_states), &policy, Some(tape));
    for ((name, found), (_, expected)) in recomputed.iter().zip(plain.iter()) {
        close(name, &values(found), &values(expected), tolerance());
    }
}

/// Oracle: the steps of an optimiser that has all gradients first, on the same device.
#[test]
fn the_optimiser_within_the_backward_pass() {
    let Some([_, device]) = devices() else { return };
    let device = device.autodiff();
    let tokens: Vec<i32> = (0..12).map(|i| i * 7 % 90).collect();
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(tokens, [2, 6]), &device);
    for largest in [0.0, 0.1, 1e6] {
        let steps = |wait| {
            let mut policy = model(&device);
            let settings = settings(OptimizerKind::Adamw, largest);
            let mut optimizer = Optimizer::new(&settings, 10);
            let mut norms = Vec::new();
            for _ in 0..2 {
                let (output, tape) = policy.forward_checkpointed(tokens.clone(), &[]);
                let loss = output.hidden_states.square().mean();
                let mut gradients = StepGradients::new(wait);
                gradients.add_of(&loss, &policy, Some(tape));
                let (moved, info) = optimizer.step(policy, gradients);
                norms.push(info.grad_norm());
                policy = moved;
            }
            (norms, parameters(&policy))
        };
        let ((norms, expected), (found_norms, found)) = (steps(false), steps(true));
        close(&format!("norms, {largest}"), &found_norms, &norms, tolerance());
        assert!(norms[0] > 0.1, "nothing is clipped: {norms:?}");
        for (name, expected) in expected {
            let apart = found[&name].iter().zip(&expected).filter(|(f, e)| (*f - *e).abs() > 1e-4);
            let (apart, all) = (apart.count(), expected.len());
            assert!(apart * 200 <= all, "{largest}, {name}: {apart} of {all} weights differ");
        }
    }
}

#[test]
fn an_autoencoder_and_its_training() {
    let Some(devices) = devices() else { return };
    let [expected, found] = devices.map(|device| {
        let x = random(51, [64, D_MODEL], 1.0, &device);
        let sae = sae(&device);
        let features = sae.encode(x.clone());
        let decoded = sae.decode(features.clone(), x.clone());
        let settings: SaeTraining = serde_json::from_value(serde_json::json!({
            "d_sae": D_SAE, "target_l0": 4.0, "sparsity": 1.0, "sparsity_warmup": 2, "learning_rate": 1e-3,
            "warmup": 2, "bandwidth": 0.05, "initial_threshold": 0.01, "batch_tokens": 64, "steps": 6,
        }))
        .unwrap();
        let mut trainer = SaeTrainer::new(&settings, x.clone(), 0, &device).unwrap();
        let errors: Vec<f64> = (0..6).map(|_| f64::from(trainer.step(x.clone()).mse)).collect();
        [values(&features), values(&decoded), errors]
    });
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        // The last are errors during a training, in which differences grow.
        close(
            &format!("autoencoder {i}"),
            found,
            expected,
            if i == 2 { 10.0 * tolerance() } else { tolerance() },
        );
    }
}

fn parameters(model: &LanguageModel) -> BTreeMap<String, Vec<f64>> {
    #[derive(Default)]
    struct Collect(Vec<String>, BTreeMap<String, Vec<f64>>);
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.insert(self.0.join("."), values(&param.val()));
        }
    }
    let mut collect = Collect::default();
    model.visit(&mut collect);
    collect.1
}
