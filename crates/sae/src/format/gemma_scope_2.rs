//! Gemma Scope 2: `config.json` and `params.safetensors`, with lower-case names.

use std::path::Path;

use burn::tensor::Device;
use serde_json::Value;

use super::{
    arrays::{Layout, Stored},
    components, read_config, tensors, text_of,
};
use crate::{Error, Provenance, Sae};

pub(super) const CONFIG: &str = "config.json";
pub(super) const WEIGHTS: &str = "params.safetensors";
/// What `params.safetensors` of a transcoder may hold beside the arrays of an autoencoder.
const SKIP: &str = "affine_skip_connection";

pub(super) fn load(folder: &Path, device: &Device) -> Result<Sae, Error> {
    let path = folder.join(CONFIG);
    // Some folders come without a configuration; the names of the tensors and folders say enough.
    let provenance = match path.exists() {
        true => read_provenance(&path)?,
        false => from_path(folder)?,
    };
    let path = folder.join(WEIGHTS);
    let arrays = tensors::read(&path)?;
    if arrays.0.contains_key(SKIP) {
        return Err(transcoder(&path, &format!("it holds `{SKIP}`")));
    }
    arrays.assemble(Layout::plain(Stored::JumpRelu, provenance), &path, device)
}

fn transcoder(path: &Path, why: &str) -> Error {
    Error::format(path, format!("{why}: a transcoder, not an autoencoder"))
}

fn read_provenance(path: &Path) -> Result<Provenance, Error> {
    let config = read_config(path)?;
    match text_of(&config, "architecture").as_deref() {
        None | Some("jump_relu" | "jumprelu") => {}
        Some(other) => {
            let message = format!("architecture `{other}` is not supported, only `jump_relu`");
            return Err(Error::format(path, message));
        }
    }
    match text_of(&config, "type").as_deref() {
        None | Some("sae") => {}
        Some(other) => return Err(transcoder(path, &format!("its type is `{other}`"))),
    }
    let [input, output] = ["hf_hook_point_in", "hf_hook_point_out"].map(|k| text_of(&config, k));
    if output.is_some() && output != input {
        let (input, output) = (input.unwrap_or_default(), output.unwrap_or_default());
        return Err(transcoder(path, &format!("it reads `{input}` and writes `{output}`")));
    }
    if config.get("affine_connection") == Some(&Value::Bool(true)) {
        return Err(transcoder(path, "affine_connection = true"));
    }
    Ok(Provenance {
        model_name: text_of(&config, "model_name"),
        hook_name: input.map(|point| hook_name(&point).unwrap_or(point)),
    })
}

/// What names of folders say: `gemma-scope-2-1b-pt/resid_post/layer_12_width_16k_l0_medium`.
fn from_path(folder: &Path) -> Result<Provenance, Error> {
    let names = components(folder);
    let holds = |part: &str| names.iter().rev().take(3).any(|name| name.contains(part));
    if holds("transcoder") || holds("clt") {
        return Err(transcoder(folder, "its folder says so"));
    }
    let layer = names
        .iter()
        .rev()
        .find_map(|name| name.strip_prefix("layer_")?.split('_').next()?.parse::<usize>().ok());
    let kinds = [
        ("resid_post", "hook_resid_post"),
        ("attn_out", "attn.hook_z"),
        ("mlp_out", "hook_mlp_out"),
    ];
    let hook = kinds.into_iter().find(|(part, _)| holds(part));
    let model = names.iter().rev().find_map(|name| name.strip_prefix("gemma-scope-2-"));
    Ok(Provenance {
        model_name: model.map(|model| format!("google/gemma-3-{model}")),
        hook_name: layer.zip(hook).map(|(layer, (_, hook))| format!("blocks.{layer}.{hook}")),
    })
}

/// TransformerLens' name for a module's input or output, given Hugging Face's.
fn hook_name(point: &str) -> Option<String> {
    let (layer, part) = point.strip_prefix("model.layers.")?.split_once('.')?;
    let hook = match part {
        "output" => "hook_resid_post",
        "post_feedforward_layernorm.output" => "hook_mlp_out",
        "self_attn.o_proj.input" => "attn.hook_z",
        _ => return None,
    };
    Some(format!("blocks.{layer}.{hook}"))
}
