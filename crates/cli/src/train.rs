//! `fpo train`, and the arguments of everything that works in a run's folder.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::loaded::{DeviceArg, SettingsArgs};
use fpo_trainer::run::Run;
use fpo_trainer::stages::StageName;

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
    #[command(flatten)]
    settings: SettingsArgs,
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
        let settings = self.settings.resolve()?;
        let folder =
            self.folder.unwrap_or_else(|| PathBuf::from("runs").join(self.settings.recipe));
        Run::open(&folder, settings, device, self.resume)
    }
}
