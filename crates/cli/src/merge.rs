//! `fpo merge`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use fpo_data::atomic;
use fpo_transformer::{Placement, Precision, adapter, weights};

use super::loaded::Loaded;

#[derive(Args)]
pub struct Merge {
    /// The base: a model's folder in Hugging Face's layout, with its tokenizer.
    #[arg(long)]
    model: PathBuf,
    /// The adapter's folder in PEFT's format.
    #[arg(long)]
    adapter: PathBuf,
    /// The folder to be made, in Hugging Face's layout.
    #[arg(long)]
    out: PathBuf,
}

impl Merge {
    pub fn run(self) -> Result<()> {
        if self.out.exists() {
            bail!("{} is there already; choose a new folder for --out", self.out.display());
        }
        let device = fpo_device::host();
        // A frame for the adapters, the smallest there is: its weights are read from their files again.
        let frame = Placement::new(device.clone(), Precision::Bf16Mixed);
        let base = Loaded::open(&self.model, frame)?;
        let adapted = adapter::load(&base.model, &self.adapter, &device)?;
        atomic::replace_dir(&self.out, |folder| -> Result<()> {
            weights::save_merged(&adapted, &self.model, folder)?;
            Ok(base.tokenizer.save(folder)?)
        })?;
        println!("merged  {}", self.out.display());
        Ok(())
    }
}
