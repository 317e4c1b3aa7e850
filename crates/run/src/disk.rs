//! Room on the disk.

use std::path::Path;

use anyhow::{Result, bail};
use fpo_config::Settings;
use fpo_device::size;
use fpo_plan::Disk;

/// Refuses a run whose models and checkpoints can't fit, before it writes anything. What is there already counts as room, since a
/// continued run keeps it.
///
/// # Errors
/// Says how much is needed and how much there is.
pub(crate) fn check(folder: &Path, settings: &Settings) -> Result<()> {
    let Some(free) = free(folder) else { return Ok(()) };
    // A model whose sizes aren't known yet is refused elsewhere, with a message of its own.
    let Ok(disk) = Disk::of(settings) else { return Ok(()) };
    let need = disk.peak(["sft", "align"].map(|stage| folder.join(stage).exists()));
    if need > free {
        bail!(
            "{}: the run's models and checkpoints take up to {}, and the disk has {} free; choose a --run on another disk, or train \
             adapters (align.lora.rank=16)",
            folder.display(),
            size(need),
            size(free)
        );
    }
    Ok(())
}

/// Bytes that this user may still write where the folder is or would be; none where the system doesn't say.
#[cfg(unix)]
fn free(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|path| path.exists());
    let there = there.unwrap_or(Path::new("."));
    let found = rustix::fs::statvfs(there).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(not(unix))]
fn free(_folder: &Path) -> Option<u64> {
    None
}
