//! Gradients of the training loss.

use std::{fs, path::Path};

use burn::tensor::{DType, Device, Tensor, TensorData};
use fpo_sae::{Compute, Kind, Objective, Parameters, Penalty};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;
use serde_json::{Map, Value};

use crate::support::uniform;

/// Every loss against finite differences in float64. The straight-through kernel is so narrow that no pre-activation is within it,
/// which leaves the smooth parts of the gradient.
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
    for (kind, penalty) in [
        (Kind::JumpRelu, Penalty::TargetL0),
        (Kind::JumpRelu, Penalty::Step),
        (Kind::JumpRelu, Penalty::Tanh),
        (Kind::JumpRelu, Penalty::L1),
        (Kind::Relu, Penalty::Tanh),
        (Kind::Relu, Penalty::L1),
        (Kind::TopK, Penalty::TargetL0),
        (Kind::BatchTopK, Penalty::TargetL0),
    ] {
        let objective = Objective {
            kind,
            penalty,
            sparsity: 0.3,
            target_l0: 2.0,
            tanh_scale: 1.5,
            bandwidth: 1e-9,
            // What TopK's dead features are to reconstruct is a constant, which differences don't know.
            revive: if matches!(kind, Kind::TopK | Kind::BatchTopK) { 0.0 } else { 0.2 },
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
            // Thresholds have no part in TopK.
            let none = vec![0.0; values[part].len()];
            for (i, gradient) in gradient.unwrap_or(none).into_iter().enumerate() {
                let at = |step: f64| {
                    let mut values = values.clone();
                    values[part][i] += step;
                    loss(&values)
                };
                let difference = (at(1e-6) - at(-1e-6)) / 2e-6;
                assert!(
                    (gradient - difference).abs() < 1e-6 * difference.abs().max(1.0),
                    "{kind:?}, {penalty:?}, parameter {part}, entry {i}: {gradient} and {difference}"
                );
            }
        }
    }
}

/// Losses, gradients and BatchTopK's smallest activation, recorded from SAELens' training autoencoders by
/// `tests/fixtures/sae/generate_kinds.py`.
#[test]
fn every_kind_has_the_losses_and_gradients_of_sae_lens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/sae");
    let bytes = fs::read(folder.join("training_kinds.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let text = fs::read_to_string(folder.join("training_kinds.json")).unwrap();
    let cases: Map<String, Value> = serde_json::from_str(&text).unwrap();
    fn read<const D: usize>(file: &SafeTensors, name: &str, device: &Device) -> Tensor<D> {
        let view = file.tensor(name).unwrap();
        let values: Vec<f32> =
            view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Tensor::from_data(TensorData::new(values, view.shape().to_vec()), device)
    }
    let (plain, device) = (Device::flex(), Device::flex().autodiff());
    for (case, expected) in &cases {
        let (kind, penalty, sparsity, revive) = match case.as_str() {
            "relu" => (Kind::Relu, Penalty::L1, 0.07, 0.0),
            "topk" | "topk_many" => (Kind::TopK, Penalty::TargetL0, f64::NAN, 0.4),
            "batch_topk" => (Kind::BatchTopK, Penalty::TargetL0, f64::NAN, 0.4),
            other => panic!("{other}"),
        };
        let objective = Objective {
            kind,
            penalty,
            sparsity,
            target_l0: 4.0,
            tanh_scale: f64::NAN,
            bandwidth: f64::NAN,
            revive,
            compute: Compute::Float32,
        };
        let leaf =
            |name: &str| read::<2>(&file, &format!("parameter.{name}"), &device).require_grad();
        let vector =
            |name: &str| read::<1>(&file, &format!("parameter.{name}"), &device).require_grad();
        let p = Parameters {
            w_enc: leaf("W_enc"),
            b_enc: vector("b_enc"),
            w_dec: leaf("W_dec"),
            b_dec: vector("b_dec"),
            threshold: Tensor::<1>::zeros([20], &device).require_grad(),
        };
        let dead = read::<1>(&file, &format!("{case}.dead"), &plain);
        let losses = objective.losses(&p, read(&file, "x", &device), Some(dead));
        let gradients = losses.total.backward();
        let near = |what: &str, ours: Tensor<1>, theirs: &Value| {
            let (ours, theirs) = (ours.into_scalar::<f64>(), theirs.as_f64().unwrap_or(0.0));
            let difference = (ours - theirs).abs();
            assert!(difference <= 1e-5 * theirs.abs(), "{case}, {what}: {ours} and {theirs}");
        };
        near("loss", losses.total, &expected["loss"]);
        near("mse", losses.mse, &expected["losses"]["mse_loss"]);
        near("sparsity", losses.sparsity, &expected["losses"]["l1_loss"]);
        near("revive", losses.revive, &expected["losses"]["auxiliary_reconstruction_loss"]);
        near("L0", losses.l0, &expected["l0"]);
        if kind == Kind::BatchTopK {
            let closed = losses.features.clone().lower_equal_elem(0.0);
            let least = losses.features.mask_fill(closed, f32::INFINITY).min();
            near("smallest activation", least, &expected["threshold"]);
        }
        let compare = |name: &str, ours: Tensor<2>, theirs: Tensor<2>| {
            let largest = theirs.clone().abs().max().into_scalar::<f64>();
            let difference = (ours - theirs).abs().max().into_scalar::<f64>();
            assert!(difference <= 1e-4 * largest, "{case}, {name}: {difference} of {largest}");
        };
        for (name, tensor) in [("W_enc", &p.w_enc), ("W_dec", &p.w_dec)] {
            let theirs = read(&file, &format!("{case}.{name}"), &plain);
            compare(name, tensor.grad(&gradients).unwrap(), theirs);
        }
        for (name, tensor) in [("b_enc", &p.b_enc), ("b_dec", &p.b_dec)] {
            let theirs = read::<1>(&file, &format!("{case}.{name}"), &plain).unsqueeze();
            compare(name, tensor.grad(&gradients).unwrap().unsqueeze(), theirs);
        }
    }
}
