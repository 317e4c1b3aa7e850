//! What a GPU says of itself.

use burn::tensor::Device;

/// What is known of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The part's name, as its driver has it.
    pub name: String,
    /// All of its memory, in bytes, where the driver tells.
    pub memory: Option<u64>,
    /// The largest tensor that fits in one piece, in bytes.
    pub largest_tensor: u64,
}

/// Bytes that a device's allocator holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// By tensors.
    pub in_use: u64,
    /// Taken from the driver: in use, or kept to be used again.
    pub reserved: u64,
}

/// What a device's allocator holds now; none on the CPU, which has no allocator of its own.
pub fn held(device: &Device) -> Option<Held> {
    let usage = device.memory_pool_usage()?;
    Some(Held { in_use: usage.bytes_in_use, reserved: usage.bytes_reserved })
}

/// The facts of a GPU, which this opens; none of a processor.
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

/// No GPU is compiled in.
#[cfg(not(any(feature = "cuda", feature = "wgpu")))]
pub fn facts(_device: &Device) -> Option<Facts> {
    None
}

/// The compute capability of a device of CUDA's.
#[cfg(feature = "cuda")]
fn cuda_capability(device: &Device) -> Option<crate::cuda_driver::Version> {
    use burn::backend::{CubeDevice, DispatchDevice};
    match device.clone().without_autodiff().as_dispatch() {
        DispatchDevice::Cube(CubeDevice::Cuda(cuda)) => crate::cuda_driver::capability(cuda.index),
        _ => None,
    }
}

/// What a device can do with bfloat16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bfloat16 {
    /// Everything.
    Computes,
    /// Keeps and converts it, no more.
    Stores,
    /// Nothing.
    Lacks,
}

impl Bfloat16 {
    /// What the device says.
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

    /// In words.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Computes => "computes in bfloat16",
            Self::Stores => "stores bfloat16, does not compute in it",
            Self::Lacks => "no bfloat16",
        }
    }
}
