//! Whether a device supports a precision.

use anyhow::{Result, bail};
use burn::tensor::Device;
use fpo_device::facts::{Bfloat16, facts};
use fpo_transformer::Precision;

/// Checks that a device computes in `precision`.
///
/// # Errors
/// `bf16-mixed` on a device that doesn't compute in bfloat16.
pub fn check_precision(device: &Device, precision: Precision) -> Result<()> {
    let bfloat16 = Bfloat16::of(device);
    if precision == Precision::Bf16Mixed && bfloat16 != Bfloat16::Computes {
        bail!(
            "precision {precision}: {} ({}); float32 works everywhere",
            facts(device).map_or_else(|| format!("{device:?}"), |facts| facts.name),
            bfloat16.describe()
        );
    }
    Ok(())
}
