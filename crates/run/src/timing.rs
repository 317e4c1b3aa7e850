//! Wall clock and hardware of a run's stages, in `timing.json`: the one file of a run that is never the same twice, which is why nothing
//! of it is in any other.

use std::{collections::BTreeMap, fs, io::Write, path::Path};

use anyhow::{Context, Result};
use fpo_data::atomic;
use serde::{Deserialize, Serialize};

/// Its name in the run's folder.
pub const TIMING_FILE: &str = "timing.json";

/// What a stage took, in the process that finished it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageTiming {
    /// The device and what it is.
    pub hardware: String,
    /// Wall clock.
    pub seconds: f64,
    /// Tokens that went through the model in training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Tokens per second of the whole stage, loading and saving included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Most of the machine's own memory that the process held at once, in MiB; a GPU's isn't in it. Only on Linux.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_mib: Option<f64>,
}

/// Of all stages, by name.
pub type Timing = BTreeMap<String, StageTiming>;

/// What a run's folder says; nothing where it says nothing.
pub fn read(folder: &Path) -> Timing {
    let text = fs::read_to_string(folder.join(TIMING_FILE)).unwrap_or_default();
    // What is damaged is written again with the next stage.
    serde_json::from_str(&text).unwrap_or_default()
}

/// Adds a stage.
pub(crate) fn add(folder: &Path, stage: &str, timing: StageTiming) -> Result<()> {
    let mut all = read(folder);
    all.insert(stage.to_owned(), timing);
    let text = serde_json::to_string_pretty(&all)?;
    let path = folder.join(TIMING_FILE);
    atomic::write_file(&path, |file| -> Result<()> { Ok(writeln!(file, "{text}")?) })
        .with_context(|| format!("writing {}", path.display()))
}
