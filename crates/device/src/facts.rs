//! Properties that a GPU reports: name, memory, support for bfloat16.

use burn::tensor::Device;

/// Properties of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Name as reported by the driver.
    pub name: String,
    /// Total memory in bytes, if the driver reports it.
    pub memory: Option<u64>,
    /// The largest single tensor in bytes.
    pub largest_tensor: u64,
}

/// Memory held by a device's allocator, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Used by tensors.
    pub in_use: u64,
    /// Allocated from the driver: in use or cached for reuse.
    pub reserved: u64,
}

/// What a device's allocator holds now; `None` on the CPU, which has no allocator of its own.
pub fn held(device: &Device) -> Option<Held> {
    let usage = device.memory_pool_usage()?;
    Some(Held { in_use: usage.bytes_in_use, reserved: usage.bytes_reserved })
}

/// The properties of a GPU; `None` for the CPU. Opens the device.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub fn facts(device: &Device) -> Option<Facts> {
    use burn::backend::DispatchDevice;
    let cube = match device.as_dispatch() {
        DispatchDevice::Cube(cube) => cube,
        DispatchDevice::Autodiff(inner) => return facts(&Device::new(inner.clone().inner())),
        #[allow(unreachable_patterns)]
        _ => return None,
    };
    let client = cube.client();
    let properties = client.properties();
    Some(Facts {
        name: properties.identity.name.clone(),
        memory: properties.memory.max_memory(),
        largest_tensor: fpo_ops::largest_tensor(device)? as u64,
    })
}

/// `None`: this build has no GPU backend.
#[cfg(not(any(feature = "cuda", feature = "wgpu")))]
pub fn facts(_device: &Device) -> Option<Facts> {
    None
}

/// The compute capability of a CUDA device; `None` for other backends.
#[cfg(feature = "cuda")]
fn cuda_capability(device: &Device) -> Option<crate::cuda_driver::Version> {
    use burn::backend::{CubeDevice, DispatchDevice};
    match device.clone().without_autodiff().as_dispatch() {
        DispatchDevice::Cube(CubeDevice::Cuda(cuda)) => crate::cuda_driver::capability(cuda.index),
        _ => None,
    }
}

/// A device's support for bfloat16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bfloat16 {
    /// Full support.
    Computes,
    /// Storage and conversion only.
    Stores,
    /// No support.
    Lacks,
}

impl Bfloat16 {
    /// The support that a device reports, except that CUDA GPUs before Ampere count as [`Self::Stores`].
    pub fn of(device: &Device) -> Self {
        use burn::{
            backend::{Backend, DTypeUsage, Dispatch},
            tensor::DType,
        };
        #[cfg(feature = "cuda")]
        if let Some(capability) = cuda_capability(device)
            && !crate::cuda_driver::computes_in_bfloat16(capability)
        {
            return Self::Stores;
        }
        if device.supports_dtype(DType::BF16) {
            return Self::Computes;
        }
        match Dispatch::dtype_usage(device.as_dispatch(), DType::BF16).contains(DTypeUsage::Storage)
        {
            true => Self::Stores,
            false => Self::Lacks,
        }
    }

    /// A phrase for messages, such as `computes in bfloat16`.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Computes => "computes in bfloat16",
            Self::Stores => "stores bfloat16 but doesn't compute in it",
            Self::Lacks => "no bfloat16",
        }
    }
}
