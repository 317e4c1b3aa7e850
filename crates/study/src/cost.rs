//! What an alignment takes: time and memory. Never the same twice, so it is kept apart from what was measured.

use std::{fs, io::Write, path::Path, time::Instant};

use anyhow::{Context, Result};
use burn::tensor::Device;
use fpo_data::atomic;
use fpo_device::hardware;
use serde::{Deserialize, Serialize};

const FILE: &str = "cost.json";

/// Of an alignment that one process did from its first step to its last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// The device and what it is.
    pub hardware: String,
    /// Wall clock of the stage align, loading and saving included.
    pub seconds: f64,
    /// The most memory that the process held in it, where the system says so: on Linux.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
}

/// Does an alignment, and notes what it took in the run's folder, unless it only continues an earlier one.
///
/// # Errors
/// Those of `work`, or the disk's.
pub fn metered<T>(folder: &Path, device: &Device, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let is_done = folder.join("align").exists();
    let checkpoints = fs::read_dir(folder.join("checkpoints/align"));
    let began = checkpoints.is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != "stage.json"))
    });
    if is_done || began {
        return work();
    }
    let forgot = forget_peak();
    let begun = Instant::now();
    let value = work()?;
    let seconds = begun.elapsed().as_secs_f64();
    let peak_bytes = peak_bytes().filter(|_| forgot);
    let cost = Cost { hardware: hardware(device), seconds, peak_bytes };
    let text = serde_json::to_string_pretty(&cost)?;
    let path = folder.join(FILE);
    atomic::write_file(&path, |file| -> Result<()> { Ok(writeln!(file, "{text}")?) })
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(value)
}

/// What a run's alignment took; none where it was interrupted.
pub fn read(folder: &Path) -> Option<Cost> {
    let text = fs::read_to_string(folder.join(FILE)).ok()?;
    serde_json::from_str(&text).ok()
}

/// Starts the process's peak anew (proc_pid_clear_refs(5)). Whether that was possible: else there is no peak of an alignment alone.
fn forget_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Peak resident memory since [`forget_peak`].
fn peak_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Oracle: the size of what is allocated.
    #[test]
    #[cfg(target_os = "linux")]
    fn the_peak_is_of_the_work_alone() {
        let peak = |bytes: usize| {
            forget_peak();
            let held = vec![1_u8; bytes];
            std::hint::black_box(&held);
            peak_bytes().unwrap()
        };
        let large = peak(200 << 20);
        let small = peak(1 << 20);
        assert!(large > small + (150 << 20), "{large} {small}");
    }
}
