//! Arguments that resolve to settings, and what explains them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use fpo_config::{Base, Explained, Settings, explanations};

use crate::streams;

#[derive(Args)]
pub struct SettingsArgs {
    /// Recipe to start from; `fpo recipes` lists them [default: tiny; train and compare: the run folder's own settings, if any].
    #[arg(long, value_name = "RECIPE")]
    pub recipe: Option<String>,
    /// A TOML file with settings that override the recipe's.
    #[arg(long, value_name = "FILE", value_parser = streams::input)]
    config: Option<PathBuf>,
    /// Overrides one setting, such as align.method=dpo; can be repeated. `fpo train --help-settings` explains all settings.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    assignments: Vec<String>,
}

/// The recipe of a call that names none.
const DEFAULT: &str = "tiny";

impl SettingsArgs {
    /// The recipe's name.
    pub fn name(&self) -> &str {
        self.recipe.as_deref().unwrap_or(DEFAULT)
    }

    /// From the recipe.
    pub fn resolve(&self) -> Result<Settings> {
        self.resolve_on(Base::Recipe(self.name()))
    }

    /// From the recipe if one is named, else from a file of saved settings if it exists.
    pub fn resolve_with_saved(&self, saved: &Path) -> Result<Settings> {
        match (&self.recipe, saved.is_file()) {
            (None, true) => self.resolve_on(Base::Saved(saved)),
            _ => self.resolve(),
        }
    }

    fn resolve_on(&self, base: Base) -> Result<Settings> {
        Settings::resolve_on(base, self.config.as_deref(), &self.assignments)
    }
}

/// Every setting with its value in the recipe `tiny` and its meaning, at most 80 columns wide.
pub fn help() -> Result<String> {
    let mut text = String::from(
        "Settings, with their values in the recipe tiny. They are set with --set KEY=VALUE or in a --config file.\n",
    );
    let mut table = String::new();
    for Explained { key, value, text: meaning } in explanations()? {
        let of = key.rsplit_once('.').map_or("", |(table, _)| table).to_owned();
        if of != table {
            text += "\n";
            table = of;
        }
        let value = value.map_or("is not set".to_owned(), |value| format!("= {value}"));
        text += &format!("{key} {value}\n");
        for line in wrapped(&meaning, 74) {
            text += &format!("      {line}\n");
        }
    }
    Ok(text)
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("there is one from the start");
        if !last.is_empty() && last.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_fits_a_terminal() {
        let text = help().unwrap();
        let longest = text.lines().skip(1).map(|line| line.chars().count()).max().unwrap();
        assert!(longest <= 100, "{longest} columns");
        for says in
            ["align.method = \"fpo\"", "data.limit is not set", "\nsft.lora.rank is not set\n"]
        {
            assert!(text.contains(says), "{says}");
        }
    }
}
