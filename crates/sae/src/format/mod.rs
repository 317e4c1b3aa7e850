//! Files: SAELens folders and Gemma Scope's `params.npz` read and written, Gemma Scope 2's
//! `params.safetensors` read.

mod arrays;
mod gemma_scope_2;
mod npz;
mod sae_lens;
mod tensors;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
pub use npz::{Compression, save_npz};
pub use sae_lens::save_sae_lens;
use serde_json::Value;

use crate::{Error, Provenance, Sae};

/// Files larger than this are refused before they are read: a 1M-feature autoencoder of a 27B model
/// is 37 GB.
const LARGEST: u64 = 64 << 30;
/// Configurations larger than this are refused.
const LARGEST_CONFIG: u64 = 16 << 20;

/// How an autoencoder is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A folder with `cfg.json` and `sae_weights.safetensors`.
    SaeLens,
    /// `params.npz`.
    GemmaScope,
    /// A folder with `config.json` and `params.safetensors`.
    #[serde(rename = "gemma-scope-2")]
    GemmaScope2,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SaeLens => "SAELens folder",
            Self::GemmaScope => "Gemma Scope archive",
            Self::GemmaScope2 => "Gemma Scope 2 folder",
        })
    }
}

impl Format {
    /// What lies at `path`, and the file or folder to read: a folder may be given for the file in it.
    ///
    /// # Errors
    /// Nothing that this crate knows lies there.
    pub fn detect(path: &Path) -> Result<(Self, PathBuf), Error> {
        let extension = path.extension().and_then(|e| e.to_str());
        let folder = path.parent().unwrap_or(Path::new(""));
        if path.is_dir() {
            let candidates = [
                (sae_lens::CONFIG, Self::SaeLens, path.to_owned()),
                (npz::FILE, Self::GemmaScope, path.join(npz::FILE)),
                (gemma_scope_2::WEIGHTS, Self::GemmaScope2, path.to_owned()),
            ];
            for (file, format, found) in candidates {
                if path.join(file).exists() {
                    return Ok((format, found));
                }
            }
        } else if extension == Some("npz") {
            return Ok((Self::GemmaScope, path.to_owned()));
        } else if path.file_name().is_some_and(|name| name == gemma_scope_2::WEIGHTS) {
            return Ok((Self::GemmaScope2, folder.to_owned()));
        }
        let message = format!(
            "no sparse autoencoder: expected a folder with {} and {} (SAELens), {} (Gemma Scope), or a folder with {} and {} (Gemma Scope 2)",
            sae_lens::CONFIG,
            sae_lens::WEIGHTS,
            npz::FILE,
            gemma_scope_2::CONFIG,
            gemma_scope_2::WEIGHTS,
        );
        Err(Error::format(path, message))
    }
}

/// Reads an autoencoder in any [`Format`]. What a format keeps outside of the five arrays (the
/// subtraction of b_dec from the input, a scale of the input, thresholds as logarithms) is folded into
/// them, so that the result is one and the same function.
///
/// # Errors
/// Damage, an architecture or normalisation that cannot be folded, thresholds below zero, or values that
/// are not finite.
pub fn load(path: &Path, device: &Device) -> Result<Sae, Error> {
    match Format::detect(path)? {
        (Format::SaeLens, folder) => sae_lens::load(&folder, device),
        (Format::GemmaScope, file) => npz::read(&file)?.assemble(&file, from_path(path), device),
        (Format::GemmaScope2, folder) => gemma_scope_2::load(&folder, device),
    }
}

/// What Gemma Scope's folders say: the repository `gemma-scope-2b-pt-res` and the folder `layer_25`.
fn from_path(path: &Path) -> Provenance {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let names: Vec<&str> = path.iter().filter_map(|name| name.to_str()).collect();
    let layer = names.iter().find_map(|name| name.strip_prefix("layer_")?.parse::<usize>().ok());
    let repository = names.iter().find_map(|name| name.strip_prefix("gemma-scope-"));
    let Some((layer, (model, kind))) = layer.zip(repository.and_then(|r| r.rsplit_once('-')))
    else {
        return Provenance::default();
    };
    let hook = match kind {
        "res" => "hook_resid_post",
        "mlp" => "hook_mlp_out",
        "att" => "attn.hook_z",
        _ => return Provenance::default(),
    };
    // The base model's own name has no `pt`.
    let model = model.trim_end_matches("-pt");
    Provenance {
        model_name: Some(format!("google/gemma-2-{model}")),
        hook_name: Some(format!("blocks.{layer}.{hook}")),
    }
}

/// Fails where a file is larger than the limit.
fn bounded(path: &Path, largest: u64) -> Result<u64, Error> {
    let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
    match size > largest {
        true => Err(Error::format(path, format!("{size} bytes are more than the {largest} read"))),
        false => Ok(size),
    }
}

/// Reads a JSON object.
fn read_config(path: &Path) -> Result<Value, Error> {
    bounded(path, LARGEST_CONFIG)?;
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let value: Value =
        serde_json::from_str(&text).map_err(|e| Error::format(path, e.to_string()))?;
    match value.is_object() {
        true => Ok(value),
        false => Err(Error::format(path, "not a JSON object")),
    }
}

/// A text of a configuration, where it is one.
fn text_of(config: &Value, key: &str) -> Option<String> {
    config.get(key).and_then(Value::as_str).map(str::to_owned)
}
