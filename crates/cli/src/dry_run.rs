//! `fpo train --dry-run`: what a run would do and need.

use std::fmt::Write;

use anyhow::{Context, Result};
use burn::tensor::Device;
use fpo_bench::matmul_rate;
use fpo_config::Settings;
use fpo_device::{progress::Reporter, size};
use fpo_plan::{Cache, Disk, Stage, work};
use fpo_trainer::{
    run::{Existing, Run},
    stages::prepare,
};

/// Share of the matrix rate that stages reach, for the estimate of their time; see BENCHMARKS.md.
const SHARE: f64 = 0.4;

/// Prepares the data in a temporary folder, and says what would follow. Nothing else is written, and no model is loaded.
pub fn describe(settings: &Settings, device: &Device) -> Result<String> {
    let folder = tempfile::tempdir().context("creating a temporary folder")?;
    let (s, silent) = (settings.clone(), Reporter::silent());
    let run = Run::open(&folder.path().join("run"), s, device.clone(), Existing::Keep, silent)?;
    let prepared = prepare::prepare(&run)?;
    let counts = prepared.counts();
    let s = settings;
    let sft = s.sft.length().steps(prepared.sft.len());
    let align = s.align.length().steps(prepared.train.len());
    let sae = match s.features() && s.sae.path.is_none() {
        true => s.sae.training.steps,
        false => 0,
    };
    let steps = [("sft", sft), ("sae", sae), ("align", align)];
    let rate = matmul_rate(device, s.model.precision)?;

    let mut text = format!(
        "data        {} examples, {} pairs to train on, {} held out, {} prompts\n",
        prepared.sft.len(),
        prepared.train.len(),
        prepared.held_out.len(),
        counts.prompts.min(s.evaluate.prompts)
    );
    writeln!(
        text,
        "tokens      {} of examples, {} of training pairs, {} held out\n",
        counts.sft_tokens, counts.train_tokens, counts.held_out_tokens
    )?;
    writeln!(text, "{:<12}{:>8}{:>12}{:>14}", "stage", "steps", "memory", "time, about")?;
    let mut total = 0.0;
    for (stage, flops) in work(s, &counts)? {
        let seconds = flops / (SHARE * rate);
        total += seconds;
        let steps = steps.iter().find(|(name, _)| *name == stage).map(|(_, steps)| *steps);
        let memory = Stage::ALL.into_iter().find(|known| known.name() == stage);
        let memory = match memory {
            None => None,
            Some(known) => known.memory(s)?.map(|memory| size(memory.total())),
        };
        writeln!(
            text,
            "{stage:<12}{:>8}{:>12}{:>14}",
            steps.map_or(String::new(), |steps| steps.to_string()),
            memory.unwrap_or_default(),
            duration(seconds)
        )?;
    }
    writeln!(text, "{:<12}{:>8}{:>12}{:>14}\n", "all", "", "", duration(total))?;
    let pairs = prepared.train.len() + prepared.held_out.len();
    let (disk, cache) = (Disk::of(s)?.peak([false, false]), Cache::of(s).bytes(pairs));
    writeln!(
        text,
        "disk        {} for models and checkpoints, at most {} for the reference",
        size(disk),
        size(cache)
    )?;
    write!(
        text,
        "time        at {:.0} % of the {:.2} TFLOP/s measured on this device; loading, writing and compiling come on top",
        100.0 * SHARE,
        rate / 1e12
    )?;
    Ok(text)
}

/// Such as `45 s`, `12 min` or `3.5 h`.
fn duration(seconds: f64) -> String {
    match seconds {
        ..90.0 => format!("{seconds:.0} s"),
        ..5400.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}
