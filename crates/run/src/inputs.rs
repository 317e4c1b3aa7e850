//! Files and folders that the settings name.

use std::path::Path;

use anyhow::{Context, Error, Result, bail};
use fpo_config::Settings;
use fpo_interp::autoencoder;
use fpo_transformer::{Family, ModelConfig, Site};

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
    let config = match &s.model.path {
        Some(path) => ModelConfig::load(path).context("model.path")?,
        None => Family::Gemma2.config(&s.model.sizes).map_err(Error::msg).context("model")?,
    };
    match s.features() {
        true => check_features(s, &config),
        false => Ok(()),
    }
}

/// Sites that the model has, with autoencoders that fit them.
fn check_features(s: &Settings, config: &ModelConfig) -> Result<()> {
    let parse = |key, site: &str| -> Result<Site> {
        site.parse::<Site>().and_then(|site| site.check(config.num_hidden_layers)).context(key)
    };
    let site = parse("sae.site", &s.sae.site)?;
    if let Some(path) = &s.sae.path {
        autoencoder::check(path, site, s.align.k, config).context("sae.path")?;
    }
    for more in &s.align.more_sites {
        let key = "align.more_sites";
        let site = parse(key, &more.site)?;
        autoencoder::check(&more.sae, site, s.align.k, config).context(key)?;
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
