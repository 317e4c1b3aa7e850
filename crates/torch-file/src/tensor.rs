//! Tensors: a view of a storage, whose elements lie in the file.

use std::{ops::Range, sync::Arc};

use half::{bf16, f16};

/// Dimensions of a tensor, at most.
const MOST_DIMENSIONS: usize = 8;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Dtype {
    /// All of them, with the names of PyTorch's storages.
    const STORAGES: [(&str, Self); 10] = [
        ("DoubleStorage", Self::F64),
        ("FloatStorage", Self::F32),
        ("HalfStorage", Self::F16),
        ("BFloat16Storage", Self::BF16),
        ("LongStorage", Self::I64),
        ("IntStorage", Self::I32),
        ("ShortStorage", Self::I16),
        ("CharStorage", Self::I8),
        ("ByteStorage", Self::U8),
        ("BoolStorage", Self::Bool),
    ];

    pub(crate) fn of_storage(name: &str) -> Option<Self> {
        Self::STORAGES.into_iter().find(|(storage, _)| *storage == name).map(|(_, dtype)| dtype)
    }

    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }
}

/// Where a storage's elements are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Storage {
    pub dtype: Dtype,
    /// Its name in the file.
    pub key: Arc<str>,
    pub elements: usize,
}

/// A view of a storage as the pickle describes it, in elements.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub storage: Storage,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl View {
    /// A view that lies within its storage.
    pub fn new(
        storage: Storage,
        offset: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    ) -> Result<Self, String> {
        let wrong = || {
            format!(
                "a tensor {shape:?} with strides {strides:?} at {offset} doesn't fit its storage of {} elements",
                storage.elements
            )
        };
        if shape.len() != strides.len() || shape.len() > MOST_DIMENSIONS {
            return Err(wrong());
        }
        let count = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let count = count.ok_or_else(wrong)?;
        let last = shape.iter().zip(&strides).try_fold(offset, |last, (&size, &stride)| {
            last.checked_add(size.saturating_sub(1).checked_mul(stride)?)
        });
        let inside = last.is_some_and(|last| last < storage.elements);
        match count == 0 || inside {
            true => Ok(Self { storage, offset, shape, strides }),
            false => Err(wrong()),
        }
    }

    /// The tensor, given where the file has the storage.
    pub fn placed(self, storage: Range<usize>) -> Result<Tensor, String> {
        let Self { storage: Storage { dtype, key, elements }, offset, shape, strides } = self;
        let needed = elements.checked_mul(dtype.size());
        if needed.is_none_or(|needed| needed > storage.len()) {
            return Err(format!(
                "storage `{key}` has {} bytes and the pickle says {elements} elements of {dtype:?}",
                storage.len()
            ));
        }
        Ok(Tensor { dtype, shape, strides, start: storage.start + offset * dtype.size() })
    }
}

/// A tensor of a file. [`crate::TorchFile::read`] reads its elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    /// In elements.
    strides: Vec<usize>,
    /// The first element's place in the file, in bytes.
    start: usize,
}

impl Tensor {
    /// The type of its elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its shape; empty for a single number.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The bytes of the file between its first and its last element.
    pub(crate) fn bytes(&self) -> Range<usize> {
        if self.elements() == 0 {
            return self.start..self.start;
        }
        let last: usize =
            self.shape.iter().zip(&self.strides).map(|(n, stride)| (n - 1) * stride).sum();
        self.start..self.start + (last + 1) * self.dtype.size()
    }

    /// Elements in float32, in C order.
    pub(crate) fn floats(&self, file: &[u8], places: Range<usize>) -> Result<Vec<f32>, String> {
        if !matches!(self.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(format!(
                "elements of {:?} are no weights: only F64, F32, F16 and BF16 are",
                self.dtype
            ));
        }
        if places.start > places.end || places.end > self.elements() {
            return Err(format!("has no elements {places:?}: its shape is {:?}", self.shape));
        }
        let outside = || format!("elements {places:?} lie outside the file");
        if self.is_contiguous() {
            let size = self.dtype.size();
            let bytes = self.start + places.start * size..self.start + places.end * size;
            return Ok(self.convert(file.get(bytes).ok_or_else(outside)?));
        }
        let size = self.dtype.size();
        let mut bytes = Vec::with_capacity(places.len() * size);
        for place in places.clone() {
            let at = self.start + self.offset_of(place) * size;
            bytes.extend_from_slice(file.get(at..at + size).ok_or_else(outside)?);
        }
        Ok(self.convert(&bytes))
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected *= size;
            fits
        })
    }

    /// Where in the storage an element of the flattened tensor is.
    fn offset_of(&self, place: usize) -> usize {
        let (mut rest, mut offset) = (place, 0);
        for (size, stride) in self.shape.iter().zip(&self.strides).rev() {
            offset += rest % size * stride;
            rest /= size;
        }
        offset
    }

    fn convert(&self, bytes: &[u8]) -> Vec<f32> {
        match self.dtype {
            Dtype::F64 => {
                bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect()
            }
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => {
                bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).into()).collect()
            }
            _ => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).into()).collect(),
        }
    }
}
