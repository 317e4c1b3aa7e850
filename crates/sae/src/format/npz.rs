//! Gemma Scope's `params.npz`: a zip archive of NumPy arrays, stored or deflated.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, Write},
    path::Path,
};

use burn::tensor::TensorData;
use fpo_ops::{Activation, Normalization};
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::FileOptions};

use super::{
    LARGEST,
    arrays::{Arrays, THRESHOLD, named},
    bounded, npy,
};
use crate::{Error, Sae};

pub(super) const FILE: &str = "params.npz";
/// Of the archive's entries.
const SUFFIX: &str = ".npy";
/// Largest ratio of unpacked to packed size. Float32 weights hardly compress: an archive that claims more is a zip bomb.
const LARGEST_RATIO: u64 = 20;
/// Unpacked bytes that are read whatever the ratio: small arrays may well be all zeros.
const ALWAYS_READ: u64 = 16 << 20;
/// Entries of an archive, at most.
const MOST_ARRAYS: usize = 64;

/// How an archive stores its arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Uncompressed, like `numpy.savez`.
    Stored,
    /// Compressed, like `numpy.savez_compressed`.
    Deflated,
}

/// Every array of an archive, as float32 in C order.
pub(super) fn read(path: &Path) -> Result<Arrays, Error> {
    let size = bounded(path, LARGEST)?;
    let file = File::open(path).map_err(Error::io(path))?;
    let mut archive = ZipArchive::new(BufReader::new(file))
        .map_err(|e| Error::format(path, format!("not a readable zip archive: {e}")))?;
    if archive.len() > MOST_ARRAYS {
        return Err(Error::format(
            path,
            format!("{} entries in the archive, at most {MOST_ARRAYS} are read", archive.len()),
        ));
    }
    let mut arrays = Arrays::default();
    let mut left = ALWAYS_READ.max(size.saturating_mul(LARGEST_RATIO)).min(LARGEST);
    for index in 0..archive.len() {
        let fail = |message: String| Error::format(path, message);
        let entry = archive.by_index(index).map_err(|e| fail(format!("entry {index}: {e}")))?;
        let Some(name) = entry.name().strip_suffix(SUFFIX).map(str::to_owned) else {
            return Err(fail(format!("`{}` is not a NumPy array", entry.name())));
        };
        let claimed = entry.size();
        left = left.checked_sub(claimed).ok_or_else(|| {
            fail(format!("`{name}` claims {claimed} bytes in an archive of {size}: a zip bomb"))
        })?;
        // Never holds more than was claimed.
        let mut bytes = Vec::new();
        let read = entry.take(claimed.saturating_add(1)).read_to_end(&mut bytes);
        let array = match read {
            Ok(length) if length as u64 == claimed => npy::parse(&bytes),
            Ok(_) => Err(format!("the archive doesn't hold the {claimed} bytes it claims")),
            Err(e) => Err(e.to_string()),
        };
        arrays.insert(path, &name, array.map_err(|e| fail(format!("`{name}`: {e}")))?)?;
    }
    Ok(arrays)
}

/// Writes an autoencoder as Gemma Scope's `params.npz`. A ReLU is written as a JumpReLU with thresholds of 0, which it is.
///
/// # Errors
/// The output can't be written, or the format has no such autoencoder.
pub fn save_npz(sae: &Sae, output: impl Write + Seek, compression: Compression) -> io::Result<()> {
    let refuse = |what: &str| {
        let message = format!(
            "Gemma Scope's archives hold JumpReLU autoencoders alone, and this one {what}: write a SAELens folder"
        );
        Err(io::Error::new(io::ErrorKind::Unsupported, message))
    };
    match (&sae.encoder.activation, sae.encoder.normalization) {
        (Activation::TopK { .. }, _) => return refuse("is a TopK"),
        (Activation::JumpRelu { .. } | Activation::Relu, Normalization::None) => {}
        (Activation::JumpRelu { .. } | Activation::Relu, _) => {
            return refuse("normalises its inputs");
        }
    }
    let mut arrays = named(sae);
    if matches!(sae.encoder.activation, Activation::Relu) {
        let zeros = vec![0f32; sae.d_sae()];
        arrays.push((THRESHOLD, TensorData::new(zeros, [sae.d_sae()])));
    }
    let method = match compression {
        Compression::Stored => CompressionMethod::Stored,
        Compression::Deflated => CompressionMethod::Deflated,
    };
    let mut archive = ZipWriter::new(output);
    for (name, data) in arrays {
        let large = data.num_elements() as u64 * 4 >= u64::from(u32::MAX);
        // A fixed date, so that the same weights give the same bytes.
        let options = FileOptions::default()
            .compression_method(method)
            .last_modified_time(zip::DateTime::default())
            .large_file(large);
        archive.start_file(format!("{name}{SUFFIX}"), options).map_err(io::Error::other)?;
        archive.write_all(&npy::header(data.shape()))?;
        archive.write_all(data.as_bytes())?;
        // Two empty blocks end an array, so that archives have the bytes that they always had.
        archive.flush()?;
        archive.flush()?;
    }
    archive.finish().map_err(io::Error::other)?.flush()
}
