//! The recipes, compiled in.

use anyhow::{Result, bail};

/// Names of all recipes.
pub const NAMES: [&str; 2] = ["tiny", "smoke"];

/// The TOML text of a recipe.
pub fn source(name: &str) -> Result<&'static str> {
    Ok(match name {
        "tiny" => include_str!("tiny.toml"),
        "smoke" => include_str!("smoke.toml"),
        _ => bail!("no recipe `{name}`: there are {}", NAMES.join(", ")),
    })
}
