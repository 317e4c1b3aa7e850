//! Qwen-Scope: `layerN.sae.pt`, a TopK autoencoder of the residual stream. k is in the repository's name alone, such as
//! `SAE-Res-Qwen3-1.7B-Base-W32K-L0_50`.

use std::path::{Path, PathBuf};

use burn::tensor::Device;

use super::{
    arrays::{Layout, Stored},
    components, resid_post, torch,
};
use crate::{Error, Provenance, Sae};

pub(super) const SUFFIX: &str = ".sae.pt";

/// The file in a folder with a single one; None if there is none.
///
/// # Errors
/// Several files.
pub(super) fn only_file(folder: &Path) -> Result<Option<PathBuf>, Error> {
    let listed = std::fs::read_dir(folder).map_err(Error::io(folder))?;
    let mut found: Vec<PathBuf> = listed
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_str().is_some_and(|path| path.ends_with(SUFFIX)))
        .collect();
    found.sort();
    match found.len() {
        0 | 1 => Ok(found.pop()),
        several => {
            let message = format!(
                "{several} autoencoders, one a layer: name the file, such as {}",
                found[0].display()
            );
            Err(Error::format(folder, message))
        }
    }
}

pub(super) fn load(path: &Path, device: &Device) -> Result<Sae, Error> {
    let names = components(path);
    let repository = names.iter().rev().find_map(|name| name.strip_prefix("SAE-Res-"));
    let parts = repository.and_then(|name| {
        let (rest, k) = name.rsplit_once("-L0_")?;
        let model = rest.rsplit_once("-W")?.0;
        Some((model, k.parse::<usize>().ok()?))
    });
    let Some((model, k)) = parts else {
        let message = "k isn't in the file but in its folder's name: keep the repository's, such as SAE-Res-Qwen3-1.7B-Base-W32K-L0_50";
        return Err(Error::format(path, message));
    };
    let layer = path
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_prefix("layer")?.strip_suffix(SUFFIX)?.parse::<usize>().ok());
    let provenance =
        Provenance { model_name: Some(format!("Qwen/{model}")), hook_name: layer.map(resid_post) };
    let mut arrays = torch::read(path, &[])?;
    arrays.transpose(&["W_enc", "W_dec"]);
    arrays.assemble(Layout::plain(Stored::TopK { k }, provenance), path, device)
}
