//! Safetensors files: read through a memory map some rows at a time, written without a copy of what is written.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, BufWriter, Write},
    ops::Range,
    path::{Path, PathBuf},
};

use burn::tensor::Tensor;
use half::{bf16, f16};
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use safetensors::{
    Dtype, SafeTensors,
    tensor::{Metadata, TensorInfo, TensorView},
};

use crate::Error;

/// Numbers that come from a device at once.
const PIECE: usize = 1 << 22;

/// The memory-mapped files of a checkpoint.
pub struct Files(Vec<(PathBuf, Mmap)>);

impl Files {
    /// Maps files.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn open(paths: impl IntoIterator<Item = PathBuf>) -> Result<Self, Error> {
        paths.into_iter().map(map).collect::<Result<_, _>>().map(Self)
    }

    /// Every tensor by its name.
    ///
    /// # Errors
    /// A damaged file, or two tensors of the same name.
    pub fn views(&self) -> Result<BTreeMap<String, TensorView<'_>>, Error> {
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

    /// Some numbers of a tensor of these files, by their places in it, in float32. The memory behind them is let go of: whoever
    /// reads them again gets them from the disk. So a checkpoint is never in memory twice.
    ///
    /// # Errors
    /// Its type is not one of weights, or it has not so many numbers.
    pub fn read(&self, view: &TensorView, places: Range<usize>) -> Result<Vec<f32>, String> {
        let size = match view.dtype() {
            Dtype::F32 => 4,
            Dtype::BF16 | Dtype::F16 => 2,
            other => {
                return Err(format!("{other:?} weights are not supported: F32, BF16, F16 are"));
            }
        };
        let Some(bytes) = view.data().get(places.start * size..places.end * size) else {
            return Err(format!("has no numbers {places:?}, its shape is {:?}", view.shape()));
        };
        let values = match view.dtype() {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::BF16 => {
                bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).into()).collect()
            }
            _ => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).into()).collect(),
        };
        self.release(bytes);
        Ok(values)
    }

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
}

fn map(path: PathBuf) -> Result<(PathBuf, Mmap), Error> {
    let file = File::open(&path).map_err(Error::io(&path))?;
    // SAFETY: the map is only read. A file that shrinks meanwhile ends the process, as with every program
    // that maps checkpoints.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?;
    Ok((path, map))
}

/// A tensor on its way into a file.
pub struct Stored {
    /// Its name there.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// Its values, in one or several tensors one after the other.
    pub parts: Vec<Tensor<1>>,
}

impl Stored {
    /// Of values that are one tensor of any shape.
    pub fn new<const D: usize>(name: String, values: Tensor<D>) -> Self {
        let values = values.without_autodiff();
        let shape = values.dims();
        let count = shape.iter().product::<usize>();
        Self { name, shape: shape.to_vec(), parts: vec![values.reshape([count])] }
    }

    /// Puts the rows of `other` behind those that are there.
    pub fn append(&mut self, other: Self) {
        self.shape[0] += other.shape[0];
        self.parts.extend(other.parts);
    }

    /// Bytes in a file.
    pub fn bytes(&self) -> usize {
        size_of::<f32>() * self.shape.iter().product::<usize>()
    }
}

/// Writes tensors in float32 and in the order of their names, each as it comes from its device.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, mut tensors: Vec<Stored>) -> Result<(), Error> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut end = 0;
    let infos = tensors.iter().map(|tensor| {
        let start = end;
        end += tensor.bytes();
        let shape = tensor.shape.clone();
        (tensor.name.clone(), TensorInfo { dtype: Dtype::F32, shape, data_offsets: (start, end) })
    });
    let fail = |message: String| Error::Format { path: path.to_owned(), message };
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(format), infos.collect()).map_err(|e| fail(e.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(|e| fail(e.to_string()))?;
    // The numbers begin at a multiple of eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');

    let write = || -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for part in tensors.iter().flat_map(|tensor| &tensor.parts) {
            for piece in part.clone().split(PIECE, 0) {
                file.write_all(piece.into_data().convert::<f32>().as_bytes())?;
            }
        }
        file.into_inner()?.sync_all()
    };
    write().map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    /// Oracle: the safetensors library.
    #[test]
    fn files_are_those_of_the_library() {
        let folder = tempfile::tempdir().unwrap();
        let values: Vec<f32> = (0..30).map(|i| (i as f32).sin()).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let tensor = |range: Range<usize>| {
            let count = range.len();
            let data = TensorData::new(values[range].to_vec(), [count]);
            Tensor::<1>::from_data(data, &Device::flex())
        };
        let expected = folder.path().join("expected");
        let view = |shape: Vec<usize>, range: Range<usize>| {
            TensorView::new(Dtype::F32, shape, &bytes[4 * range.start..4 * range.end]).unwrap()
        };
        let views = [("b", view(vec![4, 3], 0..12)), ("a.c", view(vec![18], 12..30))];
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize_to_file(views, Some(format), &expected).unwrap();

        let found = folder.path().join("found");
        let mut parts = Stored::new("b".into(), tensor(0..3).reshape([1, 3]));
        parts.append(Stored::new("b".into(), tensor(3..12).reshape([3, 3])));
        write(&found, vec![parts, Stored::new("a.c".into(), tensor(12..30))]).unwrap();
        assert!(std::fs::read(&found).unwrap() == std::fs::read(&expected).unwrap());

        let files = Files::open([found]).unwrap();
        let views = files.views().unwrap();
        assert_eq!(files.read(&views["b"], 5..9).unwrap(), values[5..9]);
        assert!(files.read(&views["b"], 5..13).is_err());
    }
}
