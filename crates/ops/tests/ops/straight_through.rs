//! The pseudo-derivatives of JumpReLU and the step function at single points: below, inside, at the edges of and above the window.

use burn::tensor::{DType, Device, Tensor, TensorData};
use fpo_ops::{definition, heaviside, jump_relu};

use crate::support::vec;

const THETA: f64 = 0.5;
const BANDWIDTH: f64 = 0.25;
/// z; whether z > θ; whether z is inside the open window θ ± ε/2. All are exact in binary.
const POINTS: [(f64, bool, bool); 7] = [
    (-1.0, false, false),
    (0.375, false, false),
    (0.4375, false, true),
    (0.5, false, true),
    (0.5625, true, true),
    (0.625, true, false),
    (2.0, true, false),
];

type Operation = fn(Tensor<2>, Tensor<1>, f64) -> Tensor<2>;

/// The value at one point, and the gradients of z and θ for an output gradient of 3.
fn at(f: Operation, z: f64, dtype: DType) -> (f64, Option<f64>, f64) {
    let device = Device::flex().autodiff();
    let z =
        Tensor::<2>::from_data(TensorData::new(vec![z], [1, 1]), (&device, dtype)).require_grad();
    let data = TensorData::new(vec![THETA], [1]);
    let theta = Tensor::<1>::from_data(data, (&device, dtype)).require_grad();
    let output = f(z.clone(), theta.clone(), BANDWIDTH);
    let gradients = (output.clone() * 3.0).backward();
    let d_theta = theta.grad(&gradients).expect("θ is tracked");
    (vec(&output)[0], z.grad(&gradients).map(|d_z| vec(&d_z)[0]), vec(&d_theta)[0])
}

/// The fast path, the definition on float32, the definition on float64.
fn ways(fast: Operation, definition: Operation) -> [(Operation, DType); 3] {
    [(fast, DType::F32), (definition, DType::F32), (fast, DType::F64)]
}

#[test]
fn jump_relu_at_points() {
    for (f, dtype) in ways(jump_relu, definition::jump_relu) {
        for (z, open, inside) in POINTS {
            let (value, d_z, d_theta) = at(f, z, dtype);
            assert_eq!(value, if open { z } else { 0.0 }, "value at {z}");
            assert_eq!(d_z, Some(if open { 3.0 } else { 0.0 }), "gradient to z at {z}");
            let expected = if inside { -3.0 * THETA / BANDWIDTH } else { 0.0 };
            assert_eq!(d_theta, expected, "gradient to θ at {z}");
        }
    }
}

#[test]
fn heaviside_at_points() {
    for (f, dtype) in ways(heaviside, definition::heaviside) {
        for (z, open, inside) in POINTS {
            let (value, d_z, d_theta) = at(f, z, dtype);
            assert_eq!(value, f64::from(open), "value at {z}");
            assert_eq!(d_z, None, "gradient to z at {z}");
            let expected = if inside { -3.0 / BANDWIDTH } else { 0.0 };
            assert_eq!(d_theta, expected, "gradient to θ at {z}");
        }
    }
}
