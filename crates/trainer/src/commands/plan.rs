//! `fpo plan`.

use anyhow::Result;
use clap::Args;

use super::loaded::SettingsArgs;
use crate::plan::{self, Memory, Step, parse_bytes};

/// Says how much memory a run needs, and which settings would make it fit.
///
/// The sizes of a model come from its config.json, or, for the Gemma-2 models, from its name, so that nothing needs to be
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
        let fine_tuning = plan::fine_tuning(&settings)?;
        let alignment = plan::alignment(&settings)?;
        println!("{:.2} billion parameters\n", plan::parameters(&alignment.config) as f64 / 1e9);
        let header = ["weights", "gradients", "optimiser", "activations", "rest", "peak"];
        let title = format!("GB, {}", settings.model.precision);
        println!("{title:<16}{}", header.map(|name| format!("{name:>12}")).concat());
        if let Some(step) = &fine_tuning {
            println!("{}", row("fine-tuning", step));
        }
        println!("{}", row(settings.align.method.name(), &alignment));
        let Some(device) = self.device_memory else { return Ok(()) };
        println!();
        match plan::fit(&settings, device)? {
            Some(changes) if changes.is_empty() => println!("fits into {}", gb(device)),
            Some(changes) => {
                println!("does not fit into {}; with these it would:", gb(device));
                for (change, peak) in changes {
                    println!("  {change:<44} {:>10}", gb(peak));
                }
            }
            None => println!("does not fit into {}, whatever the settings", gb(device)),
        }
        Ok(())
    }
}

fn row(name: &str, step: &Step) -> String {
    let memory = step.memory();
    let Memory { weights, gradients, optimizer, activations, rest } = memory;
    let cells = [weights, gradients, optimizer, activations, rest, memory.total()];
    format!("{name:<16}{}", cells.map(|bytes| format!("{:>12.2}", bytes as f64 / 1e9)).concat())
}

fn gb(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}
