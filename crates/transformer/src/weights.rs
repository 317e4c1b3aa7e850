//! Weights in and out: Hugging Face's folder layout, with safetensors or the older files of PyTorch.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::Path,
};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Tensor, TensorData},
};
use serde_json::{Value, json};

use crate::{
    Error, Family, LanguageModel, Lora, ModelConfig, Placement, WeightType,
    carried::carry,
    checkpoint::{INDEX, SINGLE, Source, WeightFiles},
    embedding::{EMBEDDING, HEAD},
    generation_config,
    mismatch::Mismatch,
    multimodal::is_vision,
    normal::Normal,
    tensor_file::{self, Stored},
};
pub use crate::{
    checkpoint::leftover,
    embedding::stored_name,
    origin::{Initial, Origin},
};

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

/// Reads a checkpoint's folder: `config.json` and the weights, in one file or sharded, in float32, bfloat16 or float16. The files
/// are those that transformers takes: `model.safetensors`, else its index and shards, else `pytorch_model.bin`, else its index
/// and shards. They are memory-mapped and converted block by block.
///
/// # Errors
/// A damaged file, a tensor that the device can't hold, or weights that don't match `config.json`: the tensors that are missing,
/// unknown, or of the wrong shape or type are listed, the first of each kind where there are many.
pub fn load(folder: &Path, placement: impl Into<Placement>) -> Result<LanguageModel, Error> {
    let config = ModelConfig::load(folder)?;
    let files = WeightFiles::of(folder)?.open()?;
    let sources = files.parameters(config.family)?;
    let mut mismatch = Mismatch::default();
    let mut used = BTreeSet::new();
    let model = LanguageModel::build(&config, placement, &mut |piece| {
        used.insert(piece.name.to_owned());
        let values = expected(&sources, piece.name, piece.shape, &mut mismatch)
            .map(|source| source.values(piece));
        Ok(match values {
            Some(Ok(values)) => values,
            Some(Err(message)) => {
                mismatch.wrong.push(format!("`{}`: {message}", piece.name));
                placeholder(piece.shape)
            }
            None => placeholder(piece.shape),
        })
    })?;
    for (name, source) in sources.iter().filter(|(name, _)| !used.contains(*name)) {
        // Some exports store the tied head as well, which is harmless if it equals the embedding.
        let tied = name == HEAD && sources.get(EMBEDDING).is_some_and(|table| table.equals(source));
        if !tied {
            mismatch.unknown.push(format!("`{name}` {:?}", source.shape()));
        }
    }
    match mismatch.is_empty() {
        true => Ok(model),
        false => Err(Error::Weights { path: folder.to_owned(), problems: mismatch.lines(&config) }),
    }
}

/// How many tensors of a checkpoint's folder [`load`] leaves out, because they belong to a part that reads images.
///
/// # Errors
/// As in [`load`] for files that can't be read.
pub fn left_out(folder: &Path) -> Result<usize, Error> {
    match ModelConfig::load(folder)?.family {
        Family::Gemma3 => {
            let files = WeightFiles::of(folder)?.open()?;
            Ok(files.tensors()?.keys().filter(|name| is_vision(name)).count())
        }
        Family::Gemma2 | Family::Llama | Family::Qwen2 | Family::Qwen3 => Ok(0),
    }
}

/// The source of a parameter; what is wrong with it is added to `mismatch`, once for all of its pieces.
fn expected<'a>(
    sources: &'a BTreeMap<String, Source<'a>>,
    name: &str,
    shape: &[usize],
    mismatch: &mut Mismatch,
) -> Option<&'a Source<'a>> {
    let (list, message) = match sources.get(name) {
        None => (&mut mismatch.missing, format!("`{name}` {shape:?}")),
        Some(source) if source.shape() != shape => (
            &mut mismatch.wrong,
            format!("`{name}` is {:?}, but config.json requires {shape:?}", source.shape()),
        ),
        Some(source) => return Some(source),
    };
    if list.last() != Some(&message) {
        list.push(message);
    }
    None
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

/// Every parameter except adapters, in the model's order.
pub(crate) fn parameters(model: &LanguageModel) -> Vec<Stored<'static>> {
    let mut named = Named::default();
    model.visit(&mut named);
    named.tensors
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
    save_from(model, &Origin::default(), folder)
}

/// [`save`] for a model that comes from other files: weights are written in the base's types, `config.json` is the base's, and
/// every file of the base that isn't about its weights is carried over. If the model has adapters, the weights under them are
/// read from the base again, because the model in memory may hold them rounded to bfloat16.
///
/// # Errors
/// As in [`load`] for the base, or a file that can't be written.
pub fn save_from(model: &LanguageModel, origin: &Origin, folder: &Path) -> Result<(), Error> {
    let files = match &origin.base {
        Some(base) => Some(WeightFiles::of(base)?.open()?),
        None => None,
    };
    let sources =
        files.as_ref().map(|files| files.parameters(model.config().family)).transpose()?;
    let mut mismatch = Mismatch::default();
    let mut tensors = Vec::new();
    for tensor in parameters(model) {
        let Some(sources) = &sources else {
            tensors.push(tensor);
            continue;
        };
        // The base of an adapter that unties the head has none.
        let tied = tensor.name == HEAD && !sources.contains_key(HEAD);
        let name = if tied { EMBEDDING } else { &tensor.name };
        let source = expected(sources, name, &tensor.shape, &mut mismatch);
        let Some(source) = source else { continue };
        let tensor = match model.lora() {
            Some(lora) if !lora.saves(&tensor.name) => {
                from_file(tensor.name, tensor.shape, source, folder)
            }
            _ => tensor,
        };
        tensors.push(tensor.stored_as(source.weight_type()));
    }
    if let (false, Some(base)) = (mismatch.is_empty(), &origin.base) {
        let problems = mismatch.lines(model.config());
        return Err(Error::Weights { path: base.clone(), problems });
    }
    if let Some(weight_type) = origin.weight_type {
        tensors = tensors.into_iter().map(|tensor| tensor.stored_as(weight_type)).collect();
    }
    write_json(&folder.join("config.json"), &config_json(model.config(), origin)?)?;
    carry(origin.base.as_deref(), origin.tokenizer.as_deref(), folder)?;
    let generation = folder.join(generation_config::FILE);
    if !generation.exists() {
        write_json(&generation, &generation_config::of(model.config()))?;
    }
    save_sharded(model, tensors, folder, SHARD_BYTES)
}

/// What remains of a trained model's change from its base in the types in which [`save_from`] writes the weights: the length of the
/// rounded change along the change, 1 if nothing is lost. Weights that moved by less than half a step of the base's type are
/// written as they were. `None` for a model without a base, with adapters, which are written in float32 too, or without a change.
///
/// # Errors
/// As in [`load`] for the base.
pub fn kept_change(model: &LanguageModel, origin: &Origin) -> Result<Option<f64>, Error> {
    let (Some(base), None) = (&origin.base, model.lora()) else { return Ok(None) };
    let files = WeightFiles::of(base)?.open()?;
    let sources = files.parameters(model.config().family)?;
    let (mut along, mut whole) = (0.0, 0.0);
    for tensor in parameters(model) {
        let Some(source) = sources.get(&tensor.name) else { continue };
        let weight_type = origin.weight_type.unwrap_or(source.weight_type());
        let of_base = from_file(tensor.name.clone(), tensor.shape.clone(), source, base);
        for rows in tensor.pieces() {
            let numbers = tensor.numbers(rows.clone())?.into_iter();
            for (after, before) in numbers.zip(of_base.numbers(rows)?) {
                let change = f64::from(after - before);
                along += f64::from(weight_type.rounded(after) - before) * change;
                whole += change * change;
            }
        }
    }
    Ok((whole > 0.0).then(|| along / whole))
}

/// A tensor to be written as it is in another file.
fn from_file<'a>(
    name: String,
    shape: Vec<usize>,
    source: &'a Source<'a>,
    folder: &'a Path,
) -> Stored<'a> {
    let row = shape[1..].iter().product::<usize>();
    let label = name.clone();
    Stored::of(name, shape, move |rows| {
        let values = source.read(rows.start * row..rows.end * row);
        values.map_err(|message| Error::Weights {
            path: folder.to_owned(),
            problems: vec![format!("`{label}`: {message}")],
        })
    })
}

/// The base's `config.json`, which may say more than is known here.
fn config_json(config: &ModelConfig, origin: &Origin) -> Result<Value, Error> {
    let weight_type = origin.weight_type.unwrap_or(WeightType::Float32);
    let written = config.to_json(weight_type.name());
    let Some(base) = &origin.base else { return Ok(written) };
    let path = base.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let mut json: Value = serde_json::from_str(&text)
        .map_err(|e| Error::Config { path: path.clone(), message: e.to_string() })?;
    // Of a multimodal base, the language model alone is written.
    if json["model_type"] != written["model_type"] {
        return Ok(written);
    }
    // The base may have been saved without its head; what is written has one.
    json["architectures"] = written["architectures"].clone();
    if !config.tie_word_embeddings {
        json["tie_word_embeddings"] = false.into();
    }
    if let Some(weight_type) = origin.weight_type {
        let key = if json.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        json[key] = weight_type.name().into();
    }
    Ok(json)
}

fn save_sharded(
    model: &LanguageModel,
    tensors: Vec<Stored>,
    folder: &Path,
    shard_bytes: usize,
) -> Result<(), Error> {
    let adapters = model.adapters().map(|(path, lora)| (format!("{path}.weight"), lora));
    let adapters: BTreeMap<String, &Lora> = adapters.collect();
    let mut shards: Vec<Vec<Stored>> = vec![Vec::new()];
    let (mut size, mut total) = (0, 0);
    for tensor in tensors {
        let tensor = match adapters.get(&tensor.name) {
            Some(lora) => tensor.map(|rows, weight| merged(lora, rows, weight)),
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

/// Some rows of a weight with an adapter merged into them.
fn merged(lora: &Lora, rows: Range<usize>, weight: Vec<f32>) -> Vec<f32> {
    let shape = [rows.len(), weight.len() / rows.len().max(1)];
    let weight = Tensor::from_data(TensorData::new(weight, shape), &lora.a.device());
    lora.merge(weight, rows).into_data().iter().collect()
}

pub(crate) fn write_json(path: &Path, value: &Value) -> Result<(), Error> {
    let text = format!("{value:#}\n");
    std::fs::write(path, text).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use burn::{module::ModuleMapper, tensor::Device};

    use super::*;
    use crate::{Precision, WeightType};

    const LLAMA: &str = r#"{"model_type": "llama", "vocab_size": 19, "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5}"#;

    /// Oracle: the same weights drawn for a model that isn't trained.
    #[test]
    fn a_frozen_model_is_held_as_if_it_had_never_been_trained() {
        let config = ModelConfig::from_json(LLAMA).unwrap();
        for precision in Precision::ALL {
            let placement = Placement::new(Device::flex(), precision);
            let trained = random(&config, 3, placement.autodiff()).unwrap();
            let (found, expected) = (trained.frozen(), random(&config, 3, &placement).unwrap());
            assert!(!found.device().is_autodiff());
            let types = |model: &LanguageModel| {
                let block = &model.model.layers[0];
                let (matrix, norm) =
                    (block.mlp.up_proj.weight.val(), model.model.norm.weight.val());
                [model.unembedding().parts()[0].dtype(), matrix.dtype(), norm.dtype()]
            };
            assert_eq!(types(&found), types(&expected));
            let (found, expected) = (parameters(&found), parameters(&expected));
            for (found, expected) in found.iter().zip(&expected) {
                let rows = 0..expected.shape[0];
                let found = found.numbers(rows.clone()).unwrap();
                assert_eq!(found, expected.numbers(rows).unwrap(), "{}", expected.name);
            }
        }
    }

    struct Scaled(f32);

    impl ModuleMapper for Scaled {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|x| x * self.0)
        }
    }

    /// Oracle: what was written, read again.
    #[test]
    fn a_small_change_is_lost_in_a_narrow_type() {
        let config = ModelConfig::from_json(LLAMA).unwrap();
        let device = Device::flex();
        let [base, written] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let narrow = Origin { weight_type: Some(WeightType::Bfloat16), ..Origin::default() };
        save_from(&random(&config, 3, &device).unwrap(), &narrow, base.path()).unwrap();
        let before = load(base.path(), &device).unwrap();
        let numbers = |model: &LanguageModel| -> Vec<f64> {
            let all = parameters(model).into_iter();
            let all = all.flat_map(|tensor| tensor.numbers(0..tensor.shape[0]).unwrap());
            all.map(f64::from).collect()
        };
        let as_base = Origin::base(base.path());
        let mut found = Vec::new();
        for scale in [1.0, 1.0 + 1.0 / 4096.0, 1.004, 2.0] {
            let after = before.clone().map(&mut Scaled(scale));
            save_from(&after, &as_base, written.path()).unwrap();
            let read = numbers(&load(written.path(), &device).unwrap());
            let (mut along, mut whole) = (0.0, 0.0);
            for ((after, before), read) in numbers(&after).iter().zip(numbers(&before)).zip(read) {
                along += (read - before) * (after - before);
                whole += (after - before).powi(2);
            }
            let kept = kept_change(&after, &as_base).unwrap();
            assert_eq!(kept.is_none(), whole == 0.0);
            let expected = along / whole;
            assert!(kept.is_none_or(|kept| (kept - expected).abs() < 1e-6), "{kept:?}, {expected}");
            found.push(kept);
            let wide = Origin { weight_type: Some(WeightType::Float32), ..as_base.clone() };
            assert_eq!(kept_change(&after, &wide).unwrap(), kept.map(|_| 1.0));
        }
        assert!(found[..2] == [None, Some(0.0)] && found[3] == Some(1.0), "{found:?}");
        assert!(found[2].is_some_and(|kept| kept > 0.3 && kept != 1.0), "{found:?}");
    }

    /// Oracle: the tensors of the saved model.
    #[test]
    fn shards_hold_the_same_bits() {
        let config = r#"{"model_type": "gemma2", "vocab_size": 19, "hidden_size": 8,
            "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 4}"#;
        let config = ModelConfig::from_json(config).unwrap();
        let model = random(&config, 7, &Device::flex()).unwrap();
        let bits = |model: &LanguageModel| {
            let tensors = parameters(model).into_iter();
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
            write_json(&folder.path().join("config.json"), &config.to_json("float32")).unwrap();
            save_sharded(&model, parameters(&model), folder.path(), limit).unwrap();
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
