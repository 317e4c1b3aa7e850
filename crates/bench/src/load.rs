//! Benchmark of loading a checkpoint: from files in the operating system's cache to a model on the device.

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use fpo_device::{guard, sync};
use fpo_plan as plan;
use fpo_transformer::{
    Placement, Precision, PublishedModel, WeightType,
    weights::{self, Origin},
};
use serde::Serialize;

use crate::median;

/// What is loaded; on the command line, the arguments of `fpo bench load`.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadSizes {
    /// Folder of a checkpoint; without one, random weights of --model are written in bfloat16 to a temporary folder first.
    pub checkpoint: Option<PathBuf>,
    /// The published model whose sizes the temporary checkpoint has.
    #[arg(long, default_value = "smollm2-135m", conflicts_with = "checkpoint")]
    pub model: PublishedModel,
    /// float32, or bf16-mixed: the weights are held in bfloat16.
    #[arg(long, default_value_t)]
    pub precision: Precision,
    /// Loads to measure, after one that brings the files into the cache.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub repeats: u64,
}

/// The result of [`measure`].
#[derive(Clone, Debug, Serialize)]
pub struct LoadReport {
    /// Bytes of the weights' files.
    pub bytes: u64,
    /// Parameters of the model.
    pub parameters: u64,
    /// Time to draw the random weights and to write them; `None` for a given checkpoint.
    pub written_seconds: Option<[f64; 2]>,
    /// Time of the first load, from the disk or not.
    pub first_seconds: f64,
    /// Median of the other loads.
    pub seconds: f64,
    /// Bytes of the files by that time.
    pub bytes_per_second: f64,
}

/// Loads a checkpoint several times.
///
/// # Errors
/// A checkpoint that can't be read or written, a precision that the device lacks, or a device failure.
pub fn measure(sizes: &LoadSizes, device: &Device) -> Result<LoadReport> {
    guard(|| run(sizes, device))
}

fn run(sizes: &LoadSizes, device: &Device) -> Result<LoadReport> {
    plan::check_precision(device, sizes.precision)?;
    let temporary = tempfile::tempdir()?;
    let (folder, written_seconds) = match &sizes.checkpoint {
        Some(folder) => (folder.as_path(), None),
        None => {
            let begun = Instant::now();
            let model = weights::random(&sizes.model.config(), 0, &fpo_device::host())?;
            let drawn = begun.elapsed().as_secs_f64();
            let origin = Origin { weight_type: Some(WeightType::Bfloat16), ..Origin::default() };
            weights::save_from(&model, &origin, temporary.path())?;
            let written = begun.elapsed().as_secs_f64() - drawn;
            (temporary.path(), Some([drawn, written]))
        }
    };
    let bytes = weight_bytes(folder)?;
    let placement = Placement::new(device.clone(), sizes.precision);
    let mut times = Vec::new();
    let mut parameters = 0;
    for _ in 0..=sizes.repeats {
        let begun = Instant::now();
        let model = weights::load(folder, &placement)?;
        sync(device)?;
        times.push(begun.elapsed().as_secs_f64());
        parameters = plan::parameters(model.config());
    }
    let first_seconds = times.remove(0);
    let seconds = median(times);
    let bytes_per_second = bytes as f64 / seconds;
    Ok(LoadReport { bytes, parameters, written_seconds, first_seconds, seconds, bytes_per_second })
}

/// Bytes of the files with weights in a folder.
fn weight_bytes(folder: &std::path::Path) -> Result<u64> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".safetensors") || name.ends_with(".bin") {
            // A link's target, as in Hugging Face's cache.
            bytes += fs::metadata(entry.path())?.len();
        }
    }
    ensure!(bytes > 0, "{}: no weights in this folder", folder.display());
    Ok(bytes)
}
