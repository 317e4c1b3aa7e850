//! What `fpo devices` lists: every device that `--device` accepts.

use anyhow::{Result, anyhow};
use burn::tensor::Device;

use crate::{
    Kind, all, compiled,
    facts::{Bfloat16, facts},
    failure::size,
    guard, is_there,
};

/// One line of the device list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name for `--device`; without hardware of this kind, the kind itself.
    pub name: String,
    /// Hardware, driver, memory and precision, or why the device is missing or unusable.
    pub about: String,
}

/// The devices of this machine, for all backends compiled in. Never empty for a kind: a missing device is a line that says why.
pub fn list() -> Vec<Listed> {
    Kind::compiled().flat_map(of_kind).collect()
}

/// The devices matching a name: all of a kind for `cuda`, one for `cuda:1`.
///
/// # Errors
/// An unknown name, a backend that isn't compiled in, or a number out of range.
pub fn list_named(name: &str) -> Result<Vec<Listed>> {
    let (kind, index) = compiled(name)?;
    let listed = of_kind(kind);
    let Some(index) = index else { return Ok(listed) };
    is_there(kind, Some(index)).map_err(|why| anyhow!("device `{name}`: {why}"))?;
    Ok(listed.into_iter().skip(index).take(1).collect())
}

fn of_kind(kind: Kind) -> Vec<Listed> {
    if kind == Kind::Cpu {
        return vec![Listed { name: kind.name().into(), about: processor() }];
    }
    if let Err(why) = is_there(kind, None) {
        return vec![Listed { name: kind.name().into(), about: format!("none: {why}") }];
    }
    let listed = all(kind).into_iter().enumerate().map(|(index, device)| {
        let about = guard(|| about(&device));
        let about = about.unwrap_or_else(|error| format!("cannot be used: {error:#}"));
        Listed { name: format!("{kind}:{index}"), about }
    });
    listed.collect()
}

/// What a device is, on one line: a GPU by the name that its driver gives it, with the machine's processor.
pub fn hardware(device: &Device) -> String {
    match facts(device) {
        Some(gpu) => format!("{}, {}", gpu.name, processor()),
        None => processor(),
    }
}

fn processor() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let name = crate::host::processor_name().map_or(String::new(), |name| format!("{name}, "));
    match crate::host::memory_gib() {
        Some(gib) => format!("{name}{threads} threads, {gib:.1} GiB"),
        None => format!("{name}{threads} threads"),
    }
}

/// Name, driver, memory, largest tensor and support for bfloat16.
fn about(device: &Device) -> Result<String> {
    let mut parts = adapter(device)?;
    let Some(facts) = facts(device) else { return Ok(parts.join(", ")) };
    parts.insert(0, facts.name);
    parts.push(match facts.memory {
        Some(bytes) => size(bytes),
        None => "memory unknown".into(),
    });
    parts.push(format!("tensors up to {}", size(facts.largest_tensor)));
    parts.push(Bfloat16::of(device).describe().into());
    Ok(parts.join(", "))
}

/// Hardware type and driver of a wgpu adapter. Opens the device through the one call that returns an error rather than panicking.
#[cfg(feature = "wgpu")]
fn adapter(device: &Device) -> Result<Vec<String>> {
    use burn::{
        backend::{CubeDevice, DispatchDevice, WgpuDeviceKind},
        tensor::{DeviceKind, wgpu::WgpuInitError},
    };
    let DispatchDevice::Cube(CubeDevice::Wgpu(wgpu)) = device.as_dispatch() else {
        return Ok(Vec::new());
    };
    let kind = match wgpu.kind {
        WgpuDeviceKind::DiscreteGpu(i) => DeviceKind::DiscreteGpu(i),
        WgpuDeviceKind::IntegratedGpu(i) => DeviceKind::IntegratedGpu(i),
        WgpuDeviceKind::VirtualGpu(i) => DeviceKind::VirtualGpu(i),
        WgpuDeviceKind::Cpu => DeviceKind::Cpu,
        // wgpu has no options to select these.
        _ => return Ok(Vec::new()),
    };
    let of_kind = kind_of_hardware(&kind);
    let options = Device::wgpu_options().device_kind(kind).graphics_api(wgpu.backend);
    let setup = match options.init_with_setup() {
        Ok((_, setup)) => setup,
        // Already opened by this process; its adapter can't be queried again.
        Err(WgpuInitError::Registration { .. }) => return Ok(vec![of_kind.into()]),
        Err(error) => return Err(error.into()),
    };
    let info = setup.adapter.get_info();
    let driver = format!("{} {}", info.driver, info.driver_info);
    Ok(vec![of_kind.into(), format!("{:?} through {}", info.backend, driver.trim())])
}

#[cfg(not(feature = "wgpu"))]
fn adapter(_device: &Device) -> Result<Vec<String>> {
    Ok(Vec::new())
}

#[cfg(feature = "wgpu")]
fn kind_of_hardware(kind: &burn::tensor::DeviceKind) -> &'static str {
    use burn::tensor::DeviceKind;
    match kind {
        DeviceKind::DiscreteGpu(_) => "discrete GPU",
        DeviceKind::IntegratedGpu(_) => "integrated GPU",
        DeviceKind::VirtualGpu(_) => "virtual GPU",
        DeviceKind::Cpu => "emulated on the CPU",
        _ => "GPU",
    }
}
