//! Timing of one product.

use std::time::{Duration, Instant};

use burn_cubecl::cubecl::{client::Client, future::block_on};
use fpo_products::ProductError;

/// Measured times of a product.
pub struct Times {
    /// The first run, including the compilation of the kernel.
    pub first: Duration,
    /// Median of the device's time per product.
    pub device: Option<Duration>,
    /// Mean over a batch of queued products, by the host's clock.
    pub queued: Duration,
}

impl Times {
    /// The device's time, or the host's if the device has no clock.
    pub fn best(&self) -> Duration {
        self.device.unwrap_or(self.queued)
    }
}

/// Limits of a measurement: repetitions, and time for each of its two loops.
const MOST: u32 = 30;
const ROOM: Duration = Duration::from_millis(60);

/// Times a product that was computed once before; that took `first`.
pub fn repeat(
    client: &Client,
    first: Duration,
    queue: &dyn Fn() -> Result<(), ProductError>,
    wait: &dyn Fn() -> Result<(), ProductError>,
) -> Result<Times, ProductError> {
    let begun = Instant::now();
    queue()?;
    wait()?;
    let once = begun.elapsed();
    let count = (ROOM.as_secs_f64() / once.as_secs_f64().max(1e-6)) as u32;
    let count = count.clamp(3, MOST);

    let begun = Instant::now();
    for _ in 0..count {
        queue()?;
    }
    wait()?;
    let queued = begun.elapsed() / count;

    let mut measured = Vec::new();
    for _ in 0..count {
        let Ok(window) = client.profile_start() else { break };
        queue()?;
        let Ok(duration) = client.profile_end(window) else { break };
        measured.extend(block_on(duration.resolve()).map(|ticks| ticks.duration()));
    }
    measured.sort();
    let device = measured.get(measured.len() / 2).copied();
    Ok(Times { first, device, queued })
}
