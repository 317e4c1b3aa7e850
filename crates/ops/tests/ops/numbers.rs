//! Random tensors and their comparison, for the tests of this folder and those beside the operations.

use burn::tensor::{Device, Int, Tensor, TensorCreationOptions, TensorData};

/// A deterministic generator (SplitMix64).
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
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Uniform in ±`scale`.
    pub fn values(&mut self, n: usize, scale: f64) -> Vec<f64> {
        (0..n).map(|_| scale * self.uniform()).collect()
    }

    /// `n` integers below `bound`.
    pub fn indices(&mut self, n: usize, bound: usize, device: &Device) -> Tensor<1, Int> {
        let values: Vec<i64> = (0..n).map(|_| (self.next() % bound as u64) as i64).collect();
        Tensor::from_data(TensorData::new(values, [n]), device)
    }

    /// Uniform in ±`scale`; float32 unless `options` names another type.
    pub fn tensor<const D: usize>(
        &mut self,
        shape: [usize; D],
        scale: f64,
        options: impl Into<TensorCreationOptions>,
    ) -> Tensor<D> {
        let values = self.values(shape.iter().product(), scale);
        Tensor::from_data(TensorData::new(values, shape), options)
    }
}

pub fn vec<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

/// Asserts that both are equal up to `tolerance` times the largest magnitude (at least 1e-3).
pub fn close<const D: usize>(what: &str, found: &Tensor<D>, expected: &Tensor<D>, tolerance: f64) {
    assert_eq!(found.dims(), expected.dims(), "{what}: shapes");
    let (found, expected) = (vec(found), vec(expected));
    let scale = expected.iter().fold(1e-3, |a: f64, b| a.max(b.abs()));
    for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
        assert!(
            (f - e).abs() <= tolerance * scale,
            "{what}: element {i} is {f}, expected {e} (largest {scale})"
        );
    }
}
