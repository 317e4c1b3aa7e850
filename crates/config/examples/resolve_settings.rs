//! Resolves a recipe with overrides, prints one section as TOML, and shows how a misspelled key is refused.
//!
//! `cargo run -p fpo-config --example resolve_settings`

use anyhow::{Context, Result};
use fpo_config::{Settings, recipes};
use toml::Table;

fn main() -> Result<()> {
    println!("recipes: {}\n", recipes::names().collect::<Vec<_>>().join(", "));

    // As on the command line: `--recipe gemma-2-2b-fpo --set … --set …`. A configuration file would come between the two.
    let overrides = ["align.method=simpo", "align.beta=2.5", "align.optimizer.learning_rate=1e-6"];
    let settings = resolve(&overrides)?;
    let objective = settings.align.objective();
    println!("{} with beta {} and gamma {}\n", objective.method, objective.beta, objective.gamma);

    // What a run saves is the resolved file: recipes extend one another, and every value is in it.
    let resolved: Table = toml::from_str(&settings.to_toml()?)?;
    let align = resolved.get("align").context("every recipe has [align]")?;
    println!("[align]\n{}", toml::to_string_pretty(align)?);

    // A key that doesn't exist is an error that suggests the nearest one.
    for refused in ["align.metod=dpo", "align.k=0"] {
        if let Err(error) = resolve(&[refused]) {
            println!("refused: {error:#}");
        }
    }
    Ok(())
}

fn resolve(overrides: &[&str]) -> Result<Settings> {
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    Settings::resolve("gemma-2-2b-fpo", None, &overrides)
}
