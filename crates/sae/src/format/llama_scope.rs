//! Llama Scope (arXiv 2410.20526): `hyperparams.json` and `checkpoints/final.safetensors`, with weights as PyTorch's linear layers
//! hold them, one threshold for all features, and inputs scaled by √d_in over their mean norm in the training data.

use std::path::Path;

use burn::tensor::Device;
use fpo_ops::Normalization;
use serde_json::Value;

use super::{
    arrays::{Array, Layout, Stored, THRESHOLD},
    number_of, read_config, refuse_if_set, tensors, text_of,
};
use crate::{Error, Provenance, Sae};

pub(super) const CONFIG: &str = "hyperparams.json";
pub(super) const WEIGHTS: &str = "checkpoints/final.safetensors";

pub(super) fn load(folder: &Path, device: &Device) -> Result<Sae, Error> {
    let path = folder.join(CONFIG);
    let config = read_config(&path)?;
    let wrong = |message: String| Error::format(&path, message);
    refuse_if_set(&config, &path, &["use_glu_encoder", "apply_decoder_bias_to_pre_encoder"])?;
    for (key, supported) in [("act_fn", "jumprelu"), ("norm_activation", "dataset-wise")] {
        match text_of(&config, key) {
            Some(found) if found != supported => {
                return Err(wrong(format!("{key} `{found}` is not supported, only `{supported}`")));
            }
            _ => {}
        }
    }
    let [input, output] = ["hook_point_in", "hook_point_out"].map(|key| text_of(&config, key));
    if input != output {
        let (input, output) = (input.unwrap_or_default(), output.unwrap_or_default());
        return Err(wrong(format!(
            "it reads `{input}` and writes `{output}`: a transcoder, not an autoencoder"
        )));
    }
    let positive = |value: Option<&Value>, name: &str| {
        let found = value.and_then(Value::as_f64).filter(|x| x.is_finite() && *x > 0.0);
        found.ok_or_else(|| wrong(format!("`{name}` is missing or not positive")))
    };
    let norms = config.get("dataset_average_activation_norm").unwrap_or(&Value::Null);
    let [norm_in, norm_out] = ["in", "out"]
        .map(|key| positive(norms.get(key), &format!("dataset_average_activation_norm.{key}")));
    let (norm_in, norm_out) = (norm_in?, norm_out?);
    if norm_in != norm_out {
        return Err(wrong(format!("inputs of norm {norm_in} and outputs of norm {norm_out}")));
    }
    let threshold = config.get("jump_relu_threshold").and_then(Value::as_f64);
    let threshold = threshold.ok_or_else(|| wrong("no number `jump_relu_threshold`".into()))?;
    let d_in = number_of(&config, "d_model").ok_or_else(|| wrong("no `d_model`".into()))?;
    let scale = (d_in as f64).sqrt() / norm_in;

    let path = folder.join(WEIGHTS);
    let mut arrays = tensors::read(&path)?;
    let names = [
        ("encoder.weight", "W_enc"),
        ("encoder.bias", "b_enc"),
        ("decoder.weight", "W_dec"),
        ("decoder.bias", "b_dec"),
    ];
    arrays.rename(&path, &names)?;
    arrays.transpose(&["W_enc", "W_dec"]);
    // The threshold is in units of unscaled inputs. Where sparsity includes the decoder's norms, z·‖d‖ is compared with it.
    let threshold = threshold * scale;
    let by_norm = config.get("sparsity_include_decoder_norm") == Some(&Value::Bool(true));
    let thresholds = match arrays.decoder_norms().filter(|_| by_norm) {
        Some(norms) => {
            let values = norms.iter().map(|norm| (threshold / norm.max(1e-12)) as f32).collect();
            Array { shape: vec![norms.len()], values }
        }
        None => Array { shape: vec![], values: vec![threshold as f32] },
    };
    arrays.insert(&path, THRESHOLD, thresholds)?;
    arrays.fold_scale(scale);
    let layout = Layout {
        stored: Stored::JumpRelu,
        normalization: Normalization::None,
        sizes: [Some(d_in), number_of(&config, "d_sae")],
        // The one model of these autoencoders, which their files don't name.
        provenance: Provenance {
            model_name: Some("meta-llama/Llama-3.1-8B".into()),
            hook_name: input,
        },
    };
    arrays.assemble(layout, &path, device)
}
