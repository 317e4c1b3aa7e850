//! Adapters in and out, in PEFT's format: a folder with `adapter_config.json` and `adapter_model.safetensors`.

use std::{collections::BTreeSet, path::Path};

use burn::tensor::{Device, TensorData};
use serde_json::{Map, Value, json};

use crate::{
    Error, LanguageModel, LoraConfig,
    lora::Targets,
    tensor_file::{self, Files, Stored},
    weights::{placeholder, write_json},
};

/// PEFT's names of the two files.
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// The prefix that PEFT's wrappers add to a parameter's path.
const PREFIX: &str = "base_model.model.";

/// Writes the adapters of `model` into a folder, which must exist.
///
/// # Errors
/// A model without adapters, or a file that can't be written.
pub fn save(model: &LanguageModel, folder: &Path) -> Result<(), Error> {
    let path = folder.join(CONFIG);
    let Some(config) = model.lora() else {
        let message = "the model has no adapters to save".into();
        return Err(Error::Config { path, message });
    };
    let alpha = match config.alpha.fract() == 0.0 && config.alpha < 1e15 {
        true => json!(config.alpha as u64),
        false => json!(config.alpha),
    };
    let peft = json!({
        "base_model_name_or_path": null,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": config.target_modules,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": config.use_rslora,
    });
    write_json(&path, &peft)?;

    let mut tensors = Vec::new();
    for (path, lora) in model.adapters() {
        for (part, tensor) in [("lora_A", lora.a.val()), ("lora_B", lora.b.val())] {
            tensors.push(Stored::new(format!("{PREFIX}{path}.{part}.weight"), tensor));
        }
    }
    tensor_file::write(&folder.join(WEIGHTS), tensors)
}

/// `model` with the adapters of a folder, held on `device` and trainable if it has autodiff. The weights of `model` are
/// shared, not copied.
///
/// # Errors
/// A damaged file, an unsupported PEFT setting (named), or tensors that don't fit the model: every one that is missing, unknown,
/// or of the wrong shape or type is listed.
pub fn load(model: &LanguageModel, folder: &Path, device: &Device) -> Result<LanguageModel, Error> {
    let config = read_config(&folder.join(CONFIG))?;
    let files = Files::open([folder.join(WEIGHTS)])?;
    let views = files.views()?;
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    let adapted = model.with_lora(&config, device, &mut |piece| {
        let (name, shape) = (format!("{PREFIX}{}", piece.name), piece.shape);
        let values = match views.get(&name) {
            None => Err(format!("`{name}` {shape:?} is missing")),
            Some(view) if view.shape() != shape => Err(format!(
                "`{name}` is {:?}, but the model and r = {} require {shape:?}",
                view.shape(),
                config.rank
            )),
            Some(view) => {
                files.read(view, piece.places()).map_err(|message| format!("`{name}`: {message}"))
            }
        };
        used.insert(name);
        Ok(values.map(|values| TensorData::new(values, piece.dims())).unwrap_or_else(|problem| {
            problems.push(problem);
            placeholder(shape)
        }))
    })?;
    for (name, view) in &views {
        if !used.contains(name) {
            problems.push(format!("`{name}` {:?} has no place in the model", view.shape()));
        }
    }
    match problems.is_empty() {
        true => Ok(adapted),
        false => Err(Error::Adapter { path: folder.to_owned(), problems }),
    }
}

fn read_config(path: &Path) -> Result<LoraConfig, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    parse_config(&text).map_err(|message| Error::Config { path: path.to_owned(), message })
}

/// Fields that don't change what an adapter computes.
const WITHOUT_EFFECT: [&str; 9] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
];

fn parse_config(text: &str) -> Result<LoraConfig, String> {
    let fields: Map<String, Value> = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let mut config = LoraConfig::default();
    for required in ["peft_type", "r", "lora_alpha", "target_modules"] {
        if !fields.contains_key(required) {
            return Err(format!("`{required}` is missing"));
        }
    }
    for (name, value) in &fields {
        let wrong = |expected: &str| format!("`{name}` = {value}: {expected}");
        match name.as_str() {
            "peft_type" if value != "LORA" => return Err(wrong("only LORA is supported")),
            "task_type" if !value.is_null() && value != "CAUSAL_LM" => {
                return Err(wrong("only CAUSAL_LM is supported"));
            }
            "bias" if value != "none" => return Err(wrong("only none is supported")),
            // The other initialisations change the base weights.
            "init_lora_weights" if !(value.is_boolean() || value == "gaussian") => {
                return Err(wrong("only true, false and gaussian are supported"));
            }
            "peft_type" | "task_type" | "bias" | "init_lora_weights" => {}
            "r" => {
                let rank = value.as_u64().and_then(|r| usize::try_from(r).ok());
                config.rank = rank.ok_or_else(|| wrong("expected a whole number"))?;
            }
            "lora_alpha" => {
                config.alpha = value.as_f64().ok_or_else(|| wrong("expected a number"))?;
            }
            "use_rslora" => {
                config.use_rslora =
                    value.as_bool().ok_or_else(|| wrong("expected true or false"))?;
            }
            "target_modules" => {
                config.target_modules = serde_json::from_value::<Targets>(value.clone())
                    .map_err(|e| format!("`{name}`: {e}"))?;
            }
            _ if WITHOUT_EFFECT.contains(&name.as_str()) || is_off(value) => {}
            _ => return Err(wrong("this PEFT option is not supported")),
        }
    }
    config.check()?;
    Ok(config)
}

/// Whether a PEFT field has no effect.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}
