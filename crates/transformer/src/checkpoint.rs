//! A model's folder as others write it: which of its files hold the weights, and what the tensors in them are called here.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use burn::tensor::{DType, TensorData};
use fpo_torch_file::{Dtype as TorchType, TorchFile};
use half::bf16;
use safetensors::tensor::TensorView;
use serde_json::Value;

use crate::{
    Error, Family, Piece, WeightType,
    multimodal::language_model,
    tensor_file::{Files, Held},
};

/// The file with all weights, as it is written.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The file that says which of several files each tensor is in.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// A single file and its index, in the order in which transformers looks for them
/// (`_get_resolved_checkpoint_files` in its `modeling_utils.py`).
const FORMS: [[&str; 2]; 2] =
    [[SINGLE, INDEX], ["pytorch_model.bin", "pytorch_model.bin.index.json"]];
/// Buffers that older versions of transformers stored with the weights. They follow from `config.json`.
const BUFFERS: [&str; 1] = ["rotary_emb.inv_freq"];
/// Elements of a file of PyTorch converted at a time.
const BLOCK: usize = 1 << 20;

/// The files in a folder that hold a model's weights.
#[derive(Debug)]
pub(crate) struct WeightFiles {
    pub files: Vec<PathBuf>,
    /// The index beside a single file, if there is one: of the two, one is left from an earlier save.
    leftover: Option<PathBuf>,
}

impl WeightFiles {
    /// Those that transformers takes.
    pub fn of(folder: &Path) -> Result<Self, Error> {
        for [single, index] in FORMS {
            let [single, index] = [single, index].map(|name| folder.join(name));
            if single.is_file() {
                let leftover = Some(index).filter(|index| index.is_file());
                return Ok(Self { files: vec![single], leftover });
            }
            if index.is_file() {
                return Ok(Self { files: shards(folder, &index)?, leftover: None });
            }
        }
        let names = FORMS.as_flattened().join(", ");
        let message = format!("no weights in this folder: none of {names}");
        Err(Error::io(folder)(io::Error::new(io::ErrorKind::NotFound, message)))
    }

    pub fn open(&self) -> Result<Opened, Error> {
        Opened::open(&self.files)
    }
}

/// Why a folder's weights may be others than its owner thinks: an index of shards, left from an earlier save, beside the single
/// file that is read.
pub fn leftover(folder: &Path) -> Option<String> {
    let WeightFiles { files, leftover } = WeightFiles::of(folder).ok()?;
    let (read, index) = (files.first()?.file_name()?.display(), leftover?);
    Some(format!(
        "{}: the weights are those of {read}, as in transformers; {} and its shards, left from another save, are not read: \
         delete what is out of date",
        folder.display(),
        index.file_name()?.display()
    ))
}

/// The files that an index names.
fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>, Error> {
    let fail = |message: String| Error::Format { path: index.to_owned(), message };
    let text = std::fs::read_to_string(index).map_err(Error::io(index))?;
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

/// Open files of one of the two kinds.
pub(crate) enum Opened {
    Safe(Files),
    Torch(Vec<TorchFile>),
}

impl Opened {
    /// Opens files, by their names' ending.
    pub fn open(files: &[PathBuf]) -> Result<Self, Error> {
        let torch = files.iter().any(|file| file.extension().is_some_and(|ending| ending == "bin"));
        Ok(match torch {
            false => Self::Safe(Files::open(files.iter().cloned())?),
            true => {
                let files = files.iter().map(|file| TorchFile::open(file));
                Self::Torch(files.collect::<Result<_, _>>()?)
            }
        })
    }

    /// Every tensor by the name that it has in the file.
    pub fn tensors(&self) -> Result<BTreeMap<String, Source<'_>>, Error> {
        match self {
            Self::Safe(files) => {
                let views = files.views()?.into_iter();
                Ok(views.map(|(name, view)| (name, Source::Safe(files, view))).collect())
            }
            Self::Torch(files) => {
                let mut tensors = BTreeMap::new();
                for file in files {
                    for (name, tensor) in file.root().tensors() {
                        tensors.insert(name, Source::Torch(file, tensor));
                    }
                }
                Ok(tensors)
            }
        }
    }

    /// Every tensor by the name of the model's parameter: with the prefix `model.`, which files of a decoder without its head
    /// lack, without buffers, and without other parts of a multimodal model.
    pub fn parameters(&self, family: Family) -> Result<BTreeMap<String, Source<'_>>, Error> {
        let tensors = language_model(family, self.tensors()?);
        let prefixed = tensors.keys().any(|name| name.starts_with("model."));
        let named = tensors.into_iter().filter_map(|(name, source)| {
            let name = match prefixed || name.starts_with("lm_head.") {
                true => name,
                false => format!("model.{name}"),
            };
            (!BUFFERS.iter().any(|buffer| name.ends_with(buffer))).then_some((name, source))
        });
        Ok(named.collect())
    }
}

/// A tensor in an open file.
pub(crate) enum Source<'a> {
    Safe(&'a Files, TensorView<'a>),
    Torch(&'a TorchFile, &'a fpo_torch_file::Tensor),
}

impl Source<'_> {
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::Safe(_, view) => view.shape(),
            Self::Torch(_, tensor) => tensor.shape(),
        }
    }

    /// The type in which it is stored again.
    pub fn weight_type(&self) -> WeightType {
        match self {
            Self::Safe(_, view) => WeightType::of(view.dtype()),
            Self::Torch(_, tensor) => match tensor.dtype() {
                TorchType::BF16 => WeightType::Bfloat16,
                TorchType::F16 => WeightType::Float16,
                _ => WeightType::Float32,
            },
        }
    }

    /// Some elements, given by their positions in the flattened tensor, in float32.
    pub fn read(&self, places: Range<usize>) -> Result<Vec<f32>, String> {
        match self {
            Self::Safe(files, view) => files.read(view, places),
            Self::Torch(file, tensor) => file.read(tensor, places).map_err(|e| e.to_string()),
        }
    }

    /// The values of a piece of a parameter in the type in which they are stored, block by block: of a large table, there is never
    /// a second copy in memory.
    pub fn values(&self, piece: &Piece) -> Result<TensorData, String> {
        match piece.dtype {
            DType::BF16 => self.read_as::<bf16>(piece),
            _ => self.read_as::<f32>(piece),
        }
    }

    fn read_as<E: Held>(&self, piece: &Piece) -> Result<TensorData, String> {
        let places = piece.places();
        let values = match self {
            Self::Safe(files, view) => files.read_as::<E>(view, places)?,
            Self::Torch(..) => {
                let mut values = Vec::with_capacity(places.len());
                for start in places.clone().step_by(BLOCK) {
                    let block = self.read(start..(start + BLOCK).min(places.end))?;
                    values.extend(block.into_iter().map(E::of));
                }
                values
            }
        };
        Ok(TensorData::new(values, piece.dims()))
    }

    /// Whether it has the same shape and elements.
    pub fn equals(&self, other: &Self) -> bool {
        if self.shape() != other.shape() {
            return false;
        }
        if let (Self::Safe(_, a), Self::Safe(_, b)) = (self, other) {
            return a.dtype() == b.dtype() && a.data() == b.data();
        }
        let row: usize = self.shape().iter().skip(1).product();
        let rows = self.shape().first().copied().unwrap_or(1);
        let same = |i: usize| {
            let [ours, theirs] = [self, other].map(|of| of.read(i * row..(i + 1) * row));
            ours.is_ok() && ours == theirs
        };
        (0..rows).all(same)
    }
}
