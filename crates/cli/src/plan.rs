//! `fpo plan`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use fpo_config::Settings;
use fpo_device::size;
use fpo_plan::{self as plan, Cache, Disk, Goal, Memory, Stage, parse_bytes};

use crate::{settings::SettingsArgs, streams::out};

/// Estimates the memory that a run needs, and suggests settings that make it fit
///
/// Prints a table with the device memory in GB of fine-tuning, alignment and evaluation: weights, gradients,
/// optimiser state, activations, rest and peak; then the size of the reference cache, which is kept on disk and
/// in host memory, and of models and checkpoints. With --device-memory it also says whether the run fits; if not, it
/// lists --set options that would make it fit, one after the other with the peak that they lead to, and fails.
///
/// The model's sizes come from its config.json, or for published models from the name of the folder, such as
/// gemma-2-2b or Llama-3.1-8B, so the plan works before anything is downloaded.
///
/// Examples:
///   fpo plan --recipe gemma-2-2b-fpo --device-memory 80GB
///   fpo plan --recipe gemma-2-2b-fpo --model qwen3-8b
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Plan {
    #[command(flatten)]
    settings: SettingsArgs,
    /// A published model or a model's folder in place of the recipe's, as with --set model.path=MODEL.
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Memory of the device, such as 24GB.
    #[arg(long, value_parser = parse_bytes, value_name = "SIZE")]
    device_memory: Option<u64>,
}

impl Plan {
    pub fn run(self) -> Result<()> {
        let mut settings = self.settings.resolve()?;
        if self.model.is_some() {
            settings.model.path = self.model;
        }
        let config = plan::alignment(&settings)?.config;
        out!("{:.2} billion parameters\n", plan::parameters(&config) as f64 / 1e9)?;
        let header = ["weights", "gradients", "optimiser", "activations", "rest", "peak"];
        let title = format!("GB, {}", settings.model.precision);
        out!("{title:<16}{}", header.map(|name| format!("{name:>12}")).concat())?;
        for stage in Stage::ALL {
            if let Some(memory) = stage.memory(&settings)? {
                out!("{}", row(name(stage, &settings), &memory))?;
            }
        }
        out!("{}", cache(&Cache::of(&settings)))?;
        let disk = Disk::of(&settings)?.peak([false, false]);
        out!("models and checkpoints, on disk: at most {}", size(disk))?;
        let Some(device) = self.device_memory else { return Ok(()) };
        out!("")?;
        match plan::fit(&settings, &Goal { stages: &Stage::ALL, room: device, bfloat16: true })? {
            Some(changes) if changes.is_empty() => out!("fits into {}", size(device)),
            Some(changes) => {
                out!("{:<64} {:>10}", "these settings would make it fit", "peak")?;
                for change in changes {
                    out!("{:<64} {:>10}", change.set, size(change.peak))?;
                }
                bail!("the run does not fit into {}", size(device))
            }
            None => bail!("the run does not fit into {} with any settings", size(device)),
        }
    }
}

fn name(stage: Stage, settings: &Settings) -> &'static str {
    match stage {
        Stage::Sft => "fine-tuning",
        Stage::Align => settings.align.method.name(),
        Stage::Evaluate => "evaluation",
    }
}

fn row(name: &str, memory: &Memory) -> String {
    let Memory { weights, gradients, optimizer, activations, rest } = *memory;
    let cells = [weights, gradients, optimizer, activations, rest, memory.total()];
    format!("{name:<16}{}", cells.map(|bytes| format!("{:>12.2}", bytes as f64 / 1e9)).concat())
}

/// Such as `reference cache, on disk and in host memory: at most 262.2 MB for 1,000 pairs with up to 16384 features per response`.
fn cache(cache: &Cache) -> String {
    let (pairs, of) = match cache.pairs {
        Some(pairs) => (pairs, format!("{pairs} pairs")),
        None => (1000, "1,000 pairs".into()),
    };
    if cache.activations == 0 {
        return format!(
            "\nreference cache, on disk and in host memory: {} for {of}, without features",
            size(cache.bytes(pairs))
        );
    }
    format!(
        "\nreference cache, on disk and in host memory: at most {} for {of} with up to {} features per response \
         (usually far fewer are active; reference.top_n limits them)",
        size(cache.bytes(pairs)),
        cache.activations
    )
}
