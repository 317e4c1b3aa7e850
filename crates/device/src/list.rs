//! What `fpo devices` lists: every device that a `--device` can name.

use anyhow::{Result, anyhow};
use burn::tensor::Device;

use crate::{
    Kind, all, compiled,
    facts::{Bfloat16, facts},
    failure::size,
    guard, is_there,
};

/// A line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// What `--device` calls it; of a kind of which there is none, that kind.
    pub name: String,
    /// What it is, or why there is none.
    pub about: String,
}

/// The devices of this machine, of all kinds that this binary was compiled for.
pub fn list() -> Vec<Listed> {
    Kind::compiled().flat_map(of_kind).collect()
}

/// Those that a name such as `cuda` or `cuda:1` means.
///
/// # Errors
/// An unknown name, a backend that is not compiled in, or a number that no device has.
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

fn processor() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    match crate::host::memory_gib() {
        Some(gib) => format!("{threads} threads, {gib:.1} GiB"),
        None => format!("{threads} threads"),
    }
}

/// Name, driver, memory, and what bounds a model's size and precision.
fn about(device: &Device) -> Result<String> {
    let mut parts = adapter(device)?;
    let Some(facts) = facts(device) else { return Ok(parts.join(", ")) };
    parts.insert(0, facts.name);
    parts.push(match facts.memory {
        Some(bytes) => size(bytes),
        None => "memory not told".into(),
    });
    parts.push(format!("tensors up to {}", size(facts.largest_tensor)));
    parts.push(Bfloat16::of(device).describe().into());
    Ok(parts.join(", "))
}

/// What the graphics API knows of an adapter beyond its name. It opens the device, in a way that returns what is wrong.
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
        // No options for it.
        _ => return Ok(Vec::new()),
    };
    let hardware = hardware(&kind);
    let options = Device::wgpu_options().device_kind(kind).graphics_api(wgpu.backend);
    let setup = match options.init_with_setup() {
        Ok((_, setup)) => setup,
        // It was opened before, and its adapter is not at hand.
        Err(WgpuInitError::Registration { .. }) => return Ok(vec![hardware.into()]),
        Err(error) => return Err(error.into()),
    };
    let info = setup.adapter.get_info();
    let driver = format!("{} {}", info.driver, info.driver_info);
    Ok(vec![hardware.into(), format!("{:?} through {}", info.backend, driver.trim())])
}

#[cfg(not(feature = "wgpu"))]
fn adapter(_device: &Device) -> Result<Vec<String>> {
    Ok(Vec::new())
}

#[cfg(feature = "wgpu")]
fn hardware(kind: &burn::tensor::DeviceKind) -> &'static str {
    use burn::tensor::DeviceKind;
    match kind {
        DeviceKind::DiscreteGpu(_) => "a card",
        DeviceKind::IntegratedGpu(_) => "part of the processor",
        DeviceKind::VirtualGpu(_) => "virtual",
        DeviceKind::Cpu => "emulated by the processor",
        _ => "a GPU",
    }
}
