//! The loss of autoencoder training and all its gradients are those of SAELens.
//!
//! Oracle: values recorded from `JumpReLUTrainingSAE.training_forward_pass` by
//! `tests/fixtures/sae/generate.py`.

use std::{fs, path::Path};

use burn::tensor::{Device, Tensor, TensorData};
use fpo_sae::{Compute, Kind, Objective, Parameters, Penalty};
use safetensors::SafeTensors;
use serde_json::Value;

/// Relative to the largest entry of a gradient, or to the loss.
const TOLERANCE: f64 = 1e-4;

fn read<const D: usize>(file: &SafeTensors, name: &str, device: &Device) -> Tensor<D> {
    let view = file.tensor(name).unwrap();
    let values: Vec<f32> =
        view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Tensor::from_data(TensorData::new(values, view.shape().to_vec()), device)
}

fn compare<const D: usize>(what: &str, ours: Option<Tensor<D>>, theirs: Tensor<D>) {
    let ours = ours.unwrap_or_else(|| panic!("{what}: no gradient"));
    let largest = theirs.clone().abs().max().into_scalar::<f64>();
    let difference = (ours - theirs).abs().max().into_scalar::<f64>();
    println!("{what}: {difference:.2e} of {largest:.2e}");
    assert!(difference <= TOLERANCE * largest, "{what} differs by {difference} of {largest}");
}

#[test]
fn losses_and_gradients_match() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sae");
    let bytes = fs::read(folder.join("training.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let text = fs::read_to_string(folder.join("training.json")).unwrap();
    let cases: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(cases.len(), 4);
    let plain = Device::flex();
    let device = plain.clone().autodiff();
    for (case, expected) in &cases {
        let option = |key: &str| expected["options"][key].as_f64();
        let penalty = match expected["options"]["jumprelu_sparsity_loss_mode"].as_str() {
            Some("step") => Penalty::Step,
            Some("tanh") => Penalty::Tanh,
            other => panic!("{other:?}"),
        };
        let objective = Objective {
            kind: Kind::JumpRelu,
            penalty,
            sparsity: option("l0_coefficient").unwrap(),
            target_l0: f64::NAN,
            tanh_scale: option("jumprelu_tanh_scale").unwrap_or(f64::NAN),
            bandwidth: option("jumprelu_bandwidth").unwrap(),
            revive: option("pre_act_loss_coefficient").unwrap_or(0.0),
            compute: Compute::Float32,
        };
        let p = Parameters {
            w_enc: read::<2>(&file, "parameter.W_enc", &device).require_grad(),
            b_enc: read::<1>(&file, "parameter.b_enc", &device).require_grad(),
            w_dec: read::<2>(&file, "parameter.W_dec", &device).require_grad(),
            b_dec: read::<1>(&file, "parameter.b_dec", &device).require_grad(),
            threshold: read::<1>(&file, "parameter.threshold", &device).require_grad(),
        };
        let losses =
            objective.losses(&p, read(&file, "x", &device), Some(read(&file, "dead", &plain)));
        let gradients = losses.total.backward();
        let parts = [
            ("mse_loss", losses.mse),
            ("l0_loss", losses.sparsity),
            ("pre_act_loss", losses.revive),
        ];
        for (name, ours) in parts {
            let (ours, theirs) = (ours.into_scalar::<f64>(), &expected["losses"][name]);
            let theirs = theirs.as_f64().unwrap_or(0.0);
            assert!((ours - theirs).abs() <= TOLERANCE * theirs, "{case} {name}: {ours}, {theirs}");
        }
        let (ours, theirs) =
            (losses.total.into_scalar::<f64>(), expected["loss"].as_f64().unwrap());
        assert!((ours - theirs).abs() <= TOLERANCE * theirs, "{case}: {ours}, {theirs}");

        let name = |part: &str| format!("{case}.{part}");
        let theirs = |part: &str| read::<2>(&file, &name(part), &plain);
        compare(&name("W_enc"), p.w_enc.grad(&gradients), theirs("W_enc"));
        compare(&name("W_dec"), p.w_dec.grad(&gradients), theirs("W_dec"));
        let theirs = |part: &str| read::<1>(&file, &name(part), &plain);
        compare(&name("b_enc"), p.b_enc.grad(&gradients), theirs("b_enc"));
        compare(&name("b_dec"), p.b_dec.grad(&gradients), theirs("b_dec"));
        compare(&name("threshold"), p.threshold.grad(&gradients), theirs("threshold"));
    }
}
