//! The recipes: TOML files compiled into the binary. One may extend another.

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

macro_rules! recipes {
    ($($name:literal),* $(,)?) => {
        /// Name and TOML text of every recipe.
        const ALL: &[(&str, &str)] = &[$(($name, include_str!(concat!($name, ".toml")))),*];
    };
}

recipes!(
    "tiny",
    "smoke",
    "gemma-2-2b-fpo",
    "gemma-2-2b-dpo",
    "gemma-2-2b-tdpo1",
    "gemma-2-2b-tdpo2",
    "gemma-2-2b-simpo",
    "gemma-2-2b-fpo-lora",
    "gemma-2-9b-fpo",
    "gemma-2-9b-dpo",
    "gemma-2-9b-tdpo1",
    "gemma-2-9b-tdpo2",
    "gemma-2-9b-simpo",
    "gemma-2-9b-fpo-lora",
    "gemma-3-4b-fpo",
    "llama-3.1-8b-fpo",
    "qwen3-8b-fpo",
    "smollm2-135m-fpo",
    "smollm2-135m-smoke",
);

/// The recipe that all others extend.
pub(crate) const FIRST: &str = "tiny";

/// Key that names the recipe whose settings apply unless overridden.
const EXTENDS: &str = "extends";

/// Names of all recipes.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|(name, _)| *name)
}

/// The TOML text of a recipe, without the recipes it extends.
///
/// # Errors
/// No recipe of that name.
pub fn source(name: &str) -> Result<&'static str> {
    match ALL.iter().find(|(known, _)| *known == name) {
        Some((_, text)) => Ok(text),
        None => {
            bail!("no recipe `{name}`; choose one of {}", names().collect::<Vec<_>>().join(", "))
        }
    }
}

/// The TOML texts of a recipe and of the recipes it extends, itself first.
///
/// # Errors
/// No recipe of that name.
pub fn chain(name: &str) -> Result<Vec<&'static str>> {
    let mut found = Vec::new();
    let mut next = Some(name.to_owned());
    while let Some(name) = next {
        let text = source(&name)?;
        found.push(text);
        next = parse(&name, text)?.get(EXTENDS).and_then(Value::as_str).map(str::to_owned);
    }
    Ok(found)
}

/// All settings of a recipe, including those it inherits.
///
/// # Errors
/// No recipe of that name.
pub(crate) fn table(name: &str) -> Result<Table> {
    let mut whole = Table::new();
    for text in chain(name)?.into_iter().rev() {
        override_with(&mut whole, parse(name, text)?);
    }
    whole.remove(EXTENDS);
    Ok(whole)
}

fn parse(name: &str, text: &str) -> Result<Table> {
    toml::from_str(text).with_context(|| format!("recipe `{name}`"))
}

fn override_with(below: &mut Table, above: Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => override_with(below, above),
            (_, value) => drop(below.insert(key, value)),
        }
    }
}
