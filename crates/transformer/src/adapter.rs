//! Adapters in and out, in PEFT's format: a folder with `adapter_config.json` and `adapter_model.safetensors`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use burn::tensor::{Device, TensorData};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::{
    Error, LanguageModel, LoraConfig,
    checkpoint::{Opened, Source},
    families::fields::is_off,
    lora::MAGNITUDE,
    multimodal::{inside, is_multimodal, language_model},
    places,
    targets::{Targets, is_of_a_block, is_of_tokens},
    tensor_file::{self, Stored},
    weights::{parameters, placeholder, write_json},
};

/// PEFT's names of the two files.
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// The weights' name before PEFT 0.6.
const OLD_WEIGHTS: &str = "adapter_model.bin";
/// The prefix that PEFT's wrappers add to a parameter's path.
const PREFIX: &str = "base_model.model.";

/// Writes the adapters of `model` into a folder, which must exist. `base` is the folder of the model they belong to, which
/// `AutoPeftModelForCausalLM.from_pretrained` looks for under its whole path. If it is a multimodal model, they are named as the
/// adapters of its language model.
///
/// # Errors
/// A model without adapters, or a file that can't be written.
pub fn save(model: &LanguageModel, folder: &Path, base: Option<&Path>) -> Result<(), Error> {
    let path = folder.join(CONFIG);
    let Some(config) = model.lora() else {
        let message = "the model has no adapters to save".into();
        return Err(Error::Config { path, message });
    };
    let (folder_of_base, multimodal) = match base {
        Some(base) => {
            let whole = base.canonicalize().map_err(Error::io(base))?;
            (Some(whole.display().to_string()), is_multimodal(base)?)
        }
        None => (None, false),
    };
    let mut peft = json!({
        "base_model_name_or_path": folder_of_base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": number(config.alpha),
        "lora_dropout": config.dropout,
        "peft_type": "LORA",
        "r": config.rank,
        "task_type": "CAUSAL_LM",
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
    });
    for (field, value) in places::fields(model, config, multimodal) {
        peft[field] = value;
    }
    write_json(&path, &peft)?;

    let name = |path: &str| match multimodal {
        true => format!("{PREFIX}{}", inside(path)),
        false => format!("{PREFIX}{path}"),
    };
    let mut tensors = Vec::new();
    for (path, lora) in model.adapters() {
        for (part, tensor) in [("lora_A", lora.a.val()), ("lora_B", lora.b.val())] {
            tensors.push(Stored::new(name(&format!("{path}.{part}.weight")), tensor));
        }
        if let Some(magnitude) = &lora.magnitude {
            tensors.push(Stored::new(name(&format!("{path}.{MAGNITUDE}")), magnitude.val()));
        }
    }
    for mut tensor in parameters(model).into_iter().filter(|tensor| config.saves(&tensor.name)) {
        tensor.name = name(&tensor.name);
        tensors.push(tensor);
    }
    tensor_file::write(&folder.join(WEIGHTS), tensors)
}

/// As a whole number if it is one.
pub(crate) fn number(value: f64) -> Value {
    match value.fract() == 0.0 && value < 1e15 {
        true => json!(value as u64),
        false => json!(value),
    }
}

/// `model` with the adapters of a folder, held on `device` and trainable if it has autodiff. The weights of `model` are
/// shared, not copied.
///
/// # Errors
/// A damaged file, an unsupported PEFT setting (named), or tensors that don't fit the model: every one that is missing, unknown,
/// or of the wrong shape or type is listed.
pub fn load(model: &LanguageModel, folder: &Path, device: &Device) -> Result<LanguageModel, Error> {
    let path = folder.join(CONFIG);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let [new, old] = [WEIGHTS, OLD_WEIGHTS].map(|name| folder.join(name));
    let files = Opened::open(&[if !new.exists() && old.is_file() { old } else { new }])?;
    let sources = language_model(model.config().family, tensors(&files)?);
    let modules = sources.keys().filter_map(|name| name.strip_suffix(".lora_A.weight"));
    let config = parse_config(&text, &modules.collect())
        .map_err(|message| Error::Config { path, message })?;
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    let adapted = model.with_lora(&config, device, &mut |piece| {
        let (name, shape) = (piece.name, piece.shape);
        let full = format!("{PREFIX}{name}");
        used.insert(name.to_owned());
        let values = match sources.get(name) {
            None => Err(format!("`{full}` {shape:?} is missing")),
            Some(source) if source.shape() != shape => {
                let rank = match () {
                    () if name.ends_with("lora_A.weight") => format!(" and r = {}", shape[0]),
                    () if name.ends_with("lora_B.weight") => format!(" and r = {}", shape[1]),
                    () => String::new(),
                };
                let found = source.shape();
                Err(format!("`{full}` is {found:?}, but the model{rank} require {shape:?}"))
            }
            Some(source) => {
                source.read(piece.places()).map_err(|message| format!("`{full}`: {message}"))
            }
        };
        Ok(values.map(|values| TensorData::new(values, piece.dims())).unwrap_or_else(|problem| {
            problems.push(problem);
            placeholder(shape)
        }))
    })?;
    for (name, source) in &sources {
        if !used.contains(name) {
            let shape = source.shape();
            problems.push(format!("`{PREFIX}{name}` {shape:?} has no place in the model"));
        }
    }
    let more = problems.len().saturating_sub(MOST_PROBLEMS);
    if more > 0 {
        problems.truncate(MOST_PROBLEMS);
        problems.push(format!("and {more} more"));
    }
    match problems.is_empty() {
        true => Ok(adapted),
        false => Err(Error::Adapter { path: folder.to_owned(), problems }),
    }
}

/// Problems listed, at most.
const MOST_PROBLEMS: usize = 12;

/// Every tensor by its parameter's name: without PEFT's prefix, and with `model.`, which adapters of a decoder without its head
/// lack.
fn tensors(files: &Opened) -> Result<BTreeMap<String, Source<'_>>, Error> {
    let named = files.tensors()?.into_iter().map(|(name, source)| {
        let inner = name.strip_prefix(PREFIX).unwrap_or(&name);
        // PEFT before 0.9 ended the name of DoRA's magnitudes in `.weight`.
        let inner = match inner.strip_suffix(".weight") {
            Some(module) if module.ends_with(MAGNITUDE) => module,
            _ => inner,
        };
        let name = match inner.starts_with("layers.") {
            true => format!("model.{inner}"),
            false => inner.to_owned(),
        };
        (name, source)
    });
    Ok(named.collect())
}

/// Fields that don't change what an adapter computes, given its tensors.
const WITHOUT_EFFECT: [&str; 11] = [
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    // The blocks are `layers` in every model here.
    "layers_pattern",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
];
/// Initialisations that leave the base weights as they are. Others, such as PiSSA, come with other base weights.
const INITIALISATIONS: [&str; 3] = ["eva", "gaussian", "orthogonal"];

/// `modules` are the linear layers with adapters in the file.
fn parse_config(text: &str, modules: &BTreeSet<&str>) -> Result<LoraConfig, String> {
    let fields: Map<String, Value> = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let mut config = LoraConfig::default();
    let mut by_tensors = false;
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
            "init_lora_weights" => {
                let known = value.as_str().is_some_and(|name| INITIALISATIONS.contains(&name));
                if !(known || value.is_boolean() || value.is_null()) {
                    return Err(wrong(
                        "it belongs to other base weights: convert the adapter with PEFT's save_pretrained(…, \
                         path_initial_model_for_weight_conversion=…)",
                    ));
                }
            }
            "peft_type" | "task_type" | "bias" => {}
            "r" => {
                let rank = value.as_u64().and_then(|r| usize::try_from(r).ok());
                config.rank = rank.ok_or_else(|| wrong("expected a whole number"))?;
            }
            "lora_alpha" => {
                config.alpha = value.as_f64().ok_or_else(|| wrong("expected a number"))?;
            }
            // Of no effect on what it computes, but on how training goes on.
            "lora_dropout" => {
                config.dropout = value.as_f64().ok_or_else(|| wrong("expected a number"))?;
            }
            "use_rslora" => {
                config.use_rslora =
                    value.as_bool().ok_or_else(|| wrong("expected true or false"))?;
            }
            "use_dora" => {
                config.use_dora = value.as_bool().ok_or_else(|| wrong("expected true or false"))?;
            }
            "target_modules" => config.target_modules = targets(value, modules)?,
            _ if is_off(value) => {}
            "rank_pattern" => config.rank_pattern = field(name, value)?,
            "alpha_pattern" => config.alpha_pattern = field(name, value)?,
            "exclude_modules" => match excluded(value)? {
                Some(names) => config.exclude_modules = names,
                None => by_tensors = true,
            },
            "modules_to_save" => config.modules_to_save = field(name, value)?,
            "ensure_weight_tying" if !fields.get("modules_to_save").is_none_or(is_off) => {
                return Err(wrong("it is not supported with modules_to_save"));
            }
            "layers_to_transform" => {
                config.layers_to_transform = match value.as_u64() {
                    Some(layer) => vec![layer as usize],
                    None => field(name, value)?,
                };
            }
            _ if WITHOUT_EFFECT.contains(&name.as_str()) => {}
            _ => return Err(wrong("this PEFT option is not supported")),
        }
    }
    if by_tensors {
        config.target_modules = of_tensors(modules);
    }
    config.check()?;
    Ok(config)
}

fn field<T: DeserializeOwned>(name: &str, value: &Value) -> Result<T, String> {
    serde_json::from_value(value.clone()).map_err(|e| format!("`{name}`: {e}"))
}

/// The layers that the field names. Python's regular expressions can say more than those here; then they are the layers that
/// have tensors.
fn targets(value: &Value, modules: &BTreeSet<&str>) -> Result<Targets, String> {
    if value.is_string() {
        return Ok(field("target_modules", value).unwrap_or_else(|_| of_tensors(modules)));
    }
    let names: Vec<String> = field("target_modules", value)?;
    // PEFT's lists may have names of other architectures.
    let names = names.into_iter().filter(|name| is_of_a_block(name) || is_of_tokens(name));
    Ok(Targets::names(names))
}

/// The layers that a list or a regular expression excludes: those that this model may have, `Some(None)` if there are none. `None`
/// for an expression that only Python knows, or one that is a mere word, which no layer's whole name is: then the layers are those
/// that have tensors.
fn excluded(value: &Value) -> Result<Option<Option<Targets>>, String> {
    if value.is_string() {
        return Ok(field("exclude_modules", value).ok().map(Some));
    }
    let names: Vec<String> = field("exclude_modules", value)?;
    let names: Vec<String> =
        names.into_iter().filter(|name| is_of_a_block(name) || is_of_tokens(name)).collect();
    Ok(Some((!names.is_empty()).then(|| Targets::names(names))))
}

/// The linear layers with tensors.
fn of_tensors(modules: &BTreeSet<&str>) -> Targets {
    Targets::names(modules.iter().map(|module| (*module).to_owned()))
}
