//! The memory of a recipe's stages for a larger model, known by its name alone, and the settings by which it fits into 24 GB.
//!
//!     cargo run -p fpo-plan --example plan

use anyhow::Result;
use fpo_config::Settings;
use fpo_plan::{Goal, Stage, alignment, fit, parameters, parse_bytes, peak};

fn main() -> Result<()> {
    let set = ["model.path=gemma-2-9b".to_owned()];
    let settings = Settings::resolve("gemma-2-2b-fpo-lora", None, &set)?;
    let config = alignment(&settings)?.config;
    println!(
        "{:.2} billion parameters, {}",
        parameters(&config) as f64 / 1e9,
        settings.model.precision
    );

    let gb = |bytes: u64| bytes as f64 / 1e9;
    for stage in Stage::ALL {
        // A stage that the recipe skips needs none.
        let Some(memory) = stage.memory(&settings)? else { continue };
        println!(
            "{:<10} {:6.2} GB: weights {:.2}, gradients {:.2}, optimiser {:.2}, activations {:.2}, rest {:.2}",
            stage.name(),
            gb(memory.total()),
            gb(memory.weights),
            gb(memory.gradients),
            gb(memory.optimizer),
            gb(memory.activations),
            gb(memory.rest)
        );
    }

    let room = parse_bytes("24GB").map_err(anyhow::Error::msg)?;
    println!("peak {:.2} GB", gb(peak(&settings, &Stage::ALL)?));
    match fit(&settings, &Goal { stages: &Stage::ALL, room, bfloat16: true })? {
        None => println!("no settings make it fit into 24 GB"),
        Some(changes) => {
            for change in changes {
                println!("{:<60} peak {:.2} GB", change.set, gb(change.peak));
            }
        }
    }
    Ok(())
}
