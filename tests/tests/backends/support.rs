//! The two devices, numbers, and the comparison.

use std::{env, sync::OnceLock};

use burn::tensor::{Device, Int, Tensor, TensorData};
use fpo_device::{Kind, parse};

/// Names the device under test.
const DEVICE: &str = "FPO_TEST_DEVICE";

/// What `--device` calls the device under test.
pub fn name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let name = env::var(DEVICE).unwrap_or_else(|_| default().name().to_owned());
        assert_ne!(name, Kind::Cpu.name(), "{DEVICE}: the device is compared with the CPU");
        name
    })
}

/// The backend that was compiled in for the tests, beside the CPU's.
fn default() -> Kind {
    Kind::compiled().last().expect("the tests are compiled with a backend")
}

/// Whether the device is one of CUDA's.
pub fn is_cuda() -> bool {
    name().split(':').next() == Some(Kind::Cuda.name())
}

/// What results may differ by, relative to the largest magnitude.
pub const TOLERANCE: f64 = 1e-4;

/// The same where matrices are multiplied. On CUDA's tensor cores Burn multiplies float32 in TF32: the factors have 11 bits, one of
/// them is off by up to 5e-4, and what a few of them come to is allowed.
pub fn tolerance() -> f64 {
    if is_cuda() { 1e-2 } else { TOLERANCE }
}

/// Flex and the device under test; none where no device was asked for and none is found.
pub fn devices() -> Option<[Device; 2]> {
    static FOUND: OnceLock<Option<Device>> = OnceLock::new();
    let found = FOUND.get_or_init(|| match (parse(name()), env::var_os(DEVICE)) {
        (Ok(device), _) => Some(device),
        (Err(error), Some(_)) => panic!("{DEVICE}: {error:#}"),
        (Err(error), None) => {
            eprintln!("skipped: {error:#}");
            None
        }
    });
    Some([Device::flex(), found.clone()?])
}

/// Uniform in ±`scale`, the same on every device: odd multiples of `scale`/512. Of a scale with few bits they are factors without
/// rounding in TF32 too, and what their products decide is decided alike.
pub fn random<const D: usize>(
    seed: u64,
    shape: [usize; D],
    scale: f64,
    device: &Device,
) -> Tensor<D> {
    let count = shape.iter().product();
    let coarse = |i| ((uniform(seed, i) * 256.0).floor() + 0.5) / 256.0;
    let values: Vec<f32> = (0..count).map(|i| (scale * coarse(i)) as f32).collect();
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
