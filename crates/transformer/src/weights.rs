//! Weights in and out: Hugging Face's folder layout with safetensors.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    path::{Path, PathBuf},
};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Tensor, TensorData},
};
use half::{bf16, f16};
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

use crate::{Error, Gemma2, Gemma2Config, Placement};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// A file of weights is cut before this many bytes.
const SHARD_BYTES: usize = 5_000_000_000;

/// A model with normally distributed weights of the configuration's `initializer_range`; the same
/// seed gives the same weights on every device.
pub fn random(
    config: &Gemma2Config,
    seed: u64,
    placement: impl Into<Placement>,
) -> Result<Gemma2, Error> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Gemma2::build(config, placement, &mut |name, shape| {
        let count = shape.iter().product::<usize>();
        // A norm's weight is added to one: zero is where it starts.
        let values = match name.ends_with("norm.weight") {
            true => vec![0.0; count],
            false => normal(&mut rng, count, config.initializer_range),
        };
        Ok(TensorData::new(values, shape.to_vec()))
    })
}

/// Normal numbers by the Box-Muller transform.
fn normal(rng: &mut ChaCha8Rng, count: usize, std: f64) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * std;
        let angle = std::f64::consts::TAU * rng.random::<f64>();
        values.push((radius * angle.cos()) as f32);
        values.push((radius * angle.sin()) as f32);
    }
    values.truncate(count);
    values
}

/// Reads `config.json` and the weights of a checkpoint's folder, one file or sharded, in float32,
/// bfloat16 or float16. Files are memory-mapped; a tensor is converted when its turn comes.
///
/// # Errors
/// A damaged file, or (all at once) every tensor that is missing, mis-shaped, of another type or unknown.
pub fn load(folder: &Path, placement: impl Into<Placement>) -> Result<Gemma2, Error> {
    let config = Gemma2Config::load(folder)?;
    let files = Files::open(folder)?;
    let views = files.views()?;
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    let model = Gemma2::build(&config, placement, &mut |name, shape| {
        used.insert(name.to_owned());
        let Some(view) = views.get(name) else {
            problems.push(format!("`{name}` {shape:?} is missing"));
            return Ok(placeholder(shape));
        };
        if view.shape() != shape {
            problems
                .push(format!("`{name}` is {:?}, config.json makes it {shape:?}", view.shape()));
            return Ok(placeholder(shape));
        }
        let data = to_data(view).unwrap_or_else(|message| {
            problems.push(format!("`{name}`: {message}"));
            placeholder(shape)
        });
        files.release(view.data());
        Ok(data)
    })?;
    for (name, view) in &views {
        // Some exports store the tied head a second time: harmless where it is the embedding's copy.
        let tied = name == "lm_head.weight"
            && views.get("model.embed_tokens.weight").is_some_and(|e| e.data() == view.data());
        if !used.contains(name) && !tied {
            problems.push(format!("`{name}` {:?} is not part of Gemma-2", view.shape()));
        }
    }
    match problems.is_empty() {
        true => Ok(model),
        false => Err(Error::Weights { path: folder.to_owned(), problems }),
    }
}

/// Stands in for a tensor that will be reported; the model that holds it is thrown away. A single zero,
/// because a damaged configuration can ask for a shape that no memory holds.
pub(crate) fn placeholder(shape: &[usize]) -> TensorData {
    TensorData::zeros::<f32, _>(vec![1; shape.len()])
}

/// The memory-mapped files of a checkpoint.
pub(crate) struct Files(Vec<(PathBuf, Mmap)>);

impl Files {
    fn open(folder: &Path) -> Result<Self, Error> {
        let index = folder.join(INDEX);
        let names: BTreeSet<String> = match index.exists() {
            false => BTreeSet::from([SINGLE.to_owned()]),
            true => {
                let fail = |message: String| Error::Format { path: index.clone(), message };
                let text = std::fs::read_to_string(&index).map_err(Error::io(&index))?;
                let value: Value = serde_json::from_str(&text).map_err(|e| fail(e.to_string()))?;
                let map: BTreeMap<String, String> =
                    serde_json::from_value(value["weight_map"].clone())
                        .map_err(|e| fail(format!("weight_map: {e}")))?;
                map.into_values().collect()
            }
        };
        let mut files = Vec::new();
        for name in names {
            // A component that is the whole name: no `..`, no root, no trailing slash.
            let plain = Path::new(&name).file_name().is_some_and(|file| file == name.as_str());
            if !plain {
                let message = format!("weight_map names `{name}`, which is not a plain file name");
                return Err(Error::Format { path: index, message });
            }
            files.push(map(folder.join(name))?);
        }
        Ok(Self(files))
    }

    pub(crate) fn single(path: PathBuf) -> Result<Self, Error> {
        Ok(Self(vec![map(path)?]))
    }

    /// Lets go of the memory behind a part of the files that has been read; whoever reads it again gets it from the disk. So a
    /// checkpoint is never in memory twice.
    fn release(&self, part: &[u8]) {
        #[cfg(unix)]
        for (_, map) in &self.0 {
            let offset = (part.as_ptr() as usize).wrapping_sub(map.as_ptr() as usize);
            if offset < map.len() {
                // SAFETY: the map is of a file and only read, so that its pages hold nothing that the file doesn't.
                let _ = unsafe {
                    map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, part.len())
                };
            }
        }
        #[cfg(not(unix))]
        let _ = part;
    }

    pub(crate) fn views(&self) -> Result<BTreeMap<String, TensorView<'_>>, Error> {
        let mut views = BTreeMap::new();
        for (path, map) in &self.0 {
            let fail = |message: String| Error::Format { path: path.clone(), message };
            let file = SafeTensors::deserialize(map).map_err(|e| fail(e.to_string()))?;
            for (name, view) in file.tensors() {
                if views.insert(name.clone(), view).is_some() {
                    return Err(fail(format!("`{name}` stands in two files")));
                }
            }
        }
        Ok(views)
    }
}

fn map(path: PathBuf) -> Result<(PathBuf, Mmap), Error> {
    let file = File::open(&path).map_err(Error::io(&path))?;
    // SAFETY: the map is only read. A file that shrinks meanwhile ends the process, as with every program
    // that maps checkpoints.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?;
    Ok((path, map))
}

/// The values of a stored tensor in float32.
pub(crate) fn to_data(view: &TensorView) -> Result<TensorData, String> {
    let bytes = view.data();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).into()).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).into()).collect(),
        other => return Err(format!("{other:?} weights are not supported: F32, BF16, F16 are")),
    };
    Ok(TensorData::new(values, view.shape().to_vec()))
}

/// Every parameter by its name in a checkpoint, in the model's order.
#[derive(Default)]
struct Named {
    path: Vec<String>,
    tensors: Vec<(String, TensorData)>,
}

impl ModuleVisitor for Named {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.tensors.push((self.path.join("."), param.val().to_data().convert::<f32>()));
    }
}

/// Writes `config.json`, `generation_config.json` and the weights in float32, in the layout that
/// `AutoModelForCausalLM.from_pretrained` opens. Adapters are merged into the weights. Tokenizer files
/// are the caller's to add. The folder must exist; write into a temporary one and rename it where a crash
/// must leave nothing half done.
pub fn save(model: &Gemma2, folder: &Path) -> Result<(), Error> {
    save_sharded(model, folder, SHARD_BYTES)
}

fn save_sharded(model: &Gemma2, folder: &Path, shard_bytes: usize) -> Result<(), Error> {
    let config = model.config();
    write_json(&folder.join("config.json"), &config.to_json("float32"))?;
    let generation = json!({
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids,
        "pad_token_id": config.pad_token_id,
    });
    write_json(&folder.join("generation_config.json"), &generation)?;

    let mut named = Named::default();
    model.merged().visit(&mut named);
    let mut shards: Vec<Vec<(String, TensorData)>> = vec![Vec::new()];
    let (mut size, mut total) = (0, 0);
    for (name, data) in named.tensors {
        let bytes = data.as_bytes().len();
        if size + bytes > shard_bytes && size > 0 {
            shards.push(Vec::new());
            size = 0;
        }
        size += bytes;
        total += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push((name, data));
        }
    }
    let count = shards.len();
    let mut weight_map = serde_json::Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let file = match count {
            1 => SINGLE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        write_tensors(&folder.join(&file), shard)?;
        weight_map.extend(shard.iter().map(|(name, _)| (name.clone(), json!(file))));
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

pub(crate) fn write_tensors(path: &Path, tensors: &[(String, TensorData)]) -> Result<(), Error> {
    let fail = |message: String| Error::Format { path: path.to_owned(), message };
    let mut views = Vec::with_capacity(tensors.len());
    for (name, data) in tensors {
        let view = TensorView::new(Dtype::F32, data.shape().to_vec(), data.as_bytes())
            .map_err(|e| fail(format!("`{name}`: {e}")))?;
        views.push((name.as_str(), view));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    // safetensors writes a file that its owner alone may read; here it gets what any new file gets.
    let new = File::options().append(true).create(true).open(path);
    let new = new.and_then(|file| file.metadata()).map_err(Error::io(path))?;
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|e| fail(e.to_string()))?;
    std::fs::set_permissions(path, new.permissions()).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    /// Oracle: the tensors of the model that was saved.
    #[test]
    fn shards_hold_the_same_bits() {
        let config = r#"{"model_type": "gemma2", "vocab_size": 19, "hidden_size": 8,
            "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 4}"#;
        let config = Gemma2Config::from_json(config).unwrap();
        let model = random(&config, 7, &Device::flex()).unwrap();
        let bytes = |model: &Gemma2| {
            let mut named = Named::default();
            model.visit(&mut named);
            named
                .tensors
                .into_iter()
                .map(|(name, data)| (name, data.as_bytes().to_vec()))
                .collect::<Vec<_>>()
        };
        let tensors = bytes(&model);
        let total = tensors.iter().map(|(_, data)| data.len()).sum::<usize>();
        // One file; a few; one for every tensor, each larger than the limit.
        for (limit, files) in
            [(total, 1..=1), (total / 3, 3..=6), (1, tensors.len()..=tensors.len())]
        {
            let folder = tempfile::tempdir().unwrap();
            save_sharded(&model, folder.path(), limit).unwrap();
            let names = std::fs::read_dir(folder.path()).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let count = names.filter(|name| name.ends_with(".safetensors")).count();
            assert!(files.contains(&count), "{count} files of at most {limit} bytes");
            assert_eq!(folder.path().join(INDEX).exists(), count > 1);

            assert!(bytes(&load(folder.path(), &Device::flex()).unwrap()) == tensors);
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
