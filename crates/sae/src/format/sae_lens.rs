//! SAELens folders: version 6, older flat configurations, and its training checkpoints.

use std::{collections::HashMap, path::Path};

use burn::tensor::Device;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

use super::{
    arrays::{Array, Arrays, named},
    read_config, tensors, text_of,
};
use crate::{Error, Provenance, Sae};

pub(super) const CONFIG: &str = "cfg.json";
pub(super) const WEIGHTS: &str = "sae_weights.safetensors";
/// Beside a training checkpoint whose inputs were scaled.
const SCALER: &str = "activation_scaler.json";
/// The version whose layout is written. Without one, SAELens takes a configuration for an older one and
/// forgets the metadata.
const VERSION: &str = "6.0.0";

#[derive(Clone, Copy, PartialEq)]
enum Activation {
    /// z · 1\[z > θ\]
    JumpRelu,
    /// The same with θ = 0.
    Relu,
}

pub(super) fn load(folder: &Path, device: &Device) -> Result<Sae, Error> {
    let path = folder.join(CONFIG);
    let config = read_config(&path)?;
    let activation = activation(&config, &path)?;
    let scale = scale(&config, folder, &path)?;
    // SAELens subtracts unless told not to, in every version.
    let subtracts = match config.get("apply_b_dec_to_input") {
        None | Some(Value::Bool(true)) => true,
        Some(Value::Bool(false)) => false,
        Some(other) => {
            let message = format!("apply_b_dec_to_input = {other} is neither true nor false");
            return Err(Error::format(&path, message));
        }
    };
    let provenance = provenance(&config);

    let path = folder.join(WEIGHTS);
    let mut arrays = tensors::read(&path)?;
    drop_unit_scaling(&mut arrays, &path)?;
    match activation {
        Activation::JumpRelu => arrays.exponentiate_thresholds(),
        Activation::Relu => arrays.zero_thresholds(),
    }
    if let Some(scale) = scale {
        arrays.fold_scale(scale);
    }
    if subtracts {
        arrays.fold_subtraction();
    }
    arrays.assemble(&path, provenance, device)
}

fn activation(config: &Value, path: &Path) -> Result<Activation, Error> {
    let refuse = |key: &str, value: &str| {
        let message =
            format!("{key} `{value}` is not read: only JumpReLU and ReLU autoencoders are");
        Err(Error::format(path, message))
    };
    let function = text_of(config, "activation_fn").or(text_of(config, "activation_fn_str"));
    if let Some(other) = function.filter(|f| f != "relu") {
        return refuse("activation_fn", &other);
    }
    match text_of(config, "architecture").as_deref() {
        Some("jumprelu") => Ok(Activation::JumpRelu),
        // What configurations without one meant.
        Some("standard") | None => Ok(Activation::Relu),
        Some(other) => refuse("architecture", other),
    }
}

/// By what inputs are multiplied before the encoder.
fn scale(config: &Value, folder: &Path, path: &Path) -> Result<Option<f64>, Error> {
    let normalize = match config.get("normalize_activations") {
        None | Some(Value::Null | Value::Bool(false)) => return Ok(None),
        // Older configurations.
        Some(Value::Bool(true)) => "expected_average_only_in",
        Some(Value::String(text)) => text,
        Some(other) => return Err(Error::format(path, format!("normalize_activations = {other}"))),
    };
    match normalize {
        "none" => Ok(None),
        "expected_average_only_in" => {
            let scaler = folder.join(SCALER);
            let scale = match scaler.exists() {
                true => read_config(&scaler)?.get("scaling_factor").and_then(Value::as_f64),
                false => None,
            };
            match scale {
                Some(scale) if scale.is_finite() && scale > 0.0 => Ok(Some(scale)),
                Some(scale) => Err(Error::format(scaler, format!("scaling_factor = {scale}"))),
                None => Err(Error::format(
                    path,
                    format!(
                        "normalize_activations = expected_average_only_in needs the scale of the inputs (`scaling_factor` in {SCALER}); fold it in SAELens by fold_activation_norm_scaling_factor"
                    ),
                )),
            }
        }
        other => Err(Error::format(
            path,
            format!(
                "normalize_activations = `{other}` is not supported: it divides every token by its own size, which no weights can take over"
            ),
        )),
    }
}

fn provenance(config: &Value) -> Provenance {
    let metadata = config.get("metadata").unwrap_or(&Value::Null);
    let find = |keys: &[&str]| {
        keys.iter().find_map(|key| text_of(metadata, key).or_else(|| text_of(config, key)))
    };
    Provenance { model_name: find(&["model_name"]), hook_name: find(&["hook_name", "hook_point"]) }
}

/// Some old files hold a factor for each feature that was never trained: ones.
fn drop_unit_scaling(arrays: &mut Arrays, path: &Path) -> Result<(), Error> {
    for name in ["scaling_factor", "finetuning_scaling_factor"] {
        let Some(Array { values, .. }) = arrays.0.remove(name) else { continue };
        if values.iter().any(|x| (x - 1.0).abs() > 1e-5) {
            let message = format!("`{name}` differs from 1: finetuned scales are not supported");
            return Err(Error::format(path, message));
        }
    }
    Ok(())
}

/// Writes a folder that `sae_lens.SAE.load_from_disk` opens. The folder must exist.
pub fn save_sae_lens(sae: &Sae, folder: &Path) -> Result<(), Error> {
    let hook_name = &sae.provenance.hook_name;
    let by_head = hook_name.as_deref().is_some_and(|name| name.ends_with("hook_z"));
    let config = json!({
        "architecture": "jumprelu",
        "d_in": sae.d_in(),
        "d_sae": sae.d_sae(),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": false,
        "normalize_activations": "none",
        "reshape_activations": if by_head { "hook_z" } else { "none" },
        "metadata": {
            "sae_lens_version": VERSION,
            "model_name": sae.provenance.model_name,
            "hook_name": hook_name,
        },
    });
    let path = folder.join(CONFIG);
    std::fs::write(&path, format!("{config:#}\n")).map_err(Error::io(&path))?;

    let path = folder.join(WEIGHTS);
    let fail = |e: safetensors::SafeTensorError| Error::format(&path, e.to_string());
    let arrays = named(sae);
    let mut views = Vec::with_capacity(arrays.len());
    for (name, data) in &arrays {
        let view = TensorView::new(Dtype::F32, data.shape().to_vec(), data.as_bytes());
        views.push((*name, view.map_err(fail)?));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    // safetensors writes a file that its owner alone may read; here it gets what any new file gets.
    let new = std::fs::File::options().append(true).create(true).open(&path);
    let new = new.and_then(|file| file.metadata()).map_err(Error::io(&path))?;
    safetensors::serialize_to_file(views, Some(metadata), &path).map_err(fail)?;
    std::fs::set_permissions(&path, new.permissions()).map_err(Error::io(&path))
}
