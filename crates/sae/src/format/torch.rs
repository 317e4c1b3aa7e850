//! Arrays in files of `torch.save`, which are read without running anything.

use std::path::Path;

use fpo_torch_file::TorchFile;

use super::{
    LARGEST,
    arrays::{Array, Arrays},
    bounded,
};
use crate::Error;

/// The tensors of a file, as float32, but for those named `left_out`.
pub(super) fn read(path: &Path, left_out: &[&str]) -> Result<Arrays, Error> {
    // Every element takes a byte at least, unless tensors say the same elements again and again.
    let mut left = usize::try_from(bounded(path, LARGEST)?).unwrap_or(usize::MAX);
    let file = TorchFile::open(path)?;
    let mut arrays = Arrays::default();
    for (name, tensor) in file.root().tensors() {
        if left_out.contains(&name.as_str()) {
            continue;
        }
        left = left.checked_sub(tensor.elements()).ok_or_else(|| {
            Error::format(path, format!("`{name}` claims more elements than the file can hold"))
        })?;
        let values = file.read(tensor, 0..tensor.elements())?;
        arrays.insert(path, &name, Array { shape: tensor.shape().to_vec(), values })?;
    }
    Ok(arrays)
}
