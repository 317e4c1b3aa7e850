//! Random tensors, and the comparison of two ways to compute one thing.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

/// A small deterministic generator (SplitMix64); the tests need numbers, not randomness.
pub struct Numbers(pub u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in −1..1.
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Values in ±`scale`.
    pub fn values(&mut self, n: usize, scale: f64) -> Vec<f64> {
        (0..n).map(|_| scale * self.uniform()).collect()
    }

    /// `n` integers below `bound`.
    pub fn indices(&mut self, n: usize, bound: usize, device: &Device) -> Tensor<1, Int> {
        let values: Vec<i64> = (0..n).map(|_| (self.next() % bound as u64) as i64).collect();
        Tensor::from_data(TensorData::new(values, [n]), device)
    }

    pub fn tensor<const D: usize>(
        &mut self,
        shape: [usize; D],
        scale: f64,
        device: &Device,
    ) -> Tensor<D> {
        let data = TensorData::new(self.values(shape.iter().product(), scale), shape);
        Tensor::from_data(data, (device, DType::F32))
    }
}

pub fn autodiff() -> Device {
    Device::flex().autodiff()
}

pub fn vec<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    tensor.to_data_as::<f64>().as_slice::<f64>().expect("f64").to_vec()
}

/// Asserts that both are equal up to `tolerance` times the largest magnitude (at least 1e-3).
pub fn close<const D: usize>(what: &str, fast: &Tensor<D>, slow: &Tensor<D>, tolerance: f64) {
    assert_eq!(fast.dims(), slow.dims(), "{what}: shapes");
    let (fast, slow) = (vec(fast), vec(slow));
    let scale = slow.iter().fold(1e-3, |a: f64, b| a.max(b.abs()));
    for (i, (f, s)) in fast.iter().zip(&slow).enumerate() {
        assert!(
            (f - s).abs() <= tolerance * scale,
            "{what}: element {i} is {f}, the definition gives {s} (largest {scale})"
        );
    }
}

/// Runs `fast` and `slow` on the same tracked inputs, weighs the outputs with the same random numbers and compares values
/// and every gradient.
pub fn same<const N: usize, const D: usize, const O: usize>(
    what: &str,
    inputs: [Tensor<D>; N],
    tolerance: f64,
    fast: impl Fn([Tensor<D>; N]) -> Tensor<O>,
    slow: impl Fn([Tensor<D>; N]) -> Tensor<O>,
) {
    let run = |f: &dyn Fn([Tensor<D>; N]) -> Tensor<O>| {
        let leaves = inputs.clone().map(|x| x.detach().require_grad());
        let output = f(leaves.clone());
        let weights = Numbers(99).tensor(output.dims(), 1.0, &output.device());
        let gradients = (output.clone() * weights).sum().backward();
        let gradients = leaves.map(|leaf| leaf.grad(&gradients));
        (output.inner(), gradients)
    };
    let ((a, d_a), (b, d_b)) = (run(&fast), run(&slow));
    close(what, &a, &b, tolerance);
    for (i, (d_a, d_b)) in d_a.iter().zip(&d_b).enumerate() {
        let what = format!("{what}, gradient {i}");
        match (d_a, d_b) {
            (Some(d_a), Some(d_b)) => close(&what, d_a, d_b, tolerance),
            (None, None) => {}
            _ => panic!("{what}: one has it, the other has not"),
        }
    }
}
