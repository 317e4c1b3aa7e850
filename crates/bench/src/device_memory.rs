//! Peak memory of a device during a measurement.

use burn::tensor::Device;
use fpo_device::facts::{Held, held};

/// The maximum that a device's allocator held over all samples. The CPU has no such allocator, so there it stays `None`.
#[derive(Clone, Debug)]
pub(crate) struct DeviceMemory {
    device: Device,
    peak: Option<Held>,
}

impl DeviceMemory {
    pub(crate) fn new(device: &Device) -> Self {
        Self { device: device.clone(), peak: None }
    }

    /// Samples the allocator.
    pub(crate) fn sample(&mut self) {
        let Some(now) = held(&self.device) else { return };
        let before = self.peak.unwrap_or(now);
        self.peak = Some(Held {
            in_use: before.in_use.max(now.in_use),
            reserved: before.reserved.max(now.reserved),
        });
    }

    /// Peaks in MiB: in use, reserved.
    pub(crate) fn mib(&self) -> Option<(f64, f64)> {
        const MIB: f64 = (1 << 20) as f64;
        self.peak.map(|held| (held.in_use as f64 / MIB, held.reserved as f64 / MIB))
    }
}
