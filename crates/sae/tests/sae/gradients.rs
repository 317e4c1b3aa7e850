//! Gradients of the training loss.

use burn::tensor::{DType, Device, Tensor, TensorData};
use fpo_sae::{Compute, Objective, Parameters, Penalty};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

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
    for penalty in [Penalty::TargetL0, Penalty::Step, Penalty::Tanh] {
        let objective = Objective {
            penalty,
            sparsity: 0.3,
            target_l0: 2.0,
            tanh_scale: 1.5,
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
