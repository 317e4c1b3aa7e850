//! The largest tensor that a device can hold.

use burn::tensor::Device;

/// The most bytes that one tensor may have on a device; `None` if only its memory limits them.
///
/// A kernel binds a tensor as one buffer, whose size WGPU limits to 2³¹ − 1 bytes, and on some hardware to less.
pub fn largest_tensor(device: &Device) -> Option<usize> {
    #[cfg(feature = "cube")]
    if let burn::backend::DispatchDevice::Cube(device) =
        device.clone().without_autodiff().as_dispatch()
    {
        let client = device.client();
        let memory = &client.properties().memory;
        // Allocations are multiples of the alignment.
        let bytes = memory.max_page_size / memory.alignment * memory.alignment;
        return Some(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    let _ = device;
    None
}
