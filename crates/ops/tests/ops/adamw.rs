//! AdamW against a scalar loop in float64, written from the equations.

use burn::tensor::{DType, Device, Tensor, TensorData};
use fpo_ops::{AdamW, adamw_step, definition};

use crate::support::{Numbers, close, vec};

/// Loshchilov & Hutter, algorithm 2, with a schedule multiplier of 1, on a scaled gradient.
fn scalar_step((p, m, v): (f64, f64, f64), g: f64, step: i32, o: &AdamW) -> (f64, f64, f64) {
    let g = o.grad_scale * g;
    let m = o.beta1 * m + (1.0 - o.beta1) * g;
    let v = o.beta2 * v + (1.0 - o.beta2) * g * g;
    let m_hat = m / (1.0 - o.beta1.powi(step));
    let v_hat = v / (1.0 - o.beta2.powi(step));
    let p = p - o.lr * o.weight_decay * p - o.lr * m_hat / (v_hat.sqrt() + o.eps);
    (p, m, v)
}

const OPTIONS: AdamW =
    AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_scale: 0.7 };

/// Compares ten steps of `step` on tensors of the given type with the scalar loop.
fn check(
    dtype: DType,
    tolerance: f64,
    step: impl Fn([Tensor<2>; 4], usize) -> (Tensor<2>, Tensor<2>, Tensor<2>),
) {
    let (shape, device) = ([3, 7001], Device::flex());
    let tensor =
        |values: Vec<f64>| Tensor::<2>::from_data(TensorData::new(values, shape), (&device, dtype));
    let n = shape[0] * shape[1];
    let mut numbers = Numbers(20);
    let start = numbers.values(n, 1.0);
    let mut expected: Vec<_> = start.iter().map(|&p| (p, 0.0, 0.0)).collect();
    let (mut p, mut m, mut v) = (tensor(start), tensor(vec![0.0; n]), tensor(vec![0.0; n]));
    for t in 1..=10 {
        let g = numbers.values(n, 0.3);
        for (state, &g) in expected.iter_mut().zip(&g) {
            *state = scalar_step(*state, g, t as i32, &OPTIONS);
        }
        (p, m, v) = step([p, tensor(g), m, v], t);
    }
    let column = |f: fn(&(f64, f64, f64)) -> f64| tensor(expected.iter().map(f).collect());
    close("param", &p, &column(|state| state.0), tolerance);
    close("m", &m, &column(|state| state.1), tolerance);
    close("v", &v, &column(|state| state.2), tolerance);
}

#[test]
fn definition_follows_the_equations() {
    check(DType::F64, 1e-13, |[p, g, m, v], t| definition::adamw_step(p, g, m, v, t, &OPTIONS));
}

#[test]
fn fast_path_follows_the_equations() {
    check(DType::F32, 2e-6, |[p, g, m, v], t| adamw_step(p, g, m, v, t, &OPTIONS));
}

#[test]
fn a_shared_buffer_is_not_overwritten() {
    let device = Device::flex();
    let p = Tensor::<1>::ones([5], &device);
    let kept = p.clone();
    let zeros = Tensor::<1>::zeros([5], &device);
    let (new, ..) = adamw_step(p, zeros.clone() + 1.0, zeros.clone(), zeros.clone(), 1, &OPTIONS);
    assert_eq!(vec(&kept), [1.0; 5]);
    assert_eq!(vec(&zeros), [0.0; 5]);
    assert!(vec(&new).iter().all(|&p| p < 1.0));
}

#[test]
fn transposed_views_are_updated_like_their_matrix() {
    let device = Device::flex();
    let mut numbers = Numbers(21);
    let [p, g, m] = [(); 3].map(|()| numbers.tensor::<2>([4, 6], 1.0, &device));
    let v = numbers.tensor::<2>([4, 6], 1.0, &device).square();
    let fast = adamw_step(
        p.clone().transpose(),
        g.clone().transpose(),
        m.clone().transpose(),
        v.clone().transpose(),
        3,
        &OPTIONS,
    );
    let slow = definition::adamw_step(p, g, m, v, 3, &OPTIONS);
    close("transposed", &fast.0, &slow.0.transpose(), 2e-6);
}
