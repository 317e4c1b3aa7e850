//! Gemma Scope 2: `config.json` and `params.safetensors`, with lower-case names.

use std::path::Path;

use burn::tensor::Device;

use super::{arrays::Stored, read_config, tensors, text_of};
use crate::{Error, Provenance, Sae};

pub(super) const CONFIG: &str = "config.json";
pub(super) const WEIGHTS: &str = "params.safetensors";

pub(super) fn load(folder: &Path, device: &Device) -> Result<Sae, Error> {
    let path = folder.join(CONFIG);
    // Some folders come without a configuration; the names of the tensors say enough.
    let provenance = match path.exists() {
        true => read_provenance(&path)?,
        false => Provenance::default(),
    };
    let path = folder.join(WEIGHTS);
    tensors::read(&path)?.assemble(Stored::JumpRelu, &path, provenance, device)
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
    let [input, output] = ["hf_hook_point_in", "hf_hook_point_out"].map(|k| text_of(&config, k));
    if output.is_some() && output != input {
        let message = format!(
            "it reads `{}` and writes `{}`: a transcoder, not an autoencoder",
            input.unwrap_or_default(),
            output.unwrap_or_default()
        );
        return Err(Error::format(path, message));
    }
    Ok(Provenance {
        model_name: text_of(&config, "model_name"),
        hook_name: input.map(|point| hook_name(&point).unwrap_or(point)),
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
