//! The two devices, numbers, and the comparison.

use std::sync::OnceLock;

use burn::tensor::{Device, Int, Tensor, TensorData};

/// What results may differ by, relative to the largest magnitude.
pub const TOLERANCE: f64 = 1e-4;

/// Flex and WGPU; none where no adapter is found.
pub fn devices() -> Option<[Device; 2]> {
    static WGPU: OnceLock<Option<Device>> = OnceLock::new();
    let wgpu = WGPU.get_or_init(|| match fpo_trainer::device::parse("wgpu") {
        Ok(device) => Some(device),
        Err(error) => {
            eprintln!("skipped: {error:#}");
            None
        }
    });
    Some([Device::flex(), wgpu.clone()?])
}

/// Uniform in ±`scale`, the same on every device.
pub fn random<const D: usize>(
    seed: u64,
    shape: [usize; D],
    scale: f64,
    device: &Device,
) -> Tensor<D> {
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| (scale * uniform(seed, i)) as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

pub fn indices(seed: u64, n: usize, bound: usize, device: &Device) -> Tensor<1, Int> {
    let index = |i| ((uniform(seed, i) + 1.0) * 0.5 * bound as f64) as i32;
    Tensor::from_data(TensorData::new((0..n).map(index).collect::<Vec<_>>(), [n]), device)
}

fn uniform(seed: u64, i: usize) -> f64 {
    let mut z = (seed << 40 | i as u64).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

pub fn values<const D: usize>(x: &Tensor<D>) -> Vec<f64> {
    x.to_data().iter::<f64>().collect()
}

/// Fails where `found` is further from `expected` than `tolerance` of the largest magnitude.
pub fn close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-6, |a: f64, b| a.max(b.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let difference = (f - e).abs();
        assert!(
            difference <= tolerance * largest,
            "{what}, element {i}: {f}, Flex gives {e} (largest {largest})"
        );
    }
}
