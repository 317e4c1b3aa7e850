//! Whether CUDA can be used here, asked before anything panics over it: driver, devices, the compiler's library. And what a device
//! can do that CubeCL does not tell.

use std::fmt;
#[cfg(any(feature = "cuda", test))]
use std::path::Path;
#[cfg(feature = "cuda")]
use std::path::PathBuf;

/// `12.8`, as CUDA counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl Version {
    /// Of `cuDriverGetVersion`, where 12.8 is 12080.
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

/// The first compute capability with instructions for bfloat16: Ampere's.
const AMPERE: Version = Version { major: 8, minor: 0 };

/// Whether a part of this compute capability is taken to compute in bfloat16. CubeCL says so of every part, and on those before
/// Ampere leaves it to the compiler to emulate; nobody has tried whether that works.
pub fn computes_in_bfloat16(capability: Version) -> bool {
    capability >= AMPERE
}

/// The NVIDIA driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Its library is not there.
    Missing,
    /// It would not start, with this code of `CUresult`.
    Refuses(u32),
    /// It runs programs of CUDA up to `cuda`, on so many devices.
    Works { cuda: Version, devices: usize },
}

/// What turns kernels into code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// Part of this program.
    BuiltIn,
    /// The same, without the toolkit's file of mathematical functions.
    WithoutLibdevice,
    /// NVRTC, whose library is not there.
    Missing,
    /// NVRTC.
    Nvrtc(Version),
}

/// Whether device `index` can be used, or why not and what to do.
pub fn judge(driver: Driver, compiler: Compiler, index: usize) -> Result<(), String> {
    let (cuda, devices) = match driver {
        Driver::Missing => {
            return Err("there is no NVIDIA driver here (its library libcuda.so.1, nvcuda.dll on Windows, is not found); \
                        install the driver, and start a container with its GPUs (--gpus all)"
                .into());
        }
        Driver::Refuses(code) => return Err(refusal(code)),
        Driver::Works { devices: 0, .. } => {
            return Err("the NVIDIA driver sees no GPU; CUDA_VISIBLE_DEVICES may hide it".into());
        }
        Driver::Works { cuda, devices } => (cuda, devices),
    };
    if index >= devices {
        let last = devices - 1;
        return Err(format!(
            "there is no such GPU: the driver sees {devices}, cuda:0 to cuda:{last}"
        ));
    }
    match compiler {
        Compiler::BuiltIn => Ok(()),
        Compiler::WithoutLibdevice => Err(
            "CUDA's toolkit is not found: kernels take exp, tanh and the like from its nvvm/libdevice/libdevice.10.bc; install the \
             toolkit, or its package cuda-nvvm, and let CUDA_PATH name its folder (/usr/local/cuda if it is not set)"
                .into(),
        ),
        Compiler::Missing => Err(format!(
            "kernels are compiled by NVRTC, whose library (libnvrtc.so, nvrtc64_*.dll on Windows) is not found; install CUDA's \
             toolkit, or its packages cuda-nvrtc and cuda-cudart-dev, in a version up to {cuda}, which is the driver's"
        )),
        Compiler::Nvrtc(version) if version > cuda => Err(format!(
            "the driver is too old: it runs CUDA {cuda}, and NVRTC here is of CUDA {version}; install a newer NVIDIA driver, or an \
             NVRTC of CUDA {cuda} or before"
        )),
        Compiler::Nvrtc(_) => Ok(()),
    }
}

/// What a code of `CUresult` says about why the driver does not start (CUDA driver API, `cuInit`).
fn refusal(code: u32) -> String {
    let why = match code {
        34 => {
            "the library found is a stub for linking, not a driver: leave CUDA's `stubs` folder out of LD_LIBRARY_PATH"
        }
        100 => "it sees no GPU; CUDA_VISIBLE_DEVICES may hide it",
        803 => {
            "its library and its kernel module are of different versions, as after an update: restart the machine"
        }
        804 => {
            "the compatibility library of a newer CUDA does not support this GPU: install a newer driver"
        }
        802 => "the GPUs' fabric manager is not ready: start nvidia-fabricmanager",
        999 => {
            "it does not say why; often the kernel module nvidia_uvm is not loaded, or a container has no GPU"
        }
        _ => "`nvidia-smi` may say more",
    };
    format!("the NVIDIA driver does not start (CUDA error {code}): {why}")
}

/// Asks the driver, and NVRTC where kernels go through it.
#[cfg(feature = "cuda")]
pub fn ask() -> (Driver, Compiler) {
    (ask_driver(), ask_compiler())
}

#[cfg(feature = "cuda")]
fn ask_driver() -> Driver {
    use cudarc::driver::{result, sys};
    // SAFETY: it only tries to open a library by its usual names.
    if !unsafe { sys::is_culib_present() } {
        return Driver::Missing;
    }
    if let Err(error) = result::init() {
        return Driver::Refuses(error.0 as u32);
    }
    let mut version = 0;
    // SAFETY: the number that is written lives as long as the call.
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

/// The compute capability of device `index`, where the driver tells.
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
        // SAFETY: the device is one that the driver gave.
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
    // SAFETY: it only tries to open a library by its usual names.
    if !unsafe { sys::is_culib_present() } {
        return Compiler::Missing;
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the numbers that are written live as long as the call.
    match unsafe { sys::nvrtcVersion(&mut major, &mut minor) } {
        sys::nvrtcResult::NVRTC_SUCCESS => {
            Compiler::Nvrtc(Version { major: major.max(0) as u32, minor: minor.max(0) as u32 })
        }
        _ => Compiler::Missing,
    }
}

/// Whether the built-in compiler finds its mathematical functions; it looks nowhere else where a toolkit is `given`.
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
    fn versions_are_counted_as_cuda_does() {
        for (number, text) in [(12080, "12.8"), (13000, "13.0"), (11040, "11.4")] {
            assert_eq!(Version::of_driver(number).to_string(), text);
        }
        assert!(OLD < NEW && Version::of_driver(12040) > OLD);
    }

    #[test]
    fn bfloat16_begins_with_ampere() {
        for (major, minor, computes) in
            [(6, 1, false), (7, 0, false), (7, 5, false), (8, 0, true), (8, 9, true), (10, 0, true)]
        {
            let capability = Version { major, minor };
            assert_eq!(computes_in_bfloat16(capability), computes, "{capability}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
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
            (works, Compiler::Nvrtc(NEW), 0, "runs CUDA 12.2, and NVRTC here is of CUDA 13.0"),
        ] {
            let message = judge(driver, compiler, index).unwrap_err();
            assert!(message.contains(says), "{message:?} does not say {says:?}");
        }
        for compiler in [Compiler::BuiltIn, Compiler::Nvrtc(OLD)] {
            assert_eq!(judge(works, compiler, 1), Ok(()));
        }
    }

    #[test]
    fn libdevice_is_looked_for_in_the_toolkit_that_is_given() {
        let toolkit = tempfile::tempdir().unwrap();
        assert!(!has_libdevice(Some(toolkit.path())));
        let folder = toolkit.path().join("nvvm/libdevice");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("libdevice.10.bc"), "").unwrap();
        assert!(has_libdevice(Some(toolkit.path())));
    }
}
