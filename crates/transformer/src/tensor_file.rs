//! Safetensors files: read through a memory map and written a few rows at a time, so that no copy of a file is in memory.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{BufWriter, Write},
    mem::MaybeUninit,
    ops::Range,
    path::{Path, PathBuf},
};

use burn::tensor::{Element, Tensor};
use half::{bf16, f16};
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use rayon::prelude::*;
use safetensors::{
    Dtype, SafeTensors,
    tensor::{Metadata, TensorInfo, TensorView},
};

use crate::{Error, WeightType};

/// Elements read or written at a time.
const PIECE: usize = 1 << 20;

/// The memory-mapped files of a checkpoint.
pub struct Files(Vec<(PathBuf, Mmap)>);

impl Files {
    /// Maps files into memory.
    ///
    /// # Errors
    /// A file that can't be read.
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
                    return Err(fail(format!("`{name}` is in two files")));
                }
            }
        }
        Ok(views)
    }

    /// Some elements of a tensor in these files, given by their positions in the flattened tensor, in float32. Their pages are
    /// released, so that a checkpoint is never in memory twice; reading them again goes to the disk.
    ///
    /// # Errors
    /// An unsupported element type, or positions beyond the tensor.
    pub fn read(&self, view: &TensorView, places: Range<usize>) -> Result<Vec<f32>, String> {
        self.read_as(view, places)
    }

    /// [`Self::read`] in the type in which the elements are held, block by block on all threads.
    pub(crate) fn read_as<E: Held>(
        &self,
        view: &TensorView,
        places: Range<usize>,
    ) -> Result<Vec<E>, String> {
        let size = match view.dtype() {
            Dtype::F64 => 8,
            Dtype::F32 => 4,
            Dtype::BF16 | Dtype::F16 => 2,
            other => {
                return Err(format!(
                    "{other:?} weights are not supported, only F64, F32, BF16 and F16 are"
                ));
            }
        };
        let Some(bytes) = view.data().get(places.start * size..places.end * size) else {
            return Err(format!("has no elements {places:?}: its shape is {:?}", view.shape()));
        };
        let mut values = Vec::with_capacity(places.len());
        let room = &mut values.spare_capacity_mut()[..places.len()];
        let blocks = room.par_chunks_mut(PIECE).zip(bytes.par_chunks(PIECE * size));
        blocks.for_each(|(values, bytes)| {
            match view.dtype() {
                Dtype::F64 => fill(values, bytes, |b| E::of(f64::from_le_bytes(b) as f32)),
                Dtype::F32 => fill(values, bytes, |b| E::of(f32::from_le_bytes(b))),
                Dtype::BF16 => fill(values, bytes, |b| E::of_bf16(bf16::from_le_bytes(b))),
                _ => fill(values, bytes, |b| E::of(f16::from_le_bytes(b).into())),
            }
            self.release(bytes);
        });
        // SAFETY: the blocks are all of these elements, and each is filled.
        unsafe { values.set_len(places.len()) };
        Ok(values)
    }

    fn release(&self, part: &[u8]) {
        #[cfg(unix)]
        for (_, map) in &self.0 {
            let offset = (part.as_ptr() as usize).wrapping_sub(map.as_ptr() as usize);
            if offset < map.len() {
                // SAFETY: the map is a read-only view of a file, so its pages can be read again.
                let _ = unsafe {
                    map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, part.len())
                };
            }
        }
        #[cfg(not(unix))]
        let _ = part;
    }
}

/// A type in which weights are held in memory.
pub(crate) trait Held: Element {
    fn of(value: f32) -> Self;
    fn of_bf16(value: bf16) -> Self;
}

impl Held for f32 {
    fn of(value: f32) -> Self {
        value
    }

    fn of_bf16(value: bf16) -> Self {
        value.into()
    }
}

impl Held for bf16 {
    fn of(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn of_bf16(value: bf16) -> Self {
        value
    }
}

/// Fills `values` from `bytes`, N of which are an element; there are as many of both.
fn fill<const N: usize, E>(
    values: &mut [MaybeUninit<E>],
    bytes: &[u8],
    element: impl Fn([u8; N]) -> E,
) {
    let elements = bytes.as_chunks().0;
    assert_eq!(values.len(), elements.len(), "as many values as elements");
    for (value, bytes) in values.iter_mut().zip(elements) {
        value.write(element(*bytes));
    }
}

fn map(path: PathBuf) -> Result<(PathBuf, Mmap), Error> {
    let file = File::open(&path).map_err(Error::io(&path))?;
    // SAFETY: the map is only read. If the file shrinks meanwhile, the process ends, as with every program that maps
    // checkpoints.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?;
    Ok((path, map))
}

/// A tensor to be written to a file; its elements are produced a few rows at a time while the file is written.
pub struct Stored<'a> {
    /// The name in the file.
    pub name: String,
    /// The shape in the file.
    pub shape: Vec<usize>,
    /// The type in the file.
    pub weight_type: WeightType,
    /// Its rows (first dimension), part by part.
    parts: Vec<Part<'a>>,
}

struct Part<'a> {
    rows: usize,
    numbers: Numbers<'a>,
}

/// Produces the elements of some of a part's rows.
type Numbers<'a> = Box<dyn Fn(Range<usize>) -> Result<Vec<f32>, Error> + 'a>;

impl<'a> Stored<'a> {
    /// From a tensor on a device.
    pub fn new<const D: usize>(name: String, values: Tensor<D>) -> Self {
        let values = values.without_autodiff();
        let shape = values.dims().to_vec();
        Self::of(name, shape, move |rows| {
            let part = values.clone().narrow(0, rows.start, rows.len());
            Ok(part.into_data().iter::<f32>().collect())
        })
    }

    /// From a function that produces the elements of some of its rows.
    pub fn of(
        name: String,
        shape: Vec<usize>,
        numbers: impl Fn(Range<usize>) -> Result<Vec<f32>, Error> + 'a,
    ) -> Self {
        let part = Part { rows: shape[0], numbers: Box::new(numbers) };
        Self { name, shape, weight_type: WeightType::Float32, parts: vec![part] }
    }

    /// Appends the rows of `other`.
    pub fn append(&mut self, other: Self) {
        self.shape[0] += other.shape[0];
        self.parts.extend(other.parts);
    }

    /// With the elements of any rows, `[rows, in]`, replaced by `change(rows, elements)`.
    #[must_use]
    pub fn map(self, change: impl Fn(Range<usize>, Vec<f32>) -> Vec<f32> + 'a) -> Self {
        let weight_type = self.weight_type;
        let changed = Self::of(self.name.clone(), self.shape.clone(), move |rows| {
            Ok(change(rows.clone(), self.numbers(rows)?))
        });
        changed.stored_as(weight_type)
    }

    /// The same, rounded to a type in the file.
    #[must_use]
    pub fn stored_as(self, weight_type: WeightType) -> Self {
        Self { weight_type, ..self }
    }

    /// The elements of some of its rows.
    ///
    /// # Errors
    /// A source that can't be read.
    pub fn numbers(&self, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        let mut numbers = Vec::with_capacity(rows.len() * self.row());
        let mut first = 0;
        for part in &self.parts {
            let (start, end) = (rows.start.max(first), rows.end.min(first + part.rows));
            if start < end {
                numbers.extend((part.numbers)(start - first..end - first)?);
            }
            first += part.rows;
        }
        Ok(numbers)
    }

    /// Elements per row.
    fn row(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> usize {
        self.weight_type.size() * self.shape[0] * self.row()
    }

    /// Its rows, a few at a time.
    pub fn pieces(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, step) = (self.shape[0], (PIECE / self.row().max(1)).max(1));
        (0..rows).step_by(step).map(move |start| start..rows.min(start + step))
    }

    fn write(&self, file: &mut impl Write, path: &Path) -> Result<(), Error> {
        for rows in self.pieces() {
            let numbers = self.numbers(rows)?;
            file.write_all(&self.weight_type.bytes(&numbers)).map_err(Error::io(path))?;
        }
        Ok(())
    }
}

/// Writes tensors, each in its type, sorted by name, a few rows at a time.
///
/// # Errors
/// A file that can't be written, or a source that can't be read.
pub fn write(path: &Path, mut tensors: Vec<Stored>) -> Result<(), Error> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut end = 0;
    let infos = tensors.iter().map(|tensor| {
        let start = end;
        end += tensor.bytes();
        let shape = tensor.shape.clone();
        let dtype = tensor.weight_type.dtype();
        (tensor.name.clone(), TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    let fail = |message: String| Error::Format { path: path.to_owned(), message };
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(format), infos.collect()).map_err(|e| fail(e.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(|e| fail(e.to_string()))?;
    // The data begins at a multiple of eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = BufWriter::new(File::create(path).map_err(Error::io(path))?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(Error::io(path))?;
    file.write_all(&header).map_err(Error::io(path))?;
    for tensor in &tensors {
        tensor.write(&mut file, path)?;
    }
    let file = file.into_inner().map_err(|e| Error::io(path)(e.into_error()))?;
    file.sync_all().map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    /// Oracle: the safetensors library.
    #[test]
    fn files_are_byte_for_byte_those_of_the_library() {
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
    /// Oracle: each element by itself.
    #[test]
    fn elements_are_converted_in_blocks_as_one_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("types");
        // Three blocks, the last of which is short, from within the first.
        let (count, places) = (2 * PIECE + 5, 3..2 * PIECE + 4);
        let halves: Vec<u16> =
            (0..count).map(|i| (i as u16).wrapping_mul(40_503) & 0xBFFF).collect();
        let words: Vec<u32> = halves.iter().map(|&h| u32::from(h) << 15 | 0x155).collect();
        let two: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
        let four: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let view = |dtype, bytes| TensorView::new(dtype, vec![count], bytes).unwrap();
        let views = [
            ("bf16", view(Dtype::BF16, &two)),
            ("f16", view(Dtype::F16, &two)),
            ("f32", view(Dtype::F32, &four)),
        ];
        safetensors::serialize_to_file(views, None, &path).unwrap();
        let files = Files::open([path]).unwrap();
        let views = files.views().unwrap();
        for name in ["bf16", "f16", "f32"] {
            let expected = places.clone().map(|i| match name {
                "bf16" => f32::from(bf16::from_bits(halves[i])),
                "f16" => f32::from(f16::from_bits(halves[i])),
                _ => f32::from_bits(words[i]),
            });
            let expected: Vec<f32> = expected.collect();
            let found = files.read(&views[name], places.clone()).unwrap();
            assert!(found.iter().map(|x| x.to_bits()).eq(expected.iter().map(|x| x.to_bits())));
            let found = files.read_as::<bf16>(&views[name], places.clone()).unwrap();
            assert!(found.into_iter().eq(expected.into_iter().map(bf16::from_f32)), "{name}");
        }
    }
}
