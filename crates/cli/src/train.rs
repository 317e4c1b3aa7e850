//! `fpo train`, and the arguments of commands that work in a run's folder.

use std::path::PathBuf;

use anyhow::Result;
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use fpo_data::Rendering;
use fpo_report::terminal_table;
use fpo_trainer::{
    run::Run,
    stages::{self, StageName},
};

use crate::{
    loaded::{DeviceArg, SettingsArgs, note_left_out},
    terminal::reporter,
};

/// Runs the whole pipeline: prepare, sft, sae, reference, align, evaluate, report
///
/// The run's folder gets
///   run.toml        the resolved settings
///   prepared/       tokenised data
///   sft/            the fine-tuned model, which is the reference, in Hugging Face's layout
///   sae/            the sparse autoencoder as a SAELens folder, where the method or evaluate.features asks for one
///   reference/      the reference's log-probabilities and pooled features (Parquet)
///   align/          the aligned model in Hugging Face's layout
///   evaluate/       metrics and responses on held-out data, before and after alignment
///   report.html     settings, curves, metrics, responses and the features that moved most
/// and a table of metrics is printed. A stage is skipped if nothing that it depends on has changed.
///
/// Examples:
///   fpo train
///   fpo train --recipe gemma-2-2b-fpo --device cuda --set data.train=pairs.jsonl --run runs/mine
///   fpo train --set align.method=dpo --until align
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Train {
    #[command(flatten)]
    pub run: RunArgs,
    /// Stops after this stage.
    #[arg(long, value_name = "STAGE", default_value_t = StageName::Report, value_parser = stage_names())]
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
    /// Folder of the run [default: runs/RECIPE].
    #[arg(long = "run", value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Which texts go through the chat template: the setting data.rendering, under its name in other commands.
    #[arg(long, value_name = "auto|template|none")]
    rendering: Option<Rendering>,
    /// Resumes an interrupted stage from its last checkpoint.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    device: DeviceArg,
}

impl RunArgs {
    pub fn open(self) -> Result<Run> {
        let device = self.device.open()?;
        let mut settings = self.settings.resolve()?;
        settings.data.rendering = self.rendering.unwrap_or(settings.data.rendering);
        if let Some(model) = settings.model.path.as_deref().filter(|path| path.is_dir()) {
            note_left_out(model)?;
        }
        let folder =
            self.folder.unwrap_or_else(|| PathBuf::from("runs").join(self.settings.recipe));
        Run::open(&folder, settings, device, self.resume, reporter())
    }
}
