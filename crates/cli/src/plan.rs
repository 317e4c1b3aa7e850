//! `fpo plan`.

use anyhow::Result;
use clap::Args;

use super::loaded::SettingsArgs;
use fpo_config::Settings;
use fpo_device::size;
use fpo_plan::{self as plan, Cache, Goal, Memory, Stage, parse_bytes};

/// Says how much memory a run needs, and which settings would make it fit.
///
/// Counted are fine-tuning, alignment and evaluation, on the device; and the reference cache, which is on disk and in the host's
/// memory. The sizes of a model come from its config.json, or, for the Gemma-2 models, from its name, so that nothing needs to be
/// downloaded first.
#[derive(Args)]
pub struct Plan {
    #[command(flatten)]
    settings: SettingsArgs,
    /// The memory that there is, such as 24GB.
    #[arg(long, value_parser = parse_bytes)]
    device_memory: Option<u64>,
}

impl Plan {
    pub fn run(self) -> Result<()> {
        let settings = self.settings.resolve()?;
        let config = plan::alignment(&settings)?.config;
        println!("{:.2} billion parameters\n", plan::parameters(&config) as f64 / 1e9);
        let header = ["weights", "gradients", "optimiser", "activations", "rest", "peak"];
        let title = format!("GB, {}", settings.model.precision);
        println!("{title:<16}{}", header.map(|name| format!("{name:>12}")).concat());
        for stage in Stage::ALL {
            if let Some(memory) = stage.memory(&settings)? {
                println!("{}", row(name(stage, &settings), &memory));
            }
        }
        println!("{}", cache(&Cache::of(&settings)));
        let Some(device) = self.device_memory else { return Ok(()) };
        println!();
        match plan::fit(&settings, &Goal { stages: &Stage::ALL, room: device, bfloat16: true })? {
            Some(changes) if changes.is_empty() => println!("fits into {}", size(device)),
            Some(changes) => {
                println!("does not fit into {}; with these it would:", size(device));
                for change in changes {
                    println!("  {:<64} {:>10}", change.set, size(change.peak));
                }
            }
            None => println!("does not fit into {}, whatever the settings", size(device)),
        }
        Ok(())
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

/// `reference cache, on disk and in the host's memory: at most 262.2 MB for 1,000 pairs (16384 features of a response; …)`
fn cache(cache: &Cache) -> String {
    let (pairs, of) = match cache.pairs {
        Some(pairs) => (pairs, format!("{pairs} pairs")),
        None => (1000, "1,000 pairs".into()),
    };
    format!(
        "\nreference cache, on disk and in the host's memory: at most {} for {of}, with {} features of a response (fewer are active; \
         reference.top_n bounds them)",
        size(cache.bytes(pairs)),
        cache.activations
    )
}
