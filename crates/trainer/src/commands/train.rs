//! `fpo train`, and the arguments of everything that works in a run's folder.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::loaded::DeviceArg;
use crate::{run::Run, settings::Settings, stages::StageName};

#[derive(Args)]
pub struct Train {
    #[command(flatten)]
    pub run: RunArgs,
    /// Ends after this stage.
    #[arg(long, value_enum, default_value = "report")]
    pub until: StageName,
}

#[derive(Args)]
pub struct RunArgs {
    /// The settings to start from; `fpo recipes` lists them.
    #[arg(long, default_value = "tiny")]
    recipe: String,
    /// A TOML file whose settings replace the recipe's.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Replaces one setting, such as align.method=dpo; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    assignments: Vec<String>,
    /// The run's folder [default: runs/RECIPE].
    #[arg(long = "run", value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Goes on from the last checkpoint of an interrupted stage.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    device: DeviceArg,
}

impl RunArgs {
    pub fn open(self) -> Result<Run> {
        let device = self.device.open()?;
        let settings = Settings::resolve(&self.recipe, self.config.as_deref(), &self.assignments)?;
        let folder = self.folder.unwrap_or_else(|| PathBuf::from("runs").join(&self.recipe));
        Run::open(&folder, settings, device, self.resume)
    }
}
