//! Tensors as matrices for the kernels: rows along the last dimension.

use std::ops::Range;

use burn::backend::ir::TensorIr;
use burn_cubecl::{
    cubecl::{
        client::Client,
        ir::{AddressType, ElemType},
        prelude::*,
        zspace::metadata::Metadata,
    },
    kernel::into_contiguous,
    ops::numeric::empty_device_dtype,
    tensor::CubeTensor,
};

/// A tensor whose rows are contiguous and equally spaced.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    tensor: CubeTensor,
    /// Elements from the start of one row to the next. May exceed the width, because devices align rows.
    pub stride: usize,
}

impl Matrix {
    /// `tensor` itself, or a copy if it isn't laid out like this.
    pub fn new(tensor: CubeTensor) -> Self {
        match stride(&tensor) {
            Some(stride) if !tensor.meta.is_tiled() => Self { tensor, stride },
            _ => {
                let tensor = into_contiguous(tensor);
                let stride = tensor.meta.shape().last().copied().unwrap_or(1);
                Self { tensor, stride }
            }
        }
    }

    /// A new, uninitialised tensor on the device of `like`.
    pub fn empty(description: &TensorIr, like: &CubeTensor) -> Self {
        let (client, device) = (like.client.clone(), like.device.clone());
        Self::new(empty_device_dtype(client, device, description.shape.clone(), description.dtype))
    }

    /// Copies the values if the buffer has another owner.
    pub fn make_owned(&mut self) {
        if !self.tensor.can_mut() {
            *self = Self::new(self.tensor.clone().copy());
        }
    }

    pub fn tensor(&self) -> &CubeTensor {
        &self.tensor
    }

    pub fn client(&self) -> Client {
        self.tensor.client.clone()
    }

    pub fn into_tensor(self) -> CubeTensor {
        self.tensor
    }

    /// Elements per row.
    pub fn width(&self) -> usize {
        self.tensor.meta.shape().last().copied().unwrap_or(1)
    }

    pub fn is_empty(&self) -> bool {
        self.tensor.meta.num_elements() == 0
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.tensor.meta.num_elements() / self.width().max(1)
    }

    /// Some of the rows, in the same memory. `[rows, width]`
    pub fn rows(&self, rows: Range<usize>) -> CubeTensor {
        let bytes = |rows: usize| (rows * self.stride * self.tensor.dtype.size()) as u64;
        let mut view = self.tensor.clone();
        view.handle = view.handle.offset_start(bytes(rows.start));
        view.handle = view.handle.offset_end(bytes(self.count() - rows.end));
        *view.meta = Metadata::new([rows.len(), self.width()], [self.stride, 1]);
        view
    }

    pub fn element(&self) -> ElemType {
        burn::backend::cubecl::dtype_to_storage_type(self.tensor.dtype)
    }

    pub fn argument(self) -> BufferArg {
        self.tensor.into_buffer_arg()
    }
}

/// The index type that reaches every element of these tensors.
pub(super) fn address<'a>(tensors: impl IntoIterator<Item = &'a Matrix>) -> AddressType {
    let types = tensors.into_iter().map(|rows| rows.tensor.required_address_type());
    types.max().unwrap_or_default()
}

/// The distance between rows; `None` if it isn't the same everywhere.
fn stride(tensor: &CubeTensor) -> Option<usize> {
    let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
    let (&width, outer) = shape.split_last()?;
    let (&step, outer_strides) = strides.split_last()?;
    if width > 1 && step != 1 {
        return None;
    }
    // The distance between rows, and the stride that the next dimension has to have.
    let mut found: Option<(usize, usize)> = None;
    let dimensions = outer.iter().zip(outer_strides).rev().filter(|(size, _)| **size > 1);
    for (&size, &stride) in dimensions {
        found = match found {
            None => Some((stride, stride * size)),
            Some((rows, expected)) if stride == expected => Some((rows, expected * size)),
            Some(_) => return None,
        };
    }
    Some(found.map_or(width, |(rows, _)| rows))
}
