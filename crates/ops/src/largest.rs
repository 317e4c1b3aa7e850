//! How large a tensor may be.

use burn::tensor::Device;

/// The most bytes that one tensor may have on a device; none where only its memory limits them.
///
/// A GPU binds a tensor to a kernel as one buffer, whose size WGPU limits: to 2³¹ − 1 bytes at most, and to less on some
/// hardware.
pub fn largest_tensor(device: &Device) -> Option<usize> {
    #[cfg(feature = "cube")]
    if let burn::backend::DispatchDevice::Cube(device) =
        device.clone().without_autodiff().as_dispatch()
    {
        let client = device.client();
        let memory = &client.properties().memory;
        // What is allocated is a multiple of the alignment.
        let bytes = memory.max_page_size / memory.alignment * memory.alignment;
        return Some(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    let _ = device;
    None
}
