//! With the policy's and the reference's embedding tables in parts: the steps, and the whole training, of those with whole tables.

use std::{fs, path::PathBuf};

use burn::{
    module::{Param, ParamId},
    tensor::{DType, Device},
};
use fpo_config::{OptimizerKind, OptimizerSettings, Schedule, Settings};
use fpo_data::PairBatch;
use fpo_device::progress::Reporter;
use fpo_losses::{Method, Objective};
use fpo_trainer::{
    aligner::Aligner,
    alignment_step::step_gradients,
    forward::Keep,
    optim::StepGradients,
    run::Workspace,
    trained::{Initial, Trained},
    training::{Frame, StepResult, Training},
};
use fpo_transformer::{
    LanguageModel, Placement,
    weights::{self, stored_name},
};
use serde_json::Map;

use crate::world::{World, cast, logged_losses, numbers, objectives, trained};

/// The same model, its table of 31 rows in parts of these.
pub fn in_parts(model: &LanguageModel, sizes: &[usize]) -> LanguageModel {
    let mut model = model.clone();
    let table = model.unembedding().joined();
    let parts = table.split_with_sizes(sizes.to_vec(), 0).into_iter();
    let mut parts = parts.map(|part| Param::initialized(ParamId::new(), part));
    let embedding = &mut model.model.embed_tokens;
    embedding.weight = parts.next().unwrap();
    embedding.weight_rest = parts.collect();
    model
}

/// By name in a checkpoint, in order.
fn joined(gradients: &StepGradients) -> Vec<(String, Vec<f64>)> {
    let mut found: Vec<(String, Vec<f64>)> = Vec::new();
    for (path, gradient) in gradients.iter() {
        let (name, values) = (stored_name(path), numbers(gradient.clone()));
        match found.last_mut() {
            Some((last, all)) if last == name => all.extend(values),
            _ => found.push((name.to_owned(), values)),
        }
    }
    found
}

fn differ(a: &StepGradients, b: &StepGradients) -> f64 {
    let (mut difference, mut largest) = (0.0_f64, 0.0_f64);
    let (a, b) = (joined(a), joined(b));
    assert_eq!(a.len(), b.len());
    for ((name, a), (other, b)) in a.into_iter().zip(b) {
        assert_eq!((&name, a.len()), (&other, b.len()));
        for (a, b) in a.into_iter().zip(b) {
            difference = difference.max((a - b).abs());
            largest = largest.max(b.abs());
        }
    }
    assert!(largest > 0.0, "no gradient at all");
    difference / largest
}

/// Every method with every option; the reference in other parts than the policy.
#[test]
fn a_step_with_tables_in_parts_is_the_step() {
    let world = World::new();
    let batch = world.all();
    for (dtype, tolerance) in [(DType::F64, 1e-10), (DType::F32, 1e-5)] {
        let policy = cast(&world.policy, dtype);
        for objective in objectives() {
            let aligner = Aligner { token_statistics: true, ..world.aligner(objective, dtype) };
            let batches = std::slice::from_ref(&batch);
            let (expected, log) =
                step_gradients(&aligner, &trained(&policy), batches, StepGradients::default())
                    .unwrap();
            let losses = logged_losses(&log);
            for (sizes, reference, keep) in [
                (&[30, 1][..], &[31][..], Keep::All),
                (&[1, 9, 21], &[16, 15], Keep::BlockInputs),
                (&[7, 8, 15, 1], &[1, 1, 28, 1], Keep::All),
            ] {
                let aligner = Aligner {
                    keep,
                    reference_model: aligner
                        .reference_model
                        .as_ref()
                        .map(|m| in_parts(m, reference)),
                    token_statistics: true,
                    ..world.aligner(objective, dtype)
                };
                let policy = trained(&in_parts(&policy, sizes));
                let (found, log) =
                    step_gradients(&aligner, &policy, batches, StepGradients::default()).unwrap();
                let difference = differ(&found, &expected);
                assert!(difference < tolerance, "{objective:?}, {sizes:?}: {difference}");
                for (a, b) in logged_losses(&log).iter().zip(&losses) {
                    assert!((a - b).abs() < tolerance * (1.0 + b.abs()), "{objective:?}: {a}, {b}");
                }
            }
        }
    }
}

/// Bytes of a tensor that cut the table into rows of 16 and 15, and no other parameter.
const TWO_PARTS: usize = 800;

/// A training of five steps, which breaks off in the fourth where asked, and the exported weights.
struct Run {
    folder: tempfile::TempDir,
    world: World,
}

impl Run {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), world: World::new() }
    }

    fn go(&self, largest_tensor: Option<usize>, breaks_off: bool) -> Option<Vec<u8>> {
        let device = Device::flex().autodiff();
        let placement = Placement { largest_tensor, ..Placement::from(&device) };
        let [output, checkpoints] =
            ["output", "checkpoints"].map(|name| self.folder.path().join(name));
        fs::create_dir_all(&output).unwrap();
        fs::create_dir_all(&checkpoints).unwrap();
        let optimizer = OptimizerSettings {
            kind: OptimizerKind::Adamw,
            learning_rate: 1e-3,
            warmup_steps: 0,
            schedule: Schedule::Constant,
            weight_decay: 0.1,
            max_grad_norm: 1.0,
            warmup_ratio: None,
            betas: [0.9, 0.999],
        };
        let initial = self.folder.path().join("initial");
        if !initial.exists() {
            fs::create_dir(&initial).unwrap();
            weights::save(&self.world.policy, &initial).unwrap();
        }
        let settings = Settings::resolve("tiny", None, &[]).unwrap().model;
        let all = Trained::new(&settings, Initial::Folder(initial), None, &placement).unwrap();
        let workspace = Workspace::new(output.clone(), checkpoints, Reporter::silent());
        let mut training = Training::start(Frame {
            stage: "test",
            workspace: &workspace,
            total_steps: 5,
            checkpoint_every: 2,
            optimizer: &optimizer,
            trained: &all,
            placement: &placement,
            seed: 0,
            track: (&[], PathBuf::new()),
            evaluation: None,
            keep_last: None,
        })
        .unwrap();
        let aligner = self.world.aligner(Objective::paper(Method::FPO), DType::F32);
        while let Some(step) = training.next_step() {
            if breaks_off && step == 3 {
                return None;
            }
            let model = training.model();
            let parts = if largest_tensor.is_some() { 2 } else { 1 };
            assert_eq!(model.unembedding().parts().len(), parts, "step {step}");
            let batch: PairBatch = self.world.batch(&[step, step + 1]);
            let (gradients, pairs) =
                step_gradients(&aligner, model, &[batch], StepGradients::default()).unwrap();
            let loss = logged_losses(&pairs).iter().sum::<f64>() / 2.0;
            let step = StepResult { loss, tokens: 1, ids: vec![], metrics: Map::new() };
            training.apply(gradients, || step).unwrap();
        }
        let model = training.finish().unwrap();
        all.finish(&model, &output, drop).unwrap();
        Some(fs::read(output.join("model.safetensors")).unwrap())
    }
}

#[test]
fn a_training_goes_on_with_other_parts() {
    let resumed = |first, then| {
        let run = Run::new();
        assert!(run.go(first, true).is_none());
        run.go(then, false).unwrap()
    };
    let whole = Run::new().go(None, false).unwrap();
    let in_parts = Run::new().go(Some(TWO_PARTS), false).unwrap();
    // To the bit where nothing changes.
    assert!(resumed(None, None) == whole);
    assert!(resumed(Some(TWO_PARTS), Some(TWO_PARTS)) == in_parts);
    // The header, then float32; Adam takes whole steps (1e-3) from gradients of next to nothing.
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let values = |file: &[u8]| -> Vec<f32> {
        file[header..].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let expected = values(&whole);
    for (what, found) in [
        ("in parts", in_parts),
        ("cut on the way", resumed(None, Some(TWO_PARTS))),
        ("joined on the way", resumed(Some(TWO_PARTS), None)),
    ] {
        assert!(found[..header] == whole[..header], "{what}");
        let pairs = values(&found).into_iter().zip(&expected);
        let apart = pairs.filter(|(a, b)| (a - **b).abs() > 1e-5).count();
        assert!(apart * 100 < expected.len(), "{what}: {apart} of {} differ", expected.len());
    }
}
