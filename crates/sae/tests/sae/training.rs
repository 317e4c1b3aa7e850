//! Training against data whose structure is known, and its checkpoints.

use std::fs;

use burn::tensor::{Device, Tensor};
use fpo_sae::{
    Compute, InitialThreshold, Kind, Penalty, Provenance, QualityMeter, SaeTrainer, SaeTraining,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::support::{tensor, threshold, to_vec};

/// Inputs are sparse sums of more known directions than they have dimensions. Training must reach the target L0, explain the inputs
/// and recover the directions.
#[test]
fn training_finds_known_structure() {
    find_known_structure(Compute::Float32, 3);
}

/// The same with matrix products in bfloat16.
#[test]
fn training_in_half_precision_finds_known_structure() {
    find_known_structure(Compute::Bfloat16, 1);
}

fn find_known_structure(compute: Compute, seeds: u64) {
    let (d_in, truth, active) = (32, 48, 3);
    let settings = SaeTraining {
        d_sae: 64,
        target_l0: active as f64,
        sparsity: 0.3,
        sparsity_warmup: 500,
        warmup: 50,
        revive: 0.0,
        compute,
        batch_tokens: 512,
        steps: 2500,
        ..small_training(Penalty::TargetL0)
    };
    for seed in 0..seeds {
        let mut rng = ChaCha8Rng::seed_from_u64(7 + seed);
        let directions = unit_rows(&mut rng, truth, d_in);
        let mut sample = |tokens: usize| sparse_sums(&mut rng, tokens, &directions, d_in, active);
        let mut trainer = SaeTrainer::new(&settings, sample(2048), seed, &Device::flex()).unwrap();
        for _ in 0..settings.steps {
            trainer.step(sample(settings.batch_tokens));
        }
        let sae = trainer.finish(Provenance::default());
        let mut meter = QualityMeter::new(d_in, settings.d_sae);
        meter.add(&sae, sample(4096));
        let quality = meter.quality().unwrap();
        let decoder = to_vec(sae.w_dec);
        let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let is_found =
            |direction: &&[f32]| decoder.chunks_exact(d_in).any(|row| cosine(row, direction) > 0.9);
        let found = directions.chunks_exact(d_in).filter(is_found).count();
        println!("seed {seed}: {quality:?}, {found} of {truth} directions");
        assert!((quality.l0 / active as f64 - 1.0).abs() < 0.1, "{quality:?}");
        assert!(quality.explained_variance > 0.9, "{quality:?}");
        assert!(found * 10 >= truth * 8, "{found} of {truth} directions");
    }
}

/// Directions of unit norm, `[count, width]`.
fn unit_rows(rng: &mut ChaCha8Rng, count: usize, width: usize) -> Vec<f32> {
    // The sum of twelve uniform values minus six is close enough to a normal value for a direction.
    let mut normal = || (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
    let mut rows: Vec<f32> = (0..count * width).map(|_| normal()).collect();
    for row in rows.chunks_exact_mut(width) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
    }
    rows
}

/// Each row is a sum of `active` random directions, with lengths between 5 and 10; `[tokens, d_in]`.
fn sparse_sums(
    rng: &mut ChaCha8Rng,
    tokens: usize,
    directions: &[f32],
    d_in: usize,
    active: usize,
) -> Tensor<2> {
    let mut x = vec![0f32; tokens * d_in];
    for row in x.chunks_exact_mut(d_in) {
        for _ in 0..active {
            let which = rng.random_range(0..directions.len() / d_in);
            let size = 5.0 * (1.0 + rng.random::<f32>());
            let direction = &directions[which * d_in..][..d_in];
            row.iter_mut().zip(direction).for_each(|(x, d)| *x += size * d);
        }
    }
    tensor(&x, [tokens, d_in])
}

/// Sparse sums of 32 directions in 16 dimensions.
fn structured(seed: u64, tokens: usize) -> Tensor<2> {
    let directions = unit_rows(&mut ChaCha8Rng::seed_from_u64(1), 32, 16);
    sparse_sums(&mut ChaCha8Rng::seed_from_u64(seed), tokens, &directions, 16, 3)
}

fn small_training(penalty: Penalty) -> SaeTraining {
    SaeTraining {
        d_sae: 48,
        activation: Kind::JumpRelu,
        penalty,
        target_l0: 4.0,
        tanh_scale: 4.0,
        sparsity: 0.02,
        sparsity_warmup: 20,
        learning_rate: 3e-3,
        bias_rate: 1.0,
        warmup: 10,
        bandwidth: 0.1,
        initial_threshold: InitialThreshold::At(0.05),
        revive: 0.01,
        dead_after: 5,
        compute: Compute::Float32,
        batch_tokens: 128,
        steps: 60,
    }
}

/// Oracle: the activations counted in the first step, on other tokens than those that the threshold was chosen by.
#[test]
fn an_automatic_threshold_starts_at_three_times_the_target() {
    for target_l0 in [0.5, 4.0, 7.0] {
        let settings = SaeTraining {
            target_l0,
            initial_threshold: InitialThreshold::Auto,
            ..small_training(Penalty::TargetL0)
        };
        let device = Device::flex();
        let mut trainer = SaeTrainer::new(&settings, structured(1, 4096), 0, &device).unwrap();
        let first = trainer.step(structured(2, 4096));
        println!("{first:?}");
        assert!((first.l0 / (3.0 * target_l0) - 1.0).abs() < 0.05, "{target_l0}: {first:?}");
    }
}

#[test]
fn the_initial_threshold_is_a_number_or_auto() {
    let read = |text: &str| serde_json::from_str::<InitialThreshold>(text);
    for (text, expected) in [
        ("0.05", InitialThreshold::At(0.05)),
        ("1", InitialThreshold::At(1.0)),
        ("\"auto\"", InitialThreshold::Auto),
    ] {
        assert_eq!(read(text).unwrap(), expected);
        let again = serde_json::to_string(&expected).unwrap();
        assert_eq!(read(&again).unwrap(), expected);
    }
    let error = read("\"aut\"").unwrap_err().to_string();
    assert!(error.contains("a number or \"auto\""), "{error}");
    let settings = SaeTraining {
        initial_threshold: InitialThreshold::At(0.0),
        ..small_training(Penalty::TargetL0)
    };
    assert!(settings.check().unwrap_err().to_string().contains("initial_threshold = 0"));
}

/// Oracle: the definition of the bound. Adam alone would take a step of many times the learning rate, because the second moments
/// know the small inputs only.
#[test]
fn inputs_that_suddenly_grow_do_not_throw_the_parameters_off() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    let device = Device::flex();
    let settings = small_training(Penalty::TargetL0);
    let batch = |step: u64| structured(step, settings.batch_tokens);
    let mut trainer = SaeTrainer::new(&settings, batch(1000), 0, &device).unwrap();
    for step in 0..40 {
        trainer.step(batch(step));
    }
    trainer.save(&path).unwrap();
    let moved_by = |next: Tensor<2>| {
        let mut trainer = SaeTrainer::restore(&settings, &path, &device).unwrap();
        let before = SaeTrainer::restore(&settings, &path, &device).unwrap();
        let rate = trainer.step(next).learning_rate;
        let [before, after] = [before, trainer]
            .map(|trainer| to_vec(trainer.finish(Provenance::default()).encoder.w_enc));
        let squares = before.iter().zip(&after).map(|(a, b)| f64::from(b - a).powi(2));
        (squares.sum::<f64>() / before.len() as f64).sqrt() / rate
    };
    let (usual, sudden) = (moved_by(batch(41)), moved_by(batch(41) * 100.0));
    println!("{usual} {sudden}");
    assert!(usual < 1.0, "{usual}");
    assert!((sudden - 1.0).abs() < 1e-4, "{sudden}");
}

#[test]
fn training_resumes_from_a_checkpoint_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    for (activation, penalty) in [
        (Kind::JumpRelu, Penalty::TargetL0),
        (Kind::JumpRelu, Penalty::Step),
        (Kind::JumpRelu, Penalty::Tanh),
        (Kind::Relu, Penalty::L1),
        (Kind::TopK, Penalty::TargetL0),
        (Kind::BatchTopK, Penalty::TargetL0),
    ] {
        let settings = SaeTraining { activation, ..small_training(penalty) };
        let batch = |step: usize| structured(step as u64, settings.batch_tokens);
        let device = Device::flex();
        let mut whole = SaeTrainer::new(&settings, batch(1000), 0, &device).unwrap();
        let mut reports = Vec::new();
        for step in 0..settings.steps {
            if step == 23 {
                whole.save(&path).unwrap();
            }
            reports.push(whole.step(batch(step)));
        }
        let mut resumed = SaeTrainer::restore(&settings, &path, &device).unwrap();
        assert_eq!(resumed.steps_done(), 23);
        for (step, report) in reports.iter().enumerate().skip(23) {
            assert_eq!(
                resumed.step(batch(step)),
                *report,
                "{activation:?}, {penalty:?}, step {step}"
            );
        }
        let [whole, resumed] = [whole, resumed].map(|t| t.finish(Provenance::default()));
        assert_eq!(to_vec(whole.encoder.w_enc.clone()), to_vec(resumed.encoder.w_enc.clone()));
        assert_eq!(threshold(&whole), threshold(&resumed));

        let other = SaeTraining { d_sae: 47, ..settings.clone() };
        assert!(SaeTrainer::restore(&other, &path, &device).is_err());
        let bytes = fs::read(&path).unwrap();
        for end in (0..bytes.len()).step_by(97) {
            fs::write(&path, &bytes[..end]).unwrap();
            assert!(SaeTrainer::restore(&settings, &path, &device).is_err());
        }
    }
}

/// Thresholds start so high that most features never fire. Without the pull they stay dead; with it they come to life and explain
/// more.
#[test]
fn the_pull_on_dead_features_helps() {
    let device = Device::flex();
    let train = |revive: f64| {
        let settings = SaeTraining {
            initial_threshold: InitialThreshold::At(0.9),
            revive,
            steps: 600,
            sparsity: 0.3,
            ..small_training(Penalty::TargetL0)
        };
        let batch = |step: usize| structured(step as u64, settings.batch_tokens);
        let mut trainer = SaeTrainer::new(&settings, batch(10_000), 0, &device).unwrap();
        for step in 0..settings.steps {
            trainer.step(batch(step));
        }
        let mut meter = QualityMeter::new(16, settings.d_sae);
        meter.add(&trainer.finish(Provenance::default()), structured(20_000, 4096));
        let quality = meter.quality().unwrap();
        println!("revive {revive}: {quality:?}");
        quality
    };
    let (without, with) = (train(0.0), train(0.03));
    assert!(without.dead_features > 0.2, "nothing dies here: {without:?}");
    assert!(with.dead_features < 0.5 * without.dead_features, "{with:?}");
    assert!(with.explained_variance > without.explained_variance, "{with:?}");
}

/// Every kind explains the known structure: with TopK and BatchTopK at the L0 that was asked for, BatchTopK with the threshold that
/// it estimated.
#[test]
fn every_kind_learns() {
    let device = Device::flex();
    for (activation, penalty, sparsity) in [
        (Kind::TopK, Penalty::TargetL0, 1.0),
        (Kind::BatchTopK, Penalty::TargetL0, 1.0),
        (Kind::Relu, Penalty::L1, 0.02),
    ] {
        let settings = SaeTraining {
            activation,
            sparsity,
            revive: 1.0 / 32.0,
            steps: 1500,
            ..small_training(penalty)
        };
        let batch = |step: usize| structured(step as u64, settings.batch_tokens);
        let mut trainer = SaeTrainer::new(&settings, batch(10_000), 0, &device).unwrap();
        for step in 0..settings.steps {
            trainer.step(batch(step));
        }
        let sae = trainer.finish(Provenance::default());
        let mut meter = QualityMeter::new(16, settings.d_sae);
        meter.add(&sae, structured(20_000, 4096));
        let quality = meter.quality().unwrap();
        println!("{activation:?}: {quality:?}");
        assert!(quality.explained_variance > 0.9, "{activation:?}: {quality:?}");
        match activation {
            Kind::TopK => assert!(quality.l0 <= 4.0 && quality.l0 > 3.5, "{quality:?}"),
            Kind::BatchTopK => assert!((quality.l0 / 4.0 - 1.0).abs() < 0.15, "{quality:?}"),
            Kind::Relu | Kind::JumpRelu => assert!(quality.l0 < 24.0, "{quality:?}"),
        }
    }
}

/// Features that no token opens are brought back by TopK's auxiliary loss.
#[test]
fn the_auxiliary_loss_helps() {
    let device = Device::flex();
    let train = |revive: f64| {
        let settings = SaeTraining {
            activation: Kind::TopK,
            d_sae: 96,
            revive,
            steps: 600,
            ..small_training(Penalty::TargetL0)
        };
        let batch = |step: usize| structured(step as u64, settings.batch_tokens);
        let mut trainer = SaeTrainer::new(&settings, batch(10_000), 0, &device).unwrap();
        for step in 0..settings.steps {
            trainer.step(batch(step));
        }
        let mut meter = QualityMeter::new(16, settings.d_sae);
        meter.add(&trainer.finish(Provenance::default()), structured(20_000, 4096));
        let quality = meter.quality().unwrap();
        println!("revive {revive}: {quality:?}");
        quality
    };
    let (without, with) = (train(0.0), train(1.0 / 32.0));
    assert!(with.dead_features < without.dead_features, "{without:?} {with:?}");
}

#[test]
fn settings_that_no_kind_can_be_trained_with_are_refused() {
    let base = small_training(Penalty::TargetL0);
    for (settings, says) in [
        (SaeTraining { activation: Kind::TopK, target_l0: 3.5, ..base.clone() }, "whole number"),
        (SaeTraining { activation: Kind::Relu, ..base.clone() }, "l1"),
        (SaeTraining { target_l0: 49.0, ..base.clone() }, "d_sae"),
    ] {
        let message = settings.check().unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    }
    let text = serde_json::to_string(&Kind::JumpRelu).unwrap();
    assert_eq!(text, "\"jumprelu\"");
}
