//! EleutherAI's sparsify: `cfg.json` and `sae.safetensors`. TopK autoencoders that encode x − b_dec.

use std::path::Path;

use burn::tensor::Device;
use fpo_ops::Normalization;

use super::{
    arrays::{Layout, Stored},
    components, number_of, read_config, refuse_if_set, resid_post, tensors, text_of,
};
use crate::{Error, Provenance, Sae};

const CONFIG: &str = "cfg.json";
pub(super) const WEIGHTS: &str = "sae.safetensors";

pub(super) fn load(folder: &Path, device: &Device) -> Result<Sae, Error> {
    let path = folder.join(CONFIG);
    let config = read_config(&path)?;
    let wrong = |message: String| Error::format(&path, message);
    refuse_if_set(&config, &path, &["transcode", "skip_connection", "signed"])?;
    if let Some(other) = text_of(&config, "activation").filter(|name| name != "topk") {
        return Err(wrong(format!("activation `{other}` is not supported, only `topk`")));
    }
    let k = number_of(&config, "k").ok_or_else(|| wrong("no whole number `k`".into()))?;
    let d_in = number_of(&config, "d_in");
    // 0 means that the expansion factor says it.
    let d_sae = number_of(&config, "num_latents").filter(|n| *n > 0).or_else(|| {
        number_of(&config, "expansion_factor").and_then(|factor| factor.checked_mul(d_in?))
    });

    let path = folder.join(WEIGHTS);
    let mut arrays = tensors::read(&path)?;
    arrays.rename(&path, &[("encoder.weight", "W_enc"), ("encoder.bias", "b_enc")])?;
    arrays.transpose(&["W_enc"]);
    arrays.fold_subtraction();
    let layout = Layout {
        stored: Stored::TopK { k },
        normalization: Normalization::None,
        sizes: [d_in, d_sae],
        provenance: from_path(folder)?,
    };
    arrays.assemble(layout, &path, device)
}

/// Folders are named after the module whose output is encoded, `layers.10`; the configuration of the training beside them says
/// which model that is in.
fn from_path(folder: &Path) -> Result<Provenance, Error> {
    let names = components(folder);
    let hook_name = names.last().and_then(|name| {
        let (layer, rest) = match name.strip_prefix("layers.")?.split_once('.') {
            Some((layer, rest)) => (layer, Some(rest)),
            None => (name.strip_prefix("layers.")?, None),
        };
        let layer: usize = layer.parse().ok()?;
        Some(match rest {
            None => resid_post(layer),
            Some(module) => format!("model.layers.{layer}.{module}"),
        })
    });
    let path = folder.join("../config.json");
    let model_name = match path.exists() {
        true => text_of(&read_config(&path)?, "model"),
        false => None,
    };
    Ok(Provenance { model_name, hook_name })
}
