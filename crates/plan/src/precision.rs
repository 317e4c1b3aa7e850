//! Types that a device can compute in.

use anyhow::{Result, bail};
use burn::tensor::Device;
use fpo_device::facts::{Bfloat16, facts};
use fpo_transformer::Precision;

/// Refuses a precision that a device can't compute in.
///
/// # Errors
/// bfloat16 on a device that lacks it, or can only store it.
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
