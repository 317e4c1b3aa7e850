//! Devices by name.

use anyhow::{Result, anyhow, bail};
use burn::tensor::{DType, Device};
use fpo_transformer::Precision;

/// The names that a `--device` begins with.
pub const KINDS: [&str; 5] = ["cpu", "cuda", "wgpu", "vulkan", "metal"];

/// The device that a name such as `cpu` or `cuda:1` means, tried out.
///
/// # Errors
/// An unknown name, a backend that is not compiled in, or hardware that is not there.
pub fn parse(name: &str) -> Result<Device> {
    let (kind, index) = match name.split_once(':') {
        None => (name, None),
        Some((kind, index)) => match index.parse::<usize>() {
            Ok(index) if kind != "cpu" => (kind, Some(index)),
            _ => bail!("device `{name}`: expected a kind and a number, such as cuda:1"),
        },
    };
    if !KINDS.contains(&kind) {
        bail!(
            "no device `{name}`: there are {}, and a number picks one of several, as in cuda:1",
            KINDS.join(", ")
        );
    }
    let Some(device) = open(kind, index) else {
        bail!(
            "device `{name}`: this binary has no `{kind}` backend (it has {}); `cargo xtask train --device {name}` builds one that has",
            compiled().join(", ")
        );
    };
    match kind {
        "cpu" => Ok(device),
        _ => try_out(name, device),
    }
}

/// Refuses a precision that a device cannot compute in.
///
/// # Errors
/// bfloat16 on a device that lacks it, or can do no more than store it.
pub fn check_precision(device: &Device, precision: Precision) -> Result<()> {
    if precision == Precision::Bf16Mixed && !device.supports_dtype(DType::BF16) {
        bail!(
            "precision {precision}: {device:?} cannot compute in bfloat16 (some devices store it and no more); float32 works everywhere"
        );
    }
    Ok(())
}

/// What this binary was compiled with.
pub fn compiled() -> Vec<&'static str> {
    KINDS
        .into_iter()
        .filter(|kind| match *kind {
            "cpu" => cfg!(feature = "flex"),
            "cuda" => cfg!(feature = "cuda"),
            "wgpu" => cfg!(feature = "wgpu"),
            "vulkan" => cfg!(feature = "vulkan"),
            _ => cfg!(feature = "metal"),
        })
        .collect()
}

/// What there is of a kind: the processor's threads and memory, or whether a GPU answers.
pub fn describe(kind: &str) -> String {
    if kind != "cpu" {
        return match parse(kind) {
            Ok(_) => "present".into(),
            Err(_) => "compiled in, but no such device answers".into(),
        };
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    match crate::bench::machine_gib() {
        Some(gib) => format!("{threads} threads, {gib:.1} GiB"),
        None => format!("{threads} threads"),
    }
}

#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
fn open(kind: &str, index: Option<usize>) -> Option<Device> {
    #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
    let adapter = match index {
        Some(index) => burn::tensor::DeviceKind::DiscreteGpu(index),
        None => burn::tensor::DeviceKind::DefaultDevice,
    };
    match kind {
        #[cfg(feature = "flex")]
        "cpu" => Some(Device::flex()),
        #[cfg(feature = "cuda")]
        "cuda" => Some(Device::cuda(index.unwrap_or(0))),
        #[cfg(feature = "wgpu")]
        "wgpu" => Some(Device::wgpu(adapter)),
        #[cfg(feature = "vulkan")]
        "vulkan" => Some(Device::vulkan(adapter)),
        #[cfg(feature = "metal")]
        "metal" => Some(Device::metal(adapter)),
        _ => None,
    }
}

/// Adds two numbers on the device: a driver that is missing panics deep inside, and here it becomes a
/// message.
fn try_out(name: &str, device: Device) -> Result<Device> {
    use burn::tensor::Tensor;
    let attempt = std::panic::catch_unwind(|| {
        let one = Tensor::<1>::ones([1], &device);
        (one.clone() + one).into_scalar::<f32>()
    });
    match attempt {
        Ok(2.0) => Ok(device),
        Ok(other) => bail!("device `{name}` says that 1 + 1 is {other}"),
        Err(_) => Err(anyhow!(
            "device `{name}` cannot be used: is there such a GPU, and its driver? `--device cpu` works everywhere"
        )),
    }
}
