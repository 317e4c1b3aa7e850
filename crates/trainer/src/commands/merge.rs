//! `fpo merge`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use fpo_data::atomic;
use fpo_transformer::{adapter, weights};

use super::loaded::{DeviceArg, Loaded};

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
    #[command(flatten)]
    device: DeviceArg,
}

impl Merge {
    pub fn run(self) -> Result<()> {
        if self.out.exists() {
            bail!("{} is there already; choose a new folder for --out", self.out.display());
        }
        let device = self.device.open()?;
        let base = Loaded::open(&self.model, &device)?;
        let adapted = adapter::load(&base.model, &self.adapter, &device)?;
        atomic::replace_dir(&self.out, |folder| -> Result<()> {
            weights::save(&adapted, folder)?;
            Ok(base.tokenizer.save(folder)?)
        })?;
        println!("merged  {}", self.out.display());
        Ok(())
    }
}
