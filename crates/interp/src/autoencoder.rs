//! Loads an autoencoder and checks that it belongs to a model's site.

use std::path::Path;

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use fpo_device::progress::Reporter;
use fpo_sae::{Provenance, Sae};
use fpo_transformer::{ModelConfig, Site};

use crate::reader::check_fit;

/// Loads an autoencoder for activations of `site`. Warns if its file names another site, or another model than `model`, the folder
/// of the model that it reads; a fine-tuned model's folder says nothing, and is not given.
///
/// # Errors
/// An unreadable file, a site that the model lacks, or an autoencoder of another width.
pub fn open(
    path: &Path,
    site: Site,
    config: &ModelConfig,
    model: Option<&Path>,
    device: &Device,
    reporter: &Reporter,
) -> Result<Sae> {
    let sae = fpo_sae::load(path, device)?;
    check_fit(&sae.encoder, site, config).with_context(|| path.display().to_string())?;
    for warning in warnings(&sae.provenance, site, model) {
        reporter.warn(format!("{}: {warning}", path.display()));
    }
    Ok(sae)
}

/// [`open`] at the site given by the user, else at the one that the autoencoder's file names.
///
/// # Errors
/// Those of [`open`]; a file that names no supported site, or another one than the user.
pub fn open_at_its_site(
    path: &Path,
    named: Option<Site>,
    config: &ModelConfig,
    device: &Device,
) -> Result<(Sae, Site)> {
    let sae = fpo_sae::load(path, device)?;
    let site = match (named, of_file(&sae.provenance)) {
        (Some(named), Some(own)) if named != own => bail!(
            "{}: it was trained on {own}, not on {named}; use an autoencoder trained at this site",
            path.display()
        ),
        (Some(named), _) => named,
        (None, own) => own.with_context(|| unnamed(path, &sae.provenance))?,
    };
    check_fit(&sae.encoder, site, config).with_context(|| path.display().to_string())?;
    Ok((sae, site))
}

/// Refuses an autoencoder that can't be used for a run: of another width than its site, made for another site as its file says, or
/// with fewer features than are compared. It is loaded for that, and dropped.
///
/// # Errors
/// Those, or an unreadable file.
pub fn check(path: &Path, site: Site, k: usize, config: &ModelConfig) -> Result<()> {
    let (Sae { encoder, .. }, _) = open_at_its_site(path, Some(site), config, &fpo_device::host())?;
    if k > encoder.d_sae() {
        bail!("{}: it has {} features, fewer than align.k = {k}", path.display(), encoder.d_sae());
    }
    Ok(())
}

/// The site given by the user, else the one that the autoencoder's file names.
///
/// # Errors
/// An unreadable file, or a file that names no supported site.
pub fn site(named: Option<Site>, path: &Path) -> Result<Site> {
    if let Some(site) = named {
        return Ok(site);
    }
    let sae = fpo_sae::load(path, &fpo_device::host())?;
    of_file(&sae.provenance).with_context(|| unnamed(path, &sae.provenance))
}

fn of_file(provenance: &Provenance) -> Option<Site> {
    provenance.hook_name.as_deref().and_then(|hook| hook.parse().ok())
}

fn unnamed(path: &Path, provenance: &Provenance) -> String {
    let hook = provenance.hook_name.as_deref().unwrap_or("no site");
    format!("{} names {hook}; set its site with --site", path.display())
}

fn warnings(provenance: &Provenance, site: Site, model: Option<&Path>) -> Vec<String> {
    let mut found = Vec::new();
    let differs = |hook: &&str| hook.parse().ok() != Some(site);
    if let Some(hook) = provenance.hook_name.as_deref().filter(differs) {
        found.push(format!("it was trained on {hook}, but is used on {}", site.hook_name()));
    }
    let last = |path: &str| path.rsplit('/').next().unwrap_or(path).to_lowercase();
    let Some(model) = model.map(|model| last(&model.to_string_lossy())) else { return found };
    // Names of local folders often have a prefix or suffix, such as `gemma-2-2b-it-local`.
    let differs = |theirs: &str| !model.contains(&last(theirs)) && !last(theirs).contains(&model);
    if let Some(theirs) = provenance.model_name.as_deref().filter(|name| differs(name)) {
        found.push(format!("it was trained on `{theirs}`, but the model is `{model}`"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_model_or_site_is_warned_about() {
        let from = |model: &str, hook: &str| Provenance {
            model_name: Some(model.to_owned()),
            hook_name: Some(hook.to_owned()),
        };
        let count = |from: Provenance| {
            warnings(&from, Site::resid_post(25), Some(Path::new("models/gemma-2-2b"))).len()
        };
        assert_eq!(count(Provenance::default()), 0);
        assert_eq!(count(from("google/gemma-2-2b", "blocks.25.hook_resid_post")), 0);
        assert_eq!(count(from("google/gemma-2-2b", "blocks.26.hook_resid_pre")), 0);
        assert_eq!(count(from("google/gemma-2-2b", "model.layers.25")), 0);
        assert_eq!(count(from("gemma-2-9b", "blocks.25.hook_resid_post")), 1);
        assert_eq!(count(from("gemma-2-9b", "blocks.24.hook_resid_post")), 2);
        let unnamed = |from| warnings(&from, Site::resid_post(25), None).len();
        assert_eq!(unnamed(from("gemma-2-9b", "blocks.25.hook_resid_post")), 0);
        assert_eq!(unnamed(from("gemma-2-9b", "blocks.24.hook_resid_post")), 1);
    }
}
