//! `fpo train`, and the arguments of commands that work in a run's folder.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::Result;
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use fpo_config::Settings;
use fpo_data::{Rendering, System};
use fpo_report::terminal_table;
use fpo_trainer::{
    run::{Existing, Run, timing},
    stages::{self, StageName},
};

use crate::{
    dry_run, interrupt,
    loaded::{DeviceArg, note_left_out},
    settings::{self, SettingsArgs},
    streams::{out, write},
    terminal::reporter,
};

/// Runs the whole pipeline: prepare, sft, sae, reference, align, evaluate, report
///
/// The run's folder gets
///   run.toml        the resolved settings
///   prepared/       tokenised data
///   sft/            the fine-tuned model, which is the reference, in Hugging Face's layout
///   sae/            the sparse autoencoder as a SAELens folder, if the method is fpo or evaluate.features is set
///   reference/      the reference's log-probabilities and pooled features (Parquet)
///   align/          the aligned model in Hugging Face's layout
///   evaluate/       metrics and responses on held-out data, before and after alignment
///   report.html     settings, curves, metrics, responses and the features that moved most
///   timing.json     hardware, wall clock and tokens per second of each stage
/// and a table of metrics is printed.
///
/// Called again with the same folder, it resumes. It starts from the folder's own settings; --config and --set override
/// them. Finished stages are kept, and an interrupted stage resumes from its last checkpoint. Ctrl-C writes a
/// checkpoint before the run stops. A call that would discard finished work is refused, with a list of what would be
/// lost, unless --overwrite is given.
///
/// Examples:
///   fpo train
///   fpo train --recipe gemma-2-2b-fpo --device cuda --set data.train=pairs.jsonl --run runs/mine
///   fpo train --run runs/mine
///   fpo train --set align.method=dpo --run runs/dpo --until align
///   fpo train --recipe gemma-2-2b-fpo --dry-run
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Train {
    #[command(flatten)]
    pub run: RunArgs,
    /// Stops after this stage.
    #[arg(long, value_name = "STAGE", default_value_t = StageName::Report, value_parser = stage_names())]
    pub until: StageName,
    /// Says what the run would do and need, without doing it: steps, tokens, memory, disk, time.
    #[arg(long)]
    pub dry_run: bool,
    /// Prints the resolved settings as TOML and stops.
    #[arg(long, conflicts_with = "dry_run")]
    pub print_config: bool,
    /// Explains every setting and stops.
    #[arg(long)]
    pub help_settings: bool,
}

fn stage_names() -> impl TypedValueParser<Value = StageName> {
    PossibleValuesParser::new(StageName::ALL.map(StageName::name))
        .try_map(|name| name.parse::<StageName>())
}

impl Train {
    pub fn run(self) -> Result<()> {
        if self.help_settings {
            return write(settings::help()?.as_bytes());
        }
        if self.print_config {
            return write(self.run.resolve()?.to_toml()?.as_bytes());
        }
        if self.dry_run {
            return out!("{}", dry_run::describe(&self.run.resolve()?, &self.run.device.open()?)?);
        }
        let until = match self.until {
            StageName::Report => String::new(),
            stage => format!(" --until {stage}"),
        };
        let run = self.run.open("train", &until)?;
        if let Some(finished) = stages::run(&run, self.until)? {
            out!("{}", terminal_table(&finished.table))?;
            out!("aligned model  {}", finished.model.display())?;
            out!("report         {}", finished.page.display())?;
            out!("time           {}", timing(&run.folder))?;
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
    /// Which texts go through the chat template; the same as --set data.rendering=….
    #[arg(long, value_name = "auto|template|none")]
    rendering: Option<Rendering>,
    /// How system messages are handled; the same as --set data.system=….
    #[arg(long, value_name = "keep|fold")]
    system: Option<System>,
    /// Runs stages again whose settings or data have changed, and discards their old results. Without it such a call is refused.
    #[arg(long)]
    overwrite: bool,
    /// Has no effect: a run always continues.
    #[arg(long, hide = true)]
    resume: bool,
    #[command(flatten)]
    device: DeviceArg,
}

impl RunArgs {
    /// The settings of the call: those of the folder, if it has any and no recipe is named, with what the call changes.
    fn resolve(&self) -> Result<Settings> {
        let mut settings = self.settings.resolve_with_saved(&self.folder().join("run.toml"))?;
        let data = &mut settings.data;
        data.rendering = self.rendering.unwrap_or(data.rendering);
        data.system = self.system.unwrap_or(data.system);
        Ok(settings)
    }

    fn folder(&self) -> PathBuf {
        let default = || Path::new("runs").join(self.settings.name());
        self.folder.clone().unwrap_or_else(default)
    }

    /// Opens the run. `command` and `more` are what continues it after an interruption.
    pub fn open(self, command: &str, more: &str) -> Result<Run> {
        let settings = self.resolve()?;
        let device = self.device.open()?;
        if let Some(model) = settings.model.path.as_deref().filter(|path| path.is_dir()) {
            note_left_out(model)?;
        }
        let existing = match self.overwrite {
            true => Existing::Overwrite,
            false => Existing::Keep,
        };
        let folder = self.folder();
        let on = match self.device.name() {
            "cpu" => String::new(),
            name => format!(" --device {name}"),
        };
        interrupt::continue_with(format!("fpo {command} --run {}{on}{more}", quoted(&folder)));
        Run::open(&folder, settings, device, existing, reporter())
    }
}

/// Such as `72 s: sft 20 s at 5100 tokens/s, align 30 s at 4800 tokens/s, …; on …`. Of stages made in earlier calls too.
fn timing(folder: &Path) -> String {
    let all = timing::read(folder);
    let stages: Vec<String> = StageName::ALL
        .iter()
        .filter_map(|stage| {
            let found = all.get(stage.folder())?;
            let rate = found.tokens_per_second;
            let rate = rate.map_or(String::new(), |rate| format!(" at {rate:.0} tokens/s"));
            Some(format!("{stage} {:.0} s{rate}", found.seconds))
        })
        .collect();
    let total: f64 = all.values().map(|stage| stage.seconds).sum();
    let hardware: BTreeSet<&str> = all.values().map(|stage| stage.hardware.as_str()).collect();
    let hardware: Vec<&str> = hardware.into_iter().collect();
    format!("{total:.0} s: {}; on {}", stages.join(", "), hardware.join(" and "))
}

/// As a shell takes it.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,@".contains(c);
    match text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_as_a_shell_takes_them() {
        for (path, expected) in
            [("runs/mine", "runs/mine"), ("my runs", "'my runs'"), ("it's", r"'it'\''s'")]
        {
            assert_eq!(quoted(Path::new(path)), expected);
        }
    }
}
