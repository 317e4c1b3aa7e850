//! Compute devices: selection by name, a description of each, their failures as errors. Also progress reports of long tasks.
//!
//! # Invariants
//! * Knows no model, no data and no settings.
//! * A device failure becomes an error ([`DeviceFailure`]) whichever thread it occurs on; any other panic is a bug.
//! * Prints nothing: libraries report to a [`progress::Reporter`].

#[cfg(any(test, feature = "cuda"))]
mod cuda_driver;
pub mod facts;
mod failure;
mod guard;
pub mod host;
pub mod interrupt;
mod list;
pub mod progress;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::Device;

pub use failure::{DeviceFailure, size};
pub use guard::{check, guard, silence, sync};
pub use list::{Listed, hardware, list, list_named};

/// A backend as `--device` names it: the part before the colon in `cuda:1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The CPU, through Burn's Flex backend.
    Cpu,
    /// NVIDIA GPUs, through CUDA.
    Cuda,
    /// GPUs, through any graphics API that wgpu finds.
    Wgpu,
    /// GPUs, through Vulkan.
    Vulkan,
    /// Apple GPUs, through Metal.
    Metal,
}

impl Kind {
    /// All kinds, whether compiled in or not.
    pub const ALL: [Self; 5] = [Self::Cpu, Self::Cuda, Self::Wgpu, Self::Vulkan, Self::Metal];

    /// The name on the command line, such as `cuda`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Wgpu => "wgpu",
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
        }
    }

    /// Whether the backend is compiled into this binary.
    pub const fn is_compiled(self) -> bool {
        match self {
            Self::Cpu => cfg!(feature = "flex"),
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Vulkan => cfg!(feature = "vulkan"),
            Self::Metal => cfg!(feature = "metal"),
        }
    }

    /// The kinds compiled into this binary.
    pub fn compiled() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|kind| kind.is_compiled())
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Opens the device with a name such as `cpu` or `cuda:1` and runs a test kernel on it. Numbers are those that `fpo devices` lists.
///
/// # Errors
/// An unknown name, a backend that isn't compiled in, missing hardware or a missing driver, or a failing test kernel.
pub fn parse(name: &str) -> Result<Device> {
    let (kind, index) = compiled(name)?;
    if kind == Kind::Cpu {
        return the_one(kind).context("the CPU backend is compiled in");
    }
    is_there(kind, index).map_err(|why| anyhow!("device `{name}`: {why}"))?;
    let found = match index {
        None => the_one(kind),
        Some(index) => all(kind).into_iter().nth(index),
    };
    try_out(name, found.with_context(|| format!("device `{name}` is not there"))?)
}

/// The device for reading and converting files: the CPU, or Burn's default device in a build without the CPU backend.
pub fn host() -> Device {
    the_one(Kind::Cpu).unwrap_or_default()
}

/// Kind and number of a device name; an error if the backend isn't compiled in.
fn compiled(name: &str) -> Result<(Kind, Option<usize>)> {
    let (kind, index) = split(name)?;
    if !kind.is_compiled() {
        bail!(
            "device `{name}`: this binary has no `{kind}` backend (only {}); `cargo xtask train --device {name}` builds one with it",
            names(Kind::compiled())
        );
    }
    Ok((kind, index))
}

fn split(name: &str) -> Result<(Kind, Option<usize>)> {
    if name.contains([',', '+', ' ']) {
        bail!("device `{name}`: a run uses one device; choose one");
    }
    let (kind, index) = match name.split_once(':') {
        None => (name, None),
        Some((kind, index)) => match index.parse::<usize>() {
            Ok(index) if kind != "cpu" => (kind, Some(index)),
            _ => bail!("device `{name}`: expected a kind and a number, such as cuda:1"),
        },
    };
    let kind = Kind::named(kind).with_context(|| {
        format!(
            "no device `{name}`: expected {}, with an optional number as in cuda:1",
            names(Kind::ALL)
        )
    })?;
    Ok((kind, index))
}

fn names(kinds: impl IntoIterator<Item = Kind>) -> String {
    kinds.into_iter().map(Kind::name).collect::<Vec<_>>().join(", ")
}

/// Checks for hardware of a kind and its driver. The error says what is missing and what to do.
fn is_there(kind: Kind, index: Option<usize>) -> Result<(), String> {
    #[cfg(feature = "cuda")]
    if kind == Kind::Cuda {
        let (driver, compiler) = cuda_driver::ask();
        return cuda_driver::judge(driver, compiler, index.unwrap_or(0));
    }
    match (all(kind).len(), index) {
        (0, _) => Err(format!(
            "no GPU found through {}: check the hardware and its driver (on Linux, the Vulkan driver, such as Debian's \
             mesa-vulkan-drivers); `--device cpu` works everywhere",
            if kind == Kind::Wgpu { "any graphics API" } else { kind.name() }
        )),
        (found, Some(index)) if index >= found => {
            Err(format!("no such GPU: this machine has {kind}:0 to {kind}:{}", found - 1))
        }
        _ => Ok(()),
    }
}

/// Every device of a kind, ordered by number.
fn all(kind: Kind) -> Vec<Device> {
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    use burn::tensor::DeviceType;
    match kind {
        #[cfg(feature = "flex")]
        Kind::Cpu => vec![Device::flex()],
        #[cfg(feature = "cuda")]
        Kind::Cuda => Device::enumerate(DeviceType::Cuda).into_vec(),
        #[cfg(feature = "wgpu")]
        Kind::Wgpu => Device::enumerate(DeviceType::Wgpu).into_vec(),
        #[cfg(feature = "vulkan")]
        Kind::Vulkan => Device::enumerate(DeviceType::Vulkan).into_vec(),
        #[cfg(feature = "metal")]
        Kind::Metal => Device::enumerate(DeviceType::Metal).into_vec(),
        #[allow(unreachable_patterns)]
        _ => Vec::new(),
    }
}

/// The device of a name without a number: the first, or the one that the graphics API ranks highest.
fn the_one(kind: Kind) -> Option<Device> {
    #[cfg(feature = "wgpu")]
    use burn::tensor::DeviceKind::DefaultDevice;
    match kind {
        #[cfg(feature = "flex")]
        Kind::Cpu => Some(Device::flex()),
        #[cfg(feature = "cuda")]
        Kind::Cuda => Some(Device::cuda(0)),
        #[cfg(feature = "wgpu")]
        Kind::Wgpu => Some(Device::wgpu(DefaultDevice)),
        #[cfg(feature = "vulkan")]
        Kind::Vulkan => Some(Device::vulkan(DefaultDevice)),
        #[cfg(feature = "metal")]
        Kind::Metal => Some(Device::metal(DefaultDevice)),
        #[allow(unreachable_patterns)]
        _ => None,
    }
}

/// Computes 1 + 1 on the device: a broken driver only shows at the first kernel.
fn try_out(name: &str, device: Device) -> Result<Device> {
    use burn::tensor::Tensor;
    let add = || {
        let one = Tensor::<1>::ones([1], &device);
        Ok((one.clone() + one).into_scalar::<f32>())
    };
    let advice = format!(
        "`cargo xtask fpo -- devices --device {name}` lists what is available, and `--device cpu` works everywhere"
    );
    match catch_unwind(AssertUnwindSafe(|| guard(add))) {
        Ok(Ok(2.0)) => Ok(device),
        Ok(Ok(other)) => bail!("device `{name}` computes 1 + 1 = {other}"),
        Ok(Err(failure)) => bail!("device `{name}` cannot be used: {failure:#}; {advice}"),
        Err(_) => bail!("device `{name}` cannot be used; {advice}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (name, expected) in [
            ("cpu", (Kind::Cpu, None)),
            ("cuda", (Kind::Cuda, None)),
            ("cuda:1", (Kind::Cuda, Some(1))),
            ("vulkan:0", (Kind::Vulkan, Some(0))),
        ] {
            assert_eq!(split(name).unwrap(), expected, "{name}");
        }
        for (name, says) in [
            ("cuda,wgpu", "one device"),
            ("cuda+cpu", "one device"),
            ("cpu:1", "such as cuda:1"),
            ("cuda:", "such as cuda:1"),
            ("cuda:-1", "such as cuda:1"),
            ("CUDA", "expected cpu, cuda, wgpu, vulkan, metal"),
            ("", "no device ``"),
        ] {
            let message = split(name).unwrap_err().to_string();
            assert!(message.contains(says), "{name}: {message:?} does not say {says:?}");
        }
    }

    #[cfg(feature = "flex")]
    #[test]
    fn the_cpu_is_always_available() {
        assert_eq!(parse("cpu").unwrap(), Device::flex());
        assert!(list().iter().any(|device| device.name == "cpu"));
    }
}
