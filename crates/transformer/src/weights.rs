//! Weights in and out: Hugging Face's folder layout with safetensors.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Tensor, TensorData},
};
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

pub use crate::embedding::stored_name;
use crate::{
    Error, Family, LanguageModel, Lora, ModelConfig, Placement,
    embedding::{EMBEDDING, HEAD},
    multimodal::{is_vision, language_model},
    normal::Normal,
    tensor_file::{self, Files, Stored},
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The most bytes in one weight file.
const SHARD_BYTES: usize = 5_000_000_000;

/// A model with normally distributed weights of the configuration's `initializer_range`; the same seed gives the same weights on
/// every device, with any number of threads.
///
/// # Errors
/// A parameter that the device can't hold.
pub fn random(
    config: &ModelConfig,
    seed: u64,
    placement: impl Into<Placement>,
) -> Result<LanguageModel, Error> {
    let mut normal = Normal::new(seed, config.initializer_range);
    LanguageModel::build(config, placement, &mut |piece| {
        let places = piece.places();
        let values = if piece.name.ends_with("norm.weight") {
            vec![config.gain.neutral(); places.len()]
        } else if piece.name.ends_with(".bias") {
            vec![0.0; places.len()]
        } else {
            if piece.is_first() {
                normal.next_parameter(piece.shape.iter().product());
            }
            normal.values(places)
        };
        Ok(TensorData::new(values, piece.dims()))
    })
}

/// Reads a checkpoint's folder: `config.json` and the weights, in one file or sharded, in float32, bfloat16 or float16. Files are
/// memory-mapped and converted tensor by tensor.
///
/// # Errors
/// A damaged file, a tensor that the device can't hold, or weights that don't match `config.json`: every tensor that is missing,
/// unknown, or of the wrong shape or type is listed.
pub fn load(folder: &Path, placement: impl Into<Placement>) -> Result<LanguageModel, Error> {
    let config = ModelConfig::load(folder)?;
    let files = Files::open(file_names(folder)?)?;
    let views = language_model(config.family, files.views()?);
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    let model = LanguageModel::build(&config, placement, &mut |piece| {
        used.insert(piece.name.to_owned());
        let (name, shape) = (piece.name, piece.shape);
        let values = expected(&views, name, shape).and_then(|view| {
            files.read(view, piece.places()).map_err(|message| format!("`{name}`: {message}"))
        });
        Ok(values.map(|values| TensorData::new(values, piece.dims())).unwrap_or_else(|problem| {
            if piece.is_first() {
                problems.push(problem);
            }
            placeholder(shape)
        }))
    })?;
    for (name, view) in &views {
        // Some exports store the tied head as well, which is harmless if it equals the embedding.
        let tied =
            name == HEAD && views.get(EMBEDDING).is_some_and(|table| table.data() == view.data());
        if !used.contains(name) && !tied {
            problems.push(format!("`{name}` {:?} is not part of the model", view.shape()));
        }
    }
    match problems.is_empty() {
        true => Ok(model),
        false => Err(Error::Weights { path: folder.to_owned(), problems }),
    }
}

/// How many tensors of a checkpoint's folder [`load`] leaves out, because they belong to a part that reads images.
///
/// # Errors
/// As in [`load`] for files that can't be read.
pub fn left_out(folder: &Path) -> Result<usize, Error> {
    match ModelConfig::load(folder)?.family {
        Family::Gemma3 => {
            let files = Files::open(file_names(folder)?)?;
            Ok(files.views()?.keys().filter(|name| is_vision(name)).count())
        }
        Family::Gemma2 | Family::Llama | Family::Qwen2 | Family::Qwen3 => Ok(0),
    }
}

/// The view of a tensor that the model has; the error says what is wrong with the checkpoint.
fn expected<'a>(
    views: &'a BTreeMap<String, TensorView<'a>>,
    name: &str,
    shape: &[usize],
) -> Result<&'a TensorView<'a>, String> {
    match views.get(name) {
        None => Err(format!("`{name}` {shape:?} is missing")),
        Some(view) if view.shape() != shape => {
            Err(format!("`{name}` is {:?}, but config.json requires {shape:?}", view.shape()))
        }
        Some(view) => Ok(view),
    }
}

/// The weight files of a checkpoint's folder.
fn file_names(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let index = folder.join(INDEX);
    if !index.exists() {
        return Ok(vec![folder.join(SINGLE)]);
    }
    let fail = |message: String| Error::Format { path: index.clone(), message };
    let text = std::fs::read_to_string(&index).map_err(Error::io(&index))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| fail(e.to_string()))?;
    let map: BTreeMap<String, String> = serde_json::from_value(value["weight_map"].clone())
        .map_err(|e| fail(format!("weight_map: {e}")))?;
    let names: BTreeSet<String> = map.into_values().collect();
    for name in &names {
        // A plain file name: no `..`, no root, no trailing slash.
        let plain = Path::new(name).file_name().is_some_and(|file| file == name.as_str());
        if !plain {
            return Err(fail(format!("weight_map names `{name}`, which is not a plain file name")));
        }
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// Stands in for a tensor that will be reported; the model that holds it is thrown away. A single zero, because a damaged
/// configuration can require a shape that doesn't fit into memory.
pub(crate) fn placeholder(shape: &[usize]) -> TensorData {
    TensorData::zeros::<f32, _>(vec![1; shape.len()])
}

/// Collects every parameter except adapters as stored tensors, in the model's order.
#[derive(Default)]
struct Named {
    path: Vec<String>,
    tensors: Vec<Stored<'static>>,
}

impl Named {
    fn of(model: &LanguageModel) -> Vec<Stored<'static>> {
        let mut named = Self::default();
        model.visit(&mut named);
        named.tensors
    }
}

impl ModuleVisitor for Named {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.path.iter().any(|name| name == "lora") {
            return;
        }
        let path = self.path.join(".");
        let tensor = Stored::new(stored_name(&path).to_owned(), param.val());
        match self.tensors.last_mut() {
            Some(last) if last.name == tensor.name => last.append(tensor),
            _ => self.tensors.push(tensor),
        }
    }
}

/// Writes a folder that `AutoModelForCausalLM.from_pretrained` opens: `config.json`, `generation_config.json` and the weights in
/// float32, with any adapters merged into them. The folder must exist. The tokenizer's files are left to the caller, and so is
/// writing into a temporary folder and renaming it if a crash must not leave a partial checkpoint.
///
/// # Errors
/// A file that can't be written.
pub fn save(model: &LanguageModel, folder: &Path) -> Result<(), Error> {
    save_sharded(model, Named::of(model), folder, SHARD_BYTES)
}

/// [`save`] for a model whose adapters were trained on the checkpoint in `base`. The base weights are read from there again,
/// because the model in memory may hold them rounded to bfloat16.
///
/// # Errors
/// As in [`load`] for `base`, or a file that can't be written.
pub fn save_merged(model: &LanguageModel, base: &Path, folder: &Path) -> Result<(), Error> {
    let files = Files::open(file_names(base)?)?;
    let views = language_model(model.config().family, files.views()?);
    let (mut tensors, mut problems) = (Vec::new(), Vec::new());
    for Stored { name, shape, .. } in Named::of(model) {
        let view = match expected(&views, &name, &shape) {
            Ok(view) => view,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        let row = shape[1..].iter().product::<usize>();
        let (files, label) = (&files, name.clone());
        tensors.push(Stored::of(name, shape, move |rows| {
            files.read(view, rows.start * row..rows.end * row).map_err(|message| Error::Weights {
                path: base.to_owned(),
                problems: vec![format!("`{label}`: {message}")],
            })
        }));
    }
    match problems.is_empty() {
        true => save_sharded(model, tensors, folder, SHARD_BYTES),
        false => Err(Error::Weights { path: base.to_owned(), problems }),
    }
}

fn save_sharded(
    model: &LanguageModel,
    tensors: Vec<Stored>,
    folder: &Path,
    shard_bytes: usize,
) -> Result<(), Error> {
    let config = model.config();
    write_json(&folder.join("config.json"), &config.to_json("float32"))?;
    let generation = json!({
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids,
        "pad_token_id": config.pad_token_id,
    });
    write_json(&folder.join("generation_config.json"), &generation)?;

    let adapters = model.adapters().map(|(path, lora)| (format!("{path}.weight"), lora));
    let adapters: BTreeMap<String, &Lora> = adapters.collect();
    let mut shards: Vec<Vec<Stored>> = vec![Vec::new()];
    let (mut size, mut total) = (0, 0);
    for tensor in tensors {
        let tensor = match adapters.get(&tensor.name) {
            Some(lora) => tensor.plus(|rows| lora.delta(rows).into_data().iter().collect()),
            None => tensor,
        };
        let bytes = tensor.bytes();
        if size + bytes > shard_bytes && size > 0 {
            shards.push(Vec::new());
            size = 0;
        }
        size += bytes;
        total += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    let count = shards.len();
    let mut weight_map = serde_json::Map::new();
    for (i, shard) in shards.into_iter().enumerate() {
        let file = match count {
            1 => SINGLE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        weight_map.extend(shard.iter().map(|tensor| (tensor.name.clone(), json!(file))));
        tensor_file::write(&folder.join(&file), shard)?;
    }
    if count > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        write_json(&folder.join(INDEX), &index)?;
    }
    Ok(())
}

pub(crate) fn write_json(path: &Path, value: &Value) -> Result<(), Error> {
    let text = format!("{value:#}\n");
    std::fs::write(path, text).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    /// Oracle: the tensors of the saved model.
    #[test]
    fn shards_hold_the_same_bits() {
        let config = r#"{"model_type": "gemma2", "vocab_size": 19, "hidden_size": 8,
            "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 4}"#;
        let config = ModelConfig::from_json(config).unwrap();
        let model = random(&config, 7, &Device::flex()).unwrap();
        let bits = |model: &LanguageModel| {
            let tensors = Named::of(model).into_iter();
            let of_tensor = |tensor: &Stored| -> Vec<u32> {
                let numbers = tensor.numbers(0..tensor.shape[0]).unwrap();
                numbers.into_iter().map(f32::to_bits).collect()
            };
            tensors.map(|tensor| (tensor.name.clone(), of_tensor(&tensor))).collect::<Vec<_>>()
        };
        let tensors = bits(&model);
        let total = 4 * tensors.iter().map(|(_, bits)| bits.len()).sum::<usize>();
        // One file; several; one per tensor, each larger than the limit.
        for (limit, files) in
            [(total, 1..=1), (total / 3, 3..=6), (1, tensors.len()..=tensors.len())]
        {
            let folder = tempfile::tempdir().unwrap();
            save_sharded(&model, Named::of(&model), folder.path(), limit).unwrap();
            let names = std::fs::read_dir(folder.path()).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let count = names.filter(|name| name.ends_with(".safetensors")).count();
            assert!(files.contains(&count), "{count} files of at most {limit} bytes");
            assert_eq!(folder.path().join(INDEX).exists(), count > 1);

            assert!(bits(&load(folder.path(), &Device::flex()).unwrap()) == tensors);
            if count > 1 {
                let index = std::fs::read_to_string(folder.path().join(INDEX)).unwrap();
                let index: Value = serde_json::from_str(&index).unwrap();
                assert_eq!(index["metadata"]["total_size"], total);
                let last = format!("model-{count:05}-of-{count:05}.safetensors");
                assert_eq!(index["weight_map"]["model.norm.weight"], last);
                std::fs::remove_file(folder.path().join(last)).unwrap();
                assert!(matches!(load(folder.path(), &Device::flex()), Err(Error::Io { .. })));
            }
        }
    }
}
