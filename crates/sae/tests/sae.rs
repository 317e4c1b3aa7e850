//! The autoencoder against slow scalar arithmetic, its files against themselves and against damage, and
//! its training against data whose structure is known.

use std::{fs, path::Path};

use burn::tensor::{DType, Device, Tensor, TensorData};
use fpo_ops::Encoder;
use fpo_sae::{
    Compute, Objective, Parameters, Penalty, Provenance, QualityMeter, Sae, SaeTrainer,
    SaeTraining, load, save_sae_lens,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn uniform(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| 2.0 * rng.random::<f32>() - 1.0).collect()
}

fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
}

fn to_vec<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

struct Plain {
    w_enc: Vec<f32>,
    b_enc: Vec<f32>,
    w_dec: Vec<f32>,
    b_dec: Vec<f32>,
    threshold: Vec<f32>,
}

fn random_sae(seed: u64, d_in: usize, d_sae: usize) -> (Sae, Plain) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let plain = Plain {
        w_enc: uniform(&mut rng, d_in * d_sae),
        b_enc: uniform(&mut rng, d_sae),
        w_dec: uniform(&mut rng, d_sae * d_in),
        b_dec: uniform(&mut rng, d_in),
        threshold: uniform(&mut rng, d_sae).iter().map(|x| x.abs()).collect(),
    };
    let sae = Sae {
        encoder: Encoder {
            w_enc: tensor(&plain.w_enc, [d_in, d_sae]),
            b_enc: tensor(&plain.b_enc, [d_sae]),
            threshold: tensor(&plain.threshold, [d_sae]),
        },
        w_dec: tensor(&plain.w_dec, [d_sae, d_in]),
        b_dec: tensor(&plain.b_dec, [d_in]),
        provenance: Provenance {
            model_name: Some("a model".into()),
            hook_name: Some("blocks.3.hook_resid_post".into()),
        },
    };
    (sae, plain)
}

#[test]
fn encode_and_decode_are_their_sums() {
    let (d_in, d_sae, tokens) = (5, 11, 7);
    let (sae, plain) = random_sae(1, d_in, d_sae);
    let x = uniform(&mut ChaCha8Rng::seed_from_u64(2), tokens * d_in);
    let features = to_vec(sae.encode(tensor(&x, [tokens, d_in])));
    let decoded = to_vec(sae.decode(tensor(&features, [tokens, d_sae])));
    let mut active = 0;
    for t in 0..tokens {
        for j in 0..d_sae {
            let z: f32 = plain.b_enc[j]
                + (0..d_in).map(|i| x[t * d_in + i] * plain.w_enc[i * d_sae + j]).sum::<f32>();
            let expected = if z > plain.threshold[j] { z } else { 0.0 };
            active += usize::from(expected > 0.0);
            assert!((features[t * d_sae + j] - expected).abs() < 1e-5);
        }
        for i in 0..d_in {
            let features = &features[t * d_sae..][..d_sae];
            let expected: f32 = plain.b_dec[i]
                + features
                    .iter()
                    .enumerate()
                    .map(|(j, f)| f * plain.w_dec[j * d_in + i])
                    .sum::<f32>();
            assert!((decoded[t * d_in + i] - expected).abs() < 1e-5);
        }
    }
    assert!(active > 0 && active < tokens * d_sae, "the threshold decides nothing here");
}

#[test]
fn a_sae_lens_folder_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (sae, plain) = random_sae(3, 6, 9);
    save_sae_lens(&sae, folder.path()).unwrap();
    let back = load(folder.path(), &Device::flex()).unwrap();
    assert_eq!(to_vec(back.encoder.w_enc.clone()), plain.w_enc);
    assert_eq!(to_vec(back.encoder.b_enc.clone()), plain.b_enc);
    assert_eq!(to_vec(back.encoder.threshold.clone()), plain.threshold);
    assert_eq!(to_vec(back.w_dec.clone()), plain.w_dec);
    assert_eq!(to_vec(back.b_dec.clone()), plain.b_dec);
    assert_eq!(back.provenance, sae.provenance);
    assert_eq!((back.d_in(), back.d_sae()), (6, 9));
}

/// What is wrong with `folder`, as a sentence.
fn refusal(folder: &Path) -> String {
    load(folder, &Device::flex()).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn damaged_files_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert!(refusal(folder).contains("no sparse autoencoder"));
    let (mut sae, plain) = random_sae(4, 3, 4);
    save_sae_lens(&sae, folder).unwrap();
    let (config, weights) = (folder.join("cfg.json"), folder.join("sae_weights.safetensors"));
    let (config_text, whole) = (fs::read_to_string(&config).unwrap(), fs::read(&weights).unwrap());

    for (from, to) in [("jumprelu", "topk"), ("\"none\"", "\"layer_norm\"")] {
        fs::write(&config, config_text.replacen(from, to, 1)).unwrap();
        assert!(refusal(folder).contains(to.trim_matches('"')));
    }
    fs::write(&config, "{").unwrap();
    assert!(refusal(folder).contains("cfg.json"));
    fs::write(&config, &config_text).unwrap();

    // Wherever the file ends, and whatever byte is another, reading ends in a value or in an error.
    for end in 0..whole.len() {
        fs::write(&weights, &whole[..end]).unwrap();
        assert!(
            load(folder, &Device::flex()).is_err(),
            "{end} of {} bytes were enough",
            whole.len()
        );
    }
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for _ in 0..300 {
        let mut bytes = whole.clone();
        let at = rng.random_range(0..bytes.len());
        bytes[at] = rng.random();
        fs::write(&weights, bytes).unwrap();
        let _ = load(folder, &Device::flex());
    }

    for (value, says) in [(-0.5, "negative"), (f32::NAN, "NaN")] {
        let mut threshold = plain.threshold.clone();
        threshold[2] = value;
        sae.encoder.threshold = tensor(&threshold, [4]);
        save_sae_lens(&sae, folder).unwrap();
        let message = refusal(folder);
        assert!(message.contains(says) && message.contains("threshold"), "{message}");
    }
    sae.encoder.threshold = tensor(&plain.threshold[..3], [3]);
    save_sae_lens(&sae, folder).unwrap();
    assert!(refusal(folder).contains("threshold is [3]"));
}

/// Gemma Scope's file: an archive of NumPy arrays, written here byte by byte from the format's
/// description (version 1.0 of .npy; zip without compression through the crate that also reads it).
#[test]
fn gemma_scope_params_npz() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("params.npz");
    let (d_in, d_sae) = (3, 5);
    let (_, plain) = random_sae(6, d_in, d_sae);
    let write = |skip: Option<&str>| {
        let mut archive = zip::ZipWriter::new(fs::File::create(&path).unwrap());
        let arrays: [(&str, &[f32], &[u64]); 5] = [
            ("W_enc", &plain.w_enc, &[d_in as u64, d_sae as u64]),
            ("b_enc", &plain.b_enc, &[d_sae as u64]),
            ("W_dec", &plain.w_dec, &[d_sae as u64, d_in as u64]),
            ("b_dec", &plain.b_dec, &[d_in as u64]),
            ("threshold", &plain.threshold, &[d_sae as u64]),
        ];
        for (name, values, shape) in arrays.into_iter().filter(|(name, ..)| Some(*name) != skip) {
            use npyz::WriterBuilder;
            archive.start_file(format!("{name}.npy"), Default::default()).unwrap();
            let array = npyz::WriteOptions::new().default_dtype().shape(shape);
            let mut writer = array.writer(&mut archive).begin_nd().unwrap();
            writer.extend(values.iter().copied()).unwrap();
            writer.finish().unwrap();
        }
        archive.finish().unwrap();
    };
    write(None);
    for named in [path.as_path(), folder.path()] {
        let sae = load(named, &Device::flex()).unwrap();
        assert_eq!(to_vec(sae.encoder.w_enc.clone()), plain.w_enc);
        assert_eq!(to_vec(sae.encoder.threshold.clone()), plain.threshold);
        assert_eq!(to_vec(sae.w_dec), plain.w_dec);
    }
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    load(&path, &Device::flex()).map(|_| ()).unwrap_err();
    write(Some("threshold"));
    assert!(refusal(&path).contains("no `threshold`"));
}

/// Inputs that are sparse sums of known directions, more of them than dimensions: training finds the sparsity
/// that was asked for, explains the inputs and recovers the directions.
#[test]
fn training_finds_known_structure() {
    find_known_structure(Compute::Float32, 3);
}

/// The same with products of rounded factors.
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
    // Twelve uniform numbers minus six are normal enough for a direction.
    let mut normal = || (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
    let mut rows: Vec<f32> = (0..count * width).map(|_| normal()).collect();
    for row in rows.chunks_exact_mut(width) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
    }
    rows
}

/// Sums of some of the directions with sizes between 5 and 10, `[tokens, d_in]`.
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

/// Sparse sums of 32 directions in 16 dimensions, the same for the same seed.
fn structured(seed: u64, tokens: usize) -> Tensor<2> {
    let directions = unit_rows(&mut ChaCha8Rng::seed_from_u64(1), 32, 16);
    sparse_sums(&mut ChaCha8Rng::seed_from_u64(seed), tokens, &directions, 16, 3)
}

fn small_training(penalty: Penalty) -> SaeTraining {
    SaeTraining {
        d_sae: 48,
        penalty,
        target_l0: 4.0,
        tanh_scale: 4.0,
        sparsity: 0.02,
        sparsity_warmup: 20,
        learning_rate: 3e-3,
        bias_rate: 1.0,
        warmup: 10,
        bandwidth: 0.1,
        initial_threshold: 0.05,
        revive: 0.01,
        dead_after: 5,
        compute: Compute::Float32,
        batch_tokens: 128,
        steps: 60,
    }
}

#[test]
fn a_training_goes_on_from_a_checkpoint_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    for penalty in [Penalty::TargetL0, Penalty::Step, Penalty::Tanh] {
        let settings = small_training(penalty);
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
            assert_eq!(resumed.step(batch(step)), *report, "{penalty:?}, step {step}");
        }
        let [whole, resumed] = [whole, resumed].map(|t| t.finish(Provenance::default()));
        assert_eq!(to_vec(whole.encoder.w_enc), to_vec(resumed.encoder.w_enc));
        assert_eq!(to_vec(whole.encoder.threshold), to_vec(resumed.encoder.threshold));

        let other = SaeTraining { d_sae: 47, ..settings.clone() };
        assert!(SaeTrainer::restore(&other, &path, &device).is_err());
        let bytes = fs::read(&path).unwrap();
        for end in (0..bytes.len()).step_by(97) {
            fs::write(&path, &bytes[..end]).unwrap();
            assert!(SaeTrainer::restore(&settings, &path, &device).is_err());
        }
    }
}

/// A training whose thresholds begin so high that most features never fire: without the pull they stay
/// dead, with it they come to life and explain more.
#[test]
fn the_pull_on_dead_features_helps() {
    let device = Device::flex();
    let train = |revive: f64| {
        let settings = SaeTraining {
            initial_threshold: 0.9,
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

/// The smooth parts of every loss against finite differences in float64, at parameters where no pre-activation
/// is near its threshold; what is straight-through against its formula.
#[test]
fn gradients_are_differences_of_the_loss() {
    let (d_in, d_sae, tokens) = (4, 7, 9);
    let device = Device::flex().autodiff();
    let double = |values: &[f32], shape: &[usize]| {
        let values: Vec<f64> = values.iter().map(|&x| f64::from(x)).collect();
        TensorData::new(values, shape.to_vec())
    };
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let shapes: [&[usize]; 5] = [&[d_in, d_sae], &[d_sae], &[d_sae, d_in], &[d_in], &[d_sae]];
    let mut values: Vec<Vec<f32>> =
        shapes.iter().map(|shape| uniform(&mut rng, shape.iter().product())).collect();
    values[4].iter_mut().for_each(|x| *x = x.abs());
    let x = uniform(&mut rng, tokens * d_in);
    let dead = Tensor::<1>::from_data(
        double(&[1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0], &[d_sae]),
        (&Device::flex(), DType::F64),
    );
    for penalty in [Penalty::TargetL0, Penalty::Step, Penalty::Tanh] {
        let objective = Objective {
            penalty,
            sparsity: 0.3,
            target_l0: 2.0,
            tanh_scale: 1.5,
            // So narrow that nothing is inside: what is left is smooth.
            bandwidth: 1e-9,
            revive: 0.2,
            compute: Compute::Float32,
        };
        let parameters = |values: &[Vec<f64>]| {
            let data = |i: usize| TensorData::new(values[i].clone(), shapes[i].to_vec());
            fn leaf<const D: usize>(data: TensorData, device: &Device) -> Tensor<D> {
                Tensor::from_data(data, (device, DType::F64)).require_grad()
            }
            Parameters {
                w_enc: leaf(data(0), &device),
                b_enc: leaf(data(1), &device),
                w_dec: leaf(data(2), &device),
                b_dec: leaf(data(3), &device),
                threshold: leaf(data(4), &device),
            }
        };
        let inputs = || Tensor::<2>::from_data(double(&x, &[tokens, d_in]), (&device, DType::F64));
        let loss = |values: &[Vec<f64>]| {
            let losses = objective.losses(&parameters(values), inputs(), Some(dead.clone()));
            losses.total.into_scalar::<f64>()
        };
        let values: Vec<Vec<f64>> =
            values.iter().map(|v| v.iter().map(|&x| f64::from(x)).collect()).collect();
        let p = parameters(&values);
        let gradients = objective.losses(&p, inputs(), Some(dead.clone())).total.backward();
        let flat = |data: TensorData| data.iter::<f64>().collect::<Vec<f64>>();
        let found = [
            p.w_enc.grad(&gradients).map(|g| flat(g.into_data())),
            p.b_enc.grad(&gradients).map(|g| flat(g.into_data())),
            p.w_dec.grad(&gradients).map(|g| flat(g.into_data())),
            p.b_dec.grad(&gradients).map(|g| flat(g.into_data())),
            p.threshold.grad(&gradients).map(|g| flat(g.into_data())),
        ];
        for (part, gradient) in found.into_iter().enumerate() {
            for (i, gradient) in gradient.unwrap().into_iter().enumerate() {
                let at = |step: f64| {
                    let mut values = values.clone();
                    values[part][i] += step;
                    loss(&values)
                };
                let difference = (at(1e-6) - at(-1e-6)) / 2e-6;
                assert!(
                    (gradient - difference).abs() < 1e-6 * difference.abs().max(1.0),
                    "{penalty:?}, parameter {part}, entry {i}: {gradient} and {difference}"
                );
            }
        }
    }
}
