//! File formats: reads and writes SAELens folders and Gemma Scope's `params.npz`; reads those of Gemma Scope 2, Llama Scope,
//! Qwen-Scope, EleutherAI's sparsify and dictionary_learning.

mod arrays;
mod dictionary_learning;
mod gemma_scope_2;
mod llama_scope;
mod npy;
mod npz;
mod qwen_scope;
mod sae_lens;
mod sparsify;
mod tensors;
mod torch;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use arrays::{Layout, Stored};
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
    /// A folder with `hyperparams.json` and `checkpoints/final.safetensors`.
    LlamaScope,
    /// `layerN.sae.pt`.
    QwenScope,
    /// A folder with `cfg.json` and `sae.safetensors`.
    Sparsify,
    /// A folder with `config.json` and `ae.pt`.
    DictionaryLearning,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SaeLens => "SAELens folder",
            Self::GemmaScope => "Gemma Scope archive",
            Self::GemmaScope2 => "Gemma Scope 2 folder",
            Self::LlamaScope => "Llama Scope folder",
            Self::QwenScope => "Qwen-Scope file",
            Self::Sparsify => "sparsify folder",
            Self::DictionaryLearning => "dictionary_learning folder",
        })
    }
}

impl Format {
    /// The format of what is at `path`, and the file or folder to read. `path` may be a folder or the file of weights in it.
    ///
    /// # Errors
    /// There is no autoencoder in a known format, or files of several layers.
    pub fn detect(path: &Path) -> Result<(Self, PathBuf), Error> {
        let here = |format| Ok((format, path.to_owned()));
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            // sparsify's and SAELens' configurations have one name; their weights differ.
            for (file, format) in [
                (sparsify::WEIGHTS, Self::Sparsify),
                (sae_lens::CONFIG, Self::SaeLens),
                (gemma_scope_2::WEIGHTS, Self::GemmaScope2),
                (llama_scope::CONFIG, Self::LlamaScope),
                (dictionary_learning::WEIGHTS, Self::DictionaryLearning),
            ] {
                if path.join(file).exists() {
                    return here(format);
                }
            }
            if path.join(npz::FILE).exists() {
                return Ok((Self::GemmaScope, path.join(npz::FILE)));
            }
            if let Some(file) = qwen_scope::only_file(path)? {
                return Ok((Self::QwenScope, file));
            }
        } else if name.ends_with(".npz") {
            return here(Self::GemmaScope);
        } else if name.ends_with(qwen_scope::SUFFIX) {
            return here(Self::QwenScope);
        } else {
            for (file, format) in [
                (sparsify::WEIGHTS, Self::Sparsify),
                (sae_lens::WEIGHTS, Self::SaeLens),
                (gemma_scope_2::WEIGHTS, Self::GemmaScope2),
                (dictionary_learning::WEIGHTS, Self::DictionaryLearning),
            ] {
                if name == file {
                    return Ok((format, path.parent().unwrap_or(Path::new("")).to_owned()));
                }
            }
        }
        let message = format!(
            "no sparse autoencoder here: expected a folder with {} and {} (SAELens), {} (Gemma Scope), a folder with {} (Gemma Scope 2), {} and {} (Llama Scope), {} (sparsify) or {} (dictionary_learning), or a file layerN{} (Qwen-Scope)",
            sae_lens::CONFIG,
            sae_lens::WEIGHTS,
            npz::FILE,
            gemma_scope_2::WEIGHTS,
            llama_scope::CONFIG,
            llama_scope::WEIGHTS,
            sparsify::WEIGHTS,
            dictionary_learning::WEIGHTS,
            qwen_scope::SUFFIX,
        );
        Err(Error::format(path, message))
    }
}

/// Reads an autoencoder in any [`Format`]. What a format applies outside the arrays and that is linear (subtracting b_dec from the
/// input, scaling the input, storing the logarithm of thresholds) is folded into them, so that [`Sae`] computes the same function.
///
/// # Errors
/// A damaged file, an architecture that isn't supported, arrays that the configuration doesn't account for, or values that aren't
/// finite.
pub fn load(path: &Path, device: &Device) -> Result<Sae, Error> {
    let (format, found) = Format::detect(path)?;
    match format {
        Format::SaeLens => sae_lens::load(&found, device),
        Format::GemmaScope => {
            let layout = Layout::plain(Stored::JumpRelu, from_path(path));
            npz::read(&found)?.assemble(layout, &found, device)
        }
        Format::GemmaScope2 => gemma_scope_2::load(&found, device),
        Format::LlamaScope => llama_scope::load(&found, device),
        Format::QwenScope => qwen_scope::load(&found, device),
        Format::Sparsify => sparsify::load(&found, device),
        Format::DictionaryLearning => dictionary_learning::load(&found, device),
    }
}

/// What Gemma Scope's folder names say: the repository `gemma-scope-2b-pt-res`, and in it the folder `layer_25`.
fn from_path(path: &Path) -> Provenance {
    let names = components(path);
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

/// The whole number at `key` of a configuration; None if there is none.
fn number_of(config: &Value, key: &str) -> Option<usize> {
    config.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok())
}

/// Refuses a configuration in which a switch that changes the function is on.
fn refuse_if_set(config: &Value, path: &Path, keys: &[&str]) -> Result<(), Error> {
    let set =
        |key: &&&str| !matches!(config.get(**key), None | Some(Value::Null | Value::Bool(false)));
    match keys.iter().find(set) {
        None => Ok(()),
        Some(key) => {
            Err(Error::format(path, format!("`{key}` = {} is not supported", config[*key])))
        }
    }
}

/// The components of a path's absolute form that are text.
fn components(path: &Path) -> Vec<String> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    path.iter().filter_map(|name| name.to_str()).map(str::to_owned).collect()
}

/// TransformerLens' name of the residual stream after a block.
fn resid_post(layer: usize) -> String {
    format!("blocks.{layer}.hook_resid_post")
}
