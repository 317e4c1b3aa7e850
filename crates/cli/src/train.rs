//! `fpo train`, and the arguments of everything that works in a run's folder.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::loaded::{DeviceArg, SettingsArgs};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use fpo_report::terminal_table;
use fpo_trainer::{
    run::Run,
    stages::{self, StageName},
};

#[derive(Args)]
pub struct Train {
    #[command(flatten)]
    pub run: RunArgs,
    /// Ends after this stage.
    #[arg(long, default_value_t = StageName::Report, value_parser = stage_names())]
    pub until: StageName,
}

fn stage_names() -> impl TypedValueParser<Value = StageName> {
    PossibleValuesParser::new(StageName::ALL.map(StageName::name))
        .try_map(|name| name.parse::<StageName>())
}

impl Train {
    pub fn run(self) -> Result<()> {
        if let Some(finished) = stages::run(&self.run.open()?, self.until)? {
            println!("{}", terminal_table(&finished.table));
            println!("aligned model  {}", finished.model.display());
            println!("report         {}", finished.page.display());
        }
        Ok(())
    }
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
        Run::open(&folder, settings, device, self.resume, crate::terminal::reporter())
    }
}
