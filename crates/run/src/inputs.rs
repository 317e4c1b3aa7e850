//! Files and folders that the settings name.

use std::path::Path;

use anyhow::{Context, Result, bail};
use fpo_config::Settings;
use fpo_transformer::{ModelConfig, Site};

/// Refuses settings that name something that isn't there, before a run writes anything.
///
/// # Errors
/// Names the setting.
pub(crate) fn check(s: &Settings) -> Result<()> {
    let named = [
        ("data.train", &s.data.train),
        ("data.eval", &s.data.eval),
        ("data.sft", &s.data.sft),
        ("model.path", &s.model.path),
        ("model.tokenizer", &s.model.tokenizer),
        ("reference.path", &s.reference.path),
        ("align.feature_weights", &s.align.feature_weights),
    ];
    for (key, path) in named {
        if let Some(path) = path {
            there(key, path)?;
        }
    }
    if s.features() {
        if let Some(path) = &s.sae.path {
            there("sae.path", path)?;
        }
        for more in &s.align.more_sites {
            there("align.more_sites", &more.sae)?;
        }
    }
    let Some(path) = &s.model.path else { return Ok(()) };
    let layers = ModelConfig::load(path).context("model.path")?.num_hidden_layers;
    if s.features() {
        let more = s.align.more_sites.iter().map(|more| ("align.more_sites", &more.site));
        for (key, site) in std::iter::once(("sae.site", &s.sae.site)).chain(more) {
            site.parse::<Site>().and_then(|site| site.check(layers)).context(key)?;
        }
    }
    Ok(())
}

fn there(key: &str, path: &Path) -> Result<()> {
    let data = key.starts_with("data.") && fpo_data::source::exists(path);
    if !path.exists() && !data {
        bail!("{key}: there is no file or folder {}", path.display());
    }
    Ok(())
}
