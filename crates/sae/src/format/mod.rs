//! File formats: reads and writes SAELens folders and Gemma Scope's `params.npz`, and reads Gemma Scope 2's
//! `params.safetensors`.

mod arrays;
mod gemma_scope_2;
mod npy;
mod npz;
mod sae_lens;
mod tensors;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use arrays::Stored;
use burn::tensor::Device;
pub use npz::{Compression, save_npz};
pub use sae_lens::save_sae_lens;
use serde_json::Value;

use crate::{Error, Provenance, Sae};

/// In bytes; larger files are refused unread. An autoencoder of a million features for a 27B model takes 37 GB.
const LARGEST: u64 = 64 << 30;
/// In bytes; larger configurations are refused unread.
const LARGEST_CONFIG: u64 = 16 << 20;

/// How an autoencoder is stored.
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
    /// The format of what is at `path`, and the file or folder to read. `path` may be the folder of the format's file.
    ///
    /// # Errors
    /// There is no autoencoder in a known format.
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
            "no sparse autoencoder here: expected a folder with {} and {} (SAELens), {} (Gemma Scope), or a folder with {} and {} (Gemma Scope 2)",
            sae_lens::CONFIG,
            sae_lens::WEIGHTS,
            npz::FILE,
            gemma_scope_2::CONFIG,
            gemma_scope_2::WEIGHTS,
        );
        Err(Error::format(path, message))
    }
}

/// Reads an autoencoder in any [`Format`]. What a format applies outside the arrays (subtracting b_dec from the input, scaling the
/// input, storing the logarithm of thresholds) is folded into them, so that [`Sae`] computes the same function.
///
/// # Errors
/// A damaged file, an architecture that isn't supported, a normalisation that can't be folded, negative thresholds, or values that
/// aren't finite.
pub fn load(path: &Path, device: &Device) -> Result<Sae, Error> {
    match Format::detect(path)? {
        (Format::SaeLens, folder) => sae_lens::load(&folder, device),
        (Format::GemmaScope, file) => {
            npz::read(&file)?.assemble(Stored::JumpRelu, &file, from_path(path), device)
        }
        (Format::GemmaScope2, folder) => gemma_scope_2::load(&folder, device),
    }
}

/// What Gemma Scope's folder names say: the repository `gemma-scope-2b-pt-res`, and in it the folder `layer_25`.
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
    // Gemma-2's base models have no `pt` in their names.
    let model = model.trim_end_matches("-pt");
    Provenance {
        model_name: Some(format!("google/gemma-2-{model}")),
        hook_name: Some(format!("blocks.{layer}.{hook}")),
    }
}

/// The size of a file in bytes, which must not exceed `largest`.
fn bounded(path: &Path, largest: u64) -> Result<u64, Error> {
    let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
    match size > largest {
        true => Err(Error::format(path, format!("{size} bytes, more than the limit of {largest}"))),
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

/// The string at `key` of a configuration; None if there is no string.
fn text_of(config: &Value, key: &str) -> Option<String> {
    config.get(key).and_then(Value::as_str).map(str::to_owned)
}
