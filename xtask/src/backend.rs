//! The backend that a device needs: its cargo feature, and the environment that cargo needs to build it.

use crate::launch::Error;

/// The device that `fpo` computes on.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Target {
    /// The device to compute on: cpu, cuda, cuda:N, wgpu, vulkan or metal
    #[arg(long, default_value = "cpu", global = true)]
    pub device: String,
    /// With --device cuda: compile kernels with NVIDIA's NVRTC, so that the build downloads no LLVM
    #[arg(long, global = true)]
    pub nvrtc: bool,
}

impl Target {
    /// The backend that the binary has to be built with.
    pub fn backend(&self) -> Result<Backend, Error> {
        Backend::of(&self.device, self.nvrtc)
    }
}

/// A backend that the binary can be built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The CPU alone.
    Cpu,
    /// CUDA, with kernels compiled by CubeCL through LLVM.
    Cuda,
    /// CUDA, with kernels compiled by NVRTC.
    CudaNvrtc,
    /// WGPU, which picks the platform's graphics API.
    Wgpu,
    /// Vulkan, through SPIR-V.
    Vulkan,
    /// Apple's Metal.
    Metal,
}

/// Device names, without a number.
const DEVICES: [(&str, Backend); 5] = [
    ("cpu", Backend::Cpu),
    ("cuda", Backend::Cuda),
    ("wgpu", Backend::Wgpu),
    ("vulkan", Backend::Vulkan),
    ("metal", Backend::Metal),
];

/// Leaves LLVM's functions undefined when linking, to be resolved at their first call, which never comes because NVRTC compiles the
/// kernels. Full RELRO, the default, would resolve every function when the program starts.
const WITHOUT_LLVM: &str =
    "-C relro-level=off -C link-arg=-Wl,--unresolved-symbols=ignore-all -C link-arg=-Wl,-z,lazy";

impl Backend {
    /// The backend of the device with this name.
    pub fn of(device: &str, nvrtc: bool) -> Result<Self, Error> {
        if device.contains([',', '+', ' ']) {
            return Err(Error::SeveralDevices(device.to_owned()));
        }
        let kind = device.split(':').next().unwrap_or(device);
        match (DEVICES.iter().find(|(name, _)| *name == kind), nvrtc) {
            (None, _) => Err(Error::UnknownDevice(device.to_owned())),
            (Some((_, backend)), false) => Ok(*backend),
            (Some((_, Self::Cuda)), true) if cfg!(target_os = "linux") => Ok(Self::CudaNvrtc),
            (Some((_, Self::Cuda)), true) => Err(Error::NvrtcNeedsLinux),
            (Some(_), true) => Err(Error::NvrtcWithoutCuda(device.to_owned())),
        }
    }

    /// The cargo feature that compiles it in; the CPU backend is a default feature.
    pub const fn feature(self) -> Option<&'static str> {
        match self {
            Self::Cpu => None,
            Self::Cuda => Some("cuda"),
            Self::CudaNvrtc => Some("cuda-nvrtc"),
            Self::Wgpu => Some("wgpu"),
            Self::Vulkan => Some("vulkan"),
            Self::Metal => Some("metal"),
        }
    }

    /// Variables that cargo's environment needs; RUSTFLAGS extends the value that is already set.
    pub fn environment(self) -> Vec<(&'static str, String)> {
        match self {
            Self::CudaNvrtc => {
                let own = std::env::var("RUSTFLAGS").unwrap_or_default();
                let flags = format!("{own} {WITHOUT_LLVM}");
                vec![no_llvm(), ("RUSTFLAGS", flags.trim_start().to_owned())]
            }
            _ => Vec::new(),
        }
    }
}

/// Keeps the build scripts of CubeCL's own compiler from downloading LLVM.
pub fn no_llvm() -> (&'static str, String) {
    ("DOCS_RS", "1".to_owned())
}

/// All device names, for messages.
pub fn devices() -> String {
    DEVICES.map(|(name, _)| name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_decides_the_feature() {
        for (device, feature) in [
            ("cpu", None),
            ("cuda", Some("cuda")),
            ("cuda:1", Some("cuda")),
            ("wgpu", Some("wgpu")),
            ("vulkan:0", Some("vulkan")),
            ("metal", Some("metal")),
        ] {
            let backend = Backend::of(device, false).unwrap();
            assert_eq!(backend.feature(), feature, "{device}");
            assert!(backend.environment().is_empty(), "{device}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn nvrtc_builds_cuda_without_llvm() {
        let backend = Backend::of("cuda:1", true).unwrap();
        assert_eq!(backend.feature(), Some("cuda-nvrtc"));
        let [no_llvm, (name, flags)] = backend.environment().try_into().unwrap();
        assert_eq!(no_llvm, ("DOCS_RS", "1".to_owned()));
        assert_eq!(name, "RUSTFLAGS");
        assert!(flags.ends_with(WITHOUT_LLVM), "{flags}");
    }

    #[test]
    fn a_wrong_device_is_named_with_what_to_do() {
        for (device, nvrtc, says) in [
            ("tpu", false, "unknown device 'tpu'; known devices: cpu, cuda, wgpu, vulkan, metal"),
            ("CUDA:0", false, "'CUDA:0'"),
            ("", true, "''"),
            ("cuda,wgpu", true, "one device"),
            ("wgpu", true, "--nvrtc is for --device cuda, not for wgpu"),
            ("cpu", true, "not for cpu"),
        ] {
            let message = Backend::of(device, nvrtc).unwrap_err().to_string();
            assert!(message.contains(says), "{message:?} does not say {says:?}");
        }
    }
}
