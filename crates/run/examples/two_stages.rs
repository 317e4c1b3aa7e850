//! A run of two stages: made, found up to date, and a change that would discard them.
//!
//! `cargo run --release -p fpo-run --example two_stages`

use std::fs;

use anyhow::Result;
use burn::tensor::Device;
use fpo_config::Settings;
use fpo_data::Fingerprint;
use fpo_device::progress::Reporter;
use fpo_run::{Existing, Run, Stale};

/// Two stages whose work is a line of text.
fn stages(run: &Run) -> Result<()> {
    let seed = run.settings.seed;
    let prepared =
        run.stage("prepared", Fingerprint::default().with("seed", seed), |workspace| {
            Ok(fs::write(workspace.output.join("data.txt"), format!("data of seed {seed}\n"))?)
        })?;
    let made_from = Fingerprint::default().with("prepared", &prepared.hash);
    run.stage("sft", made_from, |workspace| {
        Ok(fs::write(workspace.output.join("model.txt"), "a model\n")?)
    })?;
    Ok(())
}

fn main() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let folder = temporary.path().join("run");
    let open = |seed: u64, existing| {
        let settings = Settings::resolve("smoke", None, &[format!("seed={seed}")])?;
        Run::open(&folder, settings, Device::flex(), existing, Reporter::silent())
    };
    // Each in a block, since a run's folder is locked while it is open.
    {
        let run = open(0, Existing::Keep)?;
        stages(&run)?;
    }
    {
        let run = open(1, Existing::Keep)?;
        let refused = run.settle(|| stages(&run)).unwrap_err();
        println!("refused: {refused}\n");
        assert!(refused.is::<Stale>());
    }
    let run = open(1, Existing::Overwrite)?;
    run.settle(|| stages(&run))?;
    stages(&run)?;
    print!("made again: {}", fs::read_to_string(folder.join("prepared/data.txt"))?);
    Ok(())
}
