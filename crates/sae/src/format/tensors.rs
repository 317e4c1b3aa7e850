//! Arrays of floats in safetensors files.

use std::path::Path;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{
    LARGEST,
    arrays::{Array, Arrays},
    bounded,
};
use crate::Error;

/// All tensors of a file, as float32.
pub(super) fn read(path: &Path) -> Result<Arrays, Error> {
    bounded(path, LARGEST)?;
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| Error::format(path, e.to_string()))?;
    let mut arrays = Arrays::default();
    for (name, view) in file.tensors() {
        let values = to_f32(&view).ok_or_else(|| {
            let message = format!(
                "`{name}` is {:?}, only F32, F64, F16 and BF16 are supported",
                view.dtype()
            );
            Error::format(path, message)
        })?;
        arrays.insert(path, &name, Array { shape: view.shape().to_vec(), values })?;
    }
    Ok(arrays)
}

fn to_f32(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let bytes = view.data();
    let two = || bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b));
    Some(match view.dtype() {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        Dtype::F16 => two().map(|bits| half::f16::from_bits(bits).to_f32()).collect(),
        Dtype::BF16 => two().map(|bits| half::bf16::from_bits(bits).to_f32()).collect(),
        _ => return None,
    })
}
