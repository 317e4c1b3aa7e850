//! Devices by name.

use anyhow::{Result, bail};
use burn::tensor::Device;

/// The device that a name such as `cpu` or `cuda:1` means.
pub fn parse(name: &str) -> Result<Device> {
    let kind = name.split(':').next().unwrap_or(name);
    match kind {
        #[cfg(feature = "flex")]
        "cpu" if name == "cpu" => Ok(Device::flex()),
        "cpu" | "cuda" | "wgpu" | "vulkan" | "metal" => bail!(
            "device `{name}`: this binary has no `{kind}` backend ({}); `cargo xtask train --device {name}` builds one that has",
            compiled().join(", ")
        ),
        _ => bail!("no device `{name}`: there are cpu, cuda, cuda:N, wgpu, vulkan and metal"),
    }
}

/// What this binary was compiled with.
pub fn compiled() -> Vec<&'static str> {
    let all = [(cfg!(feature = "flex"), "cpu")];
    all.into_iter().filter(|(there, _)| *there).map(|(_, name)| name).collect()
}
