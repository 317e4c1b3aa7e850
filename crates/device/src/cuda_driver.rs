//! Checks whether CUDA is usable before anything panics over it: driver, devices, the compiler's library. Also reads the compute
//! capability, which CubeCL doesn't expose.

use std::fmt;
#[cfg(any(feature = "cuda", test))]
use std::path::Path;
#[cfg(feature = "cuda")]
use std::path::PathBuf;

/// A CUDA version or a compute capability, such as `12.8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl Version {
    /// From the encoding of `cuDriverGetVersion`: 12080 is 12.8.
    pub fn of_driver(number: i32) -> Self {
        let number = number.max(0) as u32;
        Self { major: number / 1000, minor: number % 1000 / 10 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The first compute capability with bfloat16 instructions.
const AMPERE: Version = Version { major: 8, minor: 0 };

/// Whether a GPU of this compute capability computes in bfloat16. CubeCL claims it for every GPU, but before Ampere relies on the
/// compiler's emulation, which is untested.
pub fn computes_in_bfloat16(capability: Version) -> bool {
    capability >= AMPERE
}

/// State of the NVIDIA driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Its library isn't found.
    Missing,
    /// Initialisation failed with this `CUresult`.
    Refuses(u32),
    /// Supports CUDA versions up to `cuda`; sees this number of devices.
    Works { cuda: Version, devices: usize },
}

/// The compiler for kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// CubeCL's, part of this program.
    BuiltIn,
    /// CubeCL's, but the toolkit's libdevice, its library of mathematical functions, isn't found.
    WithoutLibdevice,
    /// NVRTC, but its library isn't found.
    Missing,
    /// NVRTC of this version.
    Nvrtc(Version),
}

/// Checks whether device `index` is usable. The error says why not and what to do.
pub fn judge(driver: Driver, compiler: Compiler, index: usize) -> Result<(), String> {
    let (cuda, devices) = match driver {
        Driver::Missing => {
            return Err("no NVIDIA driver found (libcuda.so.1, or nvcuda.dll on Windows, is missing); install the driver, and \
                        start containers with --gpus all"
                .into());
        }
        Driver::Refuses(code) => return Err(refusal(code)),
        Driver::Works { devices: 0, .. } => {
            return Err("the NVIDIA driver sees no GPU; check CUDA_VISIBLE_DEVICES".into());
        }
        Driver::Works { cuda, devices } => (cuda, devices),
    };
    if index >= devices {
        let last = devices - 1;
        return Err(format!("no such GPU: the driver sees {devices}, cuda:0 to cuda:{last}"));
    }
    match compiler {
        Compiler::BuiltIn => Ok(()),
        Compiler::WithoutLibdevice => Err(
            "CUDA toolkit not found: kernels need exp, tanh and others from its nvvm/libdevice/libdevice.10.bc; install the \
             toolkit or its package cuda-nvvm, and set CUDA_PATH to its folder (defaults to /usr/local/cuda)"
                .into(),
        ),
        Compiler::Missing => Err(format!(
            "NVRTC, which compiles the kernels, is not found (libnvrtc.so, or nvrtc64_*.dll on Windows); install the CUDA toolkit, \
             or its packages cuda-nvrtc and cuda-cudart-dev, in a version up to {cuda}, the newest that the driver supports"
        )),
        Compiler::Nvrtc(version) if version > cuda => Err(format!(
            "the driver is too old: it supports CUDA {cuda}, but NVRTC is from CUDA {version}; install a newer NVIDIA driver, or \
             NVRTC from CUDA {cuda} or earlier"
        )),
        Compiler::Nvrtc(_) => Ok(()),
    }
}

/// Explains a `CUresult` of the driver's initialisation (CUDA driver API, `cuInit`).
fn refusal(code: u32) -> String {
    let why = match code {
        34 => {
            "the library found is a stub for linking, not a driver: remove CUDA's `stubs` folder from LD_LIBRARY_PATH"
        }
        100 => "it sees no GPU; check CUDA_VISIBLE_DEVICES",
        803 => {
            "its library and its kernel module differ in version, as after an update: restart the machine"
        }
        804 => {
            "the compatibility library of a newer CUDA does not support this GPU: install a newer driver"
        }
        802 => "the fabric manager is not ready: start nvidia-fabricmanager",
        999 => {
            "unknown reason; often the kernel module nvidia_uvm is not loaded, or a container has no GPU"
        }
        _ => "`nvidia-smi` may say more",
    };
    format!("the NVIDIA driver does not start (CUDA error {code}): {why}")
}

/// The state of the driver and of the compiler.
#[cfg(feature = "cuda")]
pub fn ask() -> (Driver, Compiler) {
    (ask_driver(), ask_compiler())
}

#[cfg(feature = "cuda")]
fn ask_driver() -> Driver {
    use cudarc::driver::{result, sys};
    // SAFETY: this only tries to open a library by its usual names.
    if !unsafe { sys::is_culib_present() } {
        return Driver::Missing;
    }
    if let Err(error) = result::init() {
        return Driver::Refuses(error.0 as u32);
    }
    let mut version = 0;
    // SAFETY: the output parameter outlives the call.
    if let Err(error) = unsafe { sys::cuDriverGetVersion(&mut version) }.result() {
        return Driver::Refuses(error.0 as u32);
    }
    match result::device::get_count() {
        Ok(devices) => Driver::Works {
            cuda: Version::of_driver(version),
            devices: usize::try_from(devices).unwrap_or(0),
        },
        Err(error) => Driver::Refuses(error.0 as u32),
    }
}

/// The compute capability of device `index`, if the driver reports it.
#[cfg(feature = "cuda")]
pub fn capability(index: usize) -> Option<Version> {
    use cudarc::driver::{
        result::device::{get, get_attribute},
        sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        },
    };
    let device = get(i32::try_from(index).ok()?).ok()?;
    let ask = |attribute| {
        // SAFETY: the driver returned this device.
        let value = unsafe { get_attribute(device, attribute) };
        value.ok().and_then(|value| u32::try_from(value).ok())
    };
    Some(Version { major: ask(MAJOR)?, minor: ask(MINOR)? })
}

#[cfg(feature = "cuda")]
fn ask_compiler() -> Compiler {
    use cudarc::nvrtc::sys;
    if !cfg!(feature = "cuda-nvrtc") {
        let given = std::env::var_os("CUDA_PATH").map(PathBuf::from);
        return match has_libdevice(given.as_deref()) {
            true => Compiler::BuiltIn,
            false => Compiler::WithoutLibdevice,
        };
    }
    // SAFETY: this only tries to open a library by its usual names.
    if !unsafe { sys::is_culib_present() } {
        return Compiler::Missing;
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the output parameters outlive the call.
    match unsafe { sys::nvrtcVersion(&mut major, &mut minor) } {
        sys::nvrtcResult::NVRTC_SUCCESS => {
            Compiler::Nvrtc(Version { major: major.max(0) as u32, minor: minor.max(0) as u32 })
        }
        _ => Compiler::Missing,
    }
}

/// Whether the built-in compiler will find libdevice: in the toolkit `given` by `CUDA_PATH`, else in the usual folders.
#[cfg(any(feature = "cuda", test))]
fn has_libdevice(given: Option<&Path>) -> bool {
    const USUAL: [&str; 4] = ["/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda", "/usr"];
    let has = |root: &Path| root.join("nvvm/libdevice/libdevice.10.bc").is_file();
    given.map_or_else(|| USUAL.iter().any(|root| has(Path::new(root))), has)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Version = Version { major: 12, minor: 2 };
    const NEW: Version = Version { major: 13, minor: 0 };

    #[test]
    fn driver_versions_are_decoded() {
        for (number, text) in [(12080, "12.8"), (13000, "13.0"), (11040, "11.4")] {
            assert_eq!(Version::of_driver(number).to_string(), text);
        }
        assert!(OLD < NEW && Version::of_driver(12040) > OLD);
    }

    #[test]
    fn bfloat16_starts_with_ampere() {
        for (major, minor, computes) in
            [(6, 1, false), (7, 0, false), (7, 5, false), (8, 0, true), (8, 9, true), (10, 0, true)]
        {
            let capability = Version { major, minor };
            assert_eq!(computes_in_bfloat16(capability), computes, "{capability}");
        }
    }

    #[test]
    fn the_missing_part_is_named() {
        let works = Driver::Works { cuda: OLD, devices: 2 };
        for (driver, compiler, index, says) in [
            (Driver::Missing, Compiler::Missing, 0, "no NVIDIA driver"),
            (Driver::Refuses(100), Compiler::BuiltIn, 0, "CUDA_VISIBLE_DEVICES"),
            (Driver::Refuses(803), Compiler::BuiltIn, 0, "restart"),
            (Driver::Refuses(4), Compiler::BuiltIn, 0, "CUDA error 4"),
            (Driver::Works { cuda: OLD, devices: 0 }, Compiler::BuiltIn, 0, "sees no GPU"),
            (works, Compiler::BuiltIn, 2, "cuda:0 to cuda:1"),
            (works, Compiler::WithoutLibdevice, 0, "libdevice.10.bc"),
            (works, Compiler::Missing, 1, "libnvrtc"),
            (works, Compiler::Missing, 1, "up to 12.2"),
            (works, Compiler::Nvrtc(NEW), 0, "supports CUDA 12.2, but NVRTC is from CUDA 13.0"),
        ] {
            let message = judge(driver, compiler, index).unwrap_err();
            assert!(message.contains(says), "{message:?} does not say {says:?}");
        }
        for compiler in [Compiler::BuiltIn, Compiler::Nvrtc(OLD)] {
            assert_eq!(judge(works, compiler, 1), Ok(()));
        }
    }

    #[test]
    fn libdevice_is_found_in_the_given_toolkit() {
        let toolkit = tempfile::tempdir().unwrap();
        assert!(!has_libdevice(Some(toolkit.path())));
        let folder = toolkit.path().join("nvvm/libdevice");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("libdevice.10.bc"), "").unwrap();
        assert!(has_libdevice(Some(toolkit.path())));
    }
}
