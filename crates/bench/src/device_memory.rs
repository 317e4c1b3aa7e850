//! The memory of a device during a measurement.

use burn::tensor::Device;

use fpo_device::facts::{Held, held};

/// The most that a device's allocator held, over the moments at which it was asked. Absent on the CPU, which has none.
#[derive(Clone, Debug)]
pub struct DeviceMemory {
    device: Device,
    most: Option<Held>,
}

impl DeviceMemory {
    /// Before anything was asked.
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone(), most: None }
    }

    /// Asks.
    pub fn ask(&mut self) {
        let Some(now) = held(&self.device) else { return };
        let before = self.most.unwrap_or(now);
        self.most = Some(Held {
            in_use: before.in_use.max(now.in_use),
            reserved: before.reserved.max(now.reserved),
        });
    }

    /// MiB in use and reserved.
    pub fn mib(&self) -> Option<(f64, f64)> {
        const MIB: f64 = (1 << 20) as f64;
        self.most.map(|held| (held.in_use as f64 / MIB, held.reserved as f64 / MIB))
    }
}
