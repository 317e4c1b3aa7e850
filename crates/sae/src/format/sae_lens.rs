//! SAELens folders: version 6, the flat configurations before it, and training checkpoints.

use std::{collections::HashMap, path::Path};

use burn::tensor::Device;
use fpo_ops::Normalization;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

use super::{
    arrays::{Array, Arrays, Layout, Stored, THRESHOLD, named},
    number_of, read_config, refuse_if_set, tensors, text_of,
};
use crate::{Error, Provenance, Sae, activation::Facts};

pub(super) const CONFIG: &str = "cfg.json";
pub(super) const WEIGHTS: &str = "sae_weights.safetensors";
/// Next to a training checkpoint whose inputs were scaled.
const SCALER: &str = "activation_scaler.json";
/// Names of what may happen to activations before the encoder.
const NORMALIZATIONS: [(&str, Normalization); 3] = [
    ("none", Normalization::None),
    ("layer_norm", Normalization::LayerNorm),
    ("constant_norm_rescale", Normalization::ConstantNorm),
];
/// The version whose layout is written. SAELens takes a configuration without one for an old one, and drops its metadata.
const VERSION: &str = "6.0.0";

pub(super) fn load(folder: &Path, device: &Device) -> Result<Sae, Error> {
    let path = folder.join(CONFIG);
    let config = read_config(&path)?;
    let architecture = Architecture::of(&config, &path)?;
    let (scale, normalization) = normalization(&config, folder, &path)?;
    // Every version of SAELens subtracts unless this is false.
    let subtracts = match config.get("apply_b_dec_to_input") {
        None | Some(Value::Bool(true)) => true,
        Some(Value::Bool(false)) => false,
        Some(other) => {
            let message = format!("apply_b_dec_to_input = {other} is neither true nor false");
            return Err(Error::format(&path, message));
        }
    };
    let layout = Layout {
        stored: architecture.stored(),
        normalization,
        sizes: [number_of(&config, "d_in"), number_of(&config, "d_sae")],
        provenance: provenance(&config),
    };

    let path = folder.join(WEIGHTS);
    let mut arrays = tensors::read(&path)?;
    drop_unit_scaling(&mut arrays, &path)?;
    match architecture {
        Architecture::JumpRelu => arrays.exponentiate_thresholds(&path)?,
        Architecture::BatchTopK { .. } => arrays.rename(&path, &[("topk_threshold", THRESHOLD)])?,
        Architecture::Standard | Architecture::TopK { .. } => {}
    }
    // In this order: norms are those of the stored W_dec, and b_dec is subtracted from scaled inputs.
    if architecture.rescaled() {
        arrays.fold_decoder_norms();
    }
    if let Some(scale) = scale {
        arrays.fold_scale(scale);
    }
    if subtracts {
        arrays.fold_subtraction();
    }
    arrays.assemble(layout, &path, device)
}

/// An architecture, as a configuration names it.
#[derive(Clone, Copy)]
enum Architecture {
    Standard,
    JumpRelu,
    /// `rescaled`: pre-activations are compared after multiplication by the norms of their decoder rows.
    TopK {
        k: usize,
        rescaled: bool,
    },
    /// A training checkpoint; what is published of it is a JumpReLU.
    BatchTopK {
        rescaled: bool,
    },
}

impl Architecture {
    fn of(config: &Value, path: &Path) -> Result<Self, Error> {
        let refuse = |key: &str, value: &str| {
            let message = format!(
                "{key} `{value}` is not supported, only JumpReLU, ReLU, TopK and BatchTopK autoencoders are"
            );
            Err(Error::format(path, message))
        };
        let count = |value: Option<&Value>| {
            let k = value.and_then(Value::as_u64).and_then(|k| usize::try_from(k).ok());
            k.ok_or_else(|| Error::format(path, "`k` of the TopK is missing or no whole number"))
        };
        let rescaled = config.get("rescale_acts_by_decoder_norm") == Some(&Value::Bool(true));
        let function = text_of(config, "activation_fn").or(text_of(config, "activation_fn_str"));
        let architecture = text_of(config, "architecture");
        match (architecture.as_deref(), function.as_deref()) {
            // Before version 6, TopK was an activation function of the standard architecture.
            (None | Some("standard" | "topk"), Some("topk")) => {
                let arguments = config.get("activation_fn_kwargs").unwrap_or(&Value::Null);
                refuse_if_set(arguments, path, &["signed"])?;
                let k = count(config.get("k").or(arguments.get("k")))?;
                Ok(Self::TopK { k, rescaled })
            }
            (_, Some(other)) if other != "relu" => refuse("activation_fn", other),
            (Some("topk"), _) => Ok(Self::TopK { k: count(config.get("k"))?, rescaled }),
            (Some("batchtopk" | "matryoshka_batchtopk"), _) => Ok(Self::BatchTopK { rescaled }),
            (Some("jumprelu"), _) => Ok(Self::JumpRelu),
            // The default of configurations from before there was a choice.
            (Some("standard") | None, _) => Ok(Self::Standard),
            (Some(other), _) => refuse("architecture", other),
        }
    }

    fn stored(self) -> Stored {
        match self {
            Self::Standard => Stored::Relu,
            Self::JumpRelu | Self::BatchTopK { .. } => Stored::JumpRelu,
            Self::TopK { k, .. } => Stored::TopK { k },
        }
    }

    fn rescaled(self) -> bool {
        match self {
            Self::Standard | Self::JumpRelu => false,
            Self::TopK { rescaled, .. } | Self::BatchTopK { rescaled } => rescaled,
        }
    }
}

/// The factor by which inputs are multiplied before the encoder, None for 1; and what else happens to them.
fn normalization(
    config: &Value,
    folder: &Path,
    path: &Path,
) -> Result<(Option<f64>, Normalization), Error> {
    let normalize = match config.get("normalize_activations") {
        None | Some(Value::Null | Value::Bool(false)) => return Ok((None, Normalization::None)),
        // In older configurations.
        Some(Value::Bool(true)) => "expected_average_only_in",
        Some(Value::String(text)) => text,
        Some(other) => return Err(Error::format(path, format!("normalize_activations = {other}"))),
    };
    if let Some(found) = NORMALIZATIONS.into_iter().find(|(name, _)| *name == normalize) {
        return Ok((None, found.1));
    }
    match normalize {
        "expected_average_only_in" => {
            let scaler = folder.join(SCALER);
            let scale = match scaler.exists() {
                true => read_config(&scaler)?.get("scaling_factor").and_then(Value::as_f64),
                false => None,
            };
            match scale {
                Some(scale) if scale.is_finite() && scale > 0.0 => {
                    Ok((Some(scale), Normalization::None))
                }
                Some(scale) => Err(Error::format(scaler, format!("scaling_factor = {scale}"))),
                None => Err(Error::format(
                    path,
                    format!(
                        "normalize_activations = expected_average_only_in needs the scale of the inputs (`scaling_factor` in {SCALER}), which is missing: fold it with SAELens' fold_activation_norm_scaling_factor"
                    ),
                )),
            }
        }
        other => {
            Err(Error::format(path, format!("normalize_activations = `{other}` is not supported")))
        }
    }
}

fn provenance(config: &Value) -> Provenance {
    let metadata = config.get("metadata").unwrap_or(&Value::Null);
    let find = |keys: &[&str]| {
        keys.iter().find_map(|key| text_of(metadata, key).or_else(|| text_of(config, key)))
    };
    Provenance { model_name: find(&["model_name"]), hook_name: find(&["hook_name", "hook_point"]) }
}

/// Drops the per-feature factors of some old files, which were never trained and are all 1.
fn drop_unit_scaling(arrays: &mut Arrays, path: &Path) -> Result<(), Error> {
    for name in ["scaling_factor", "finetuning_scaling_factor"] {
        let Some(Array { values, .. }) = arrays.0.remove(name) else { continue };
        if values.iter().any(|x| (x - 1.0).abs() > 1e-5) {
            let message = format!("`{name}` is not all 1: finetuned scales are not supported");
            return Err(Error::format(path, message));
        }
    }
    Ok(())
}

/// Writes an autoencoder into an existing folder, which `sae_lens.SAE.load_from_disk` opens.
///
/// # Errors
/// The files can't be written.
pub fn save_sae_lens(sae: &Sae, folder: &Path) -> Result<(), Error> {
    let hook_name = &sae.provenance.hook_name;
    let by_head = hook_name.as_deref().is_some_and(|name| name.ends_with("hook_z"));
    let mut config = Facts::of(&sae.encoder.activation).sae_lens;
    config["d_in"] = sae.d_in().into();
    config["d_sae"] = sae.d_sae().into();
    config["dtype"] = "float32".into();
    config["device"] = "cpu".into();
    config["apply_b_dec_to_input"] = false.into();
    let normalization = NORMALIZATIONS.iter().find(|(_, kind)| *kind == sae.encoder.normalization);
    config["normalize_activations"] = normalization.map(|(name, _)| *name).into();
    config["reshape_activations"] = if by_head { "hook_z" } else { "none" }.into();
    config["metadata"] = json!({
        "sae_lens_version": VERSION,
        "model_name": sae.provenance.model_name,
        "hook_name": hook_name,
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
    // safetensors makes its file readable by the owner alone; give it the permissions of any new file.
    let new = std::fs::File::options().append(true).create(true).open(&path);
    let new = new.and_then(|file| file.metadata()).map_err(Error::io(&path))?;
    safetensors::serialize_to_file(views, Some(metadata), &path).map_err(fail)?;
    std::fs::set_permissions(&path, new.permissions()).map_err(Error::io(&path))
}
