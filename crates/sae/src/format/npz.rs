//! Gemma Scope's `params.npz`: a zip archive of NumPy arrays, stored or deflated.

use std::{
    fs::File,
    io::{self, BufReader, Cursor, Read, Seek, Write},
    path::Path,
};

use fpo_ops::Activation;
use npyz::{
    NpyHeader, Order, WriteOptions, WriterBuilder,
    npz::{array_name_from_file_name, file_name_from_array_name},
};
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::FileOptions};

use super::{
    LARGEST,
    arrays::{Array, Arrays, named},
    bounded,
};
use crate::{Error, Sae};

pub(super) const FILE: &str = "params.npz";
/// Largest ratio of unpacked to packed size. Float32 weights hardly compress: an archive that claims more is a zip bomb.
const LARGEST_RATIO: u64 = 20;
/// Unpacked bytes that are read whatever the ratio: small arrays may well be all zeros.
const ALWAYS_READ: u64 = 16 << 20;
/// Entries of an archive, at most.
const MOST_ARRAYS: usize = 64;
/// In bytes. NumPy's header for an array of floats has 128.
const LARGEST_HEADER: usize = 1024;

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
        let Some(name) = array_name_from_file_name(entry.name()).map(str::to_owned) else {
            return Err(fail(format!("`{}` is not a NumPy array", entry.name())));
        };
        let claimed = entry.size();
        left = left.checked_sub(claimed).ok_or_else(|| {
            fail(format!("`{name}` claims {claimed} bytes in an archive of {size}: a zip bomb"))
        })?;
        let array = read_array(entry, claimed).map_err(|e| fail(format!("`{name}`: {e}")))?;
        arrays.insert(&name, array);
    }
    Ok(arrays)
}

/// Reads an array of `claimed` bytes, header included, and never holds more than those.
fn read_array(mut entry: impl Read, claimed: u64) -> io::Result<Array> {
    let wrong = |message: String| io::Error::new(io::ErrorKind::InvalidData, message);
    let mut bytes = Vec::new();
    entry.by_ref().take(claimed.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != claimed {
        return Err(wrong(format!("the archive doesn't hold the {claimed} bytes it claims")));
    }
    // The header's length is 2 bytes in version 1 of the format, 4 in later versions.
    let length = match bytes.get(..12) {
        Some(&[_, _, _, _, _, _, 1, _, a, b, _, _]) => usize::from(u16::from_le_bytes([a, b])),
        Some(&[_, _, _, _, _, _, _, _, a, b, c, d]) => u32::from_le_bytes([a, b, c, d]) as usize,
        _ => return Err(wrong("shorter than a NumPy header".into())),
    };
    if length > LARGEST_HEADER {
        return Err(wrong(format!(
            "a header of {length} bytes, at most {LARGEST_HEADER} are read"
        )));
    }
    let mut cursor = Cursor::new(&bytes);
    let header = NpyHeader::from_reader(&mut cursor)?;
    if header.uses_pickled_array() {
        return Err(wrong(
            "a pickled array, refused because unpickling runs code; save it as float32".into(),
        ));
    }
    let data = &bytes[cursor.position() as usize..];
    let shape: Vec<usize> = header.shape().iter().map(|&n| n as usize).collect();
    let count = shape.iter().try_fold(1usize, |n, &m| n.checked_mul(m));
    let descr = header.dtype().descr();
    let (width, values): (usize, Vec<f32>) = match descr.trim_matches('\'') {
        "<f4" => (4, data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        "<f8" => (8, data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect()),
        other => return Err(wrong(format!("{other} is not supported, only float32 and float64"))),
    };
    if count.and_then(|n| n.checked_mul(width)) != Some(data.len()) {
        return Err(wrong(format!("the shape {shape:?} doesn't fit {} bytes", data.len())));
    }
    match (header.order(), shape.as_slice()) {
        (Order::Fortran, &[rows, columns]) => {
            let at = |i: usize| values[(i % columns) * rows + i / columns];
            Ok(Array { values: (0..rows * columns).map(at).collect(), shape })
        }
        _ => Ok(Array { shape, values }),
    }
}

/// Writes an autoencoder as Gemma Scope's `params.npz`.
///
/// # Errors
/// The output can't be written.
pub fn save_npz(sae: &Sae, output: impl Write + Seek, compression: Compression) -> io::Result<()> {
    // The format has no other activation function.
    let Activation::JumpRelu { .. } = &sae.encoder.activation;
    let method = match compression {
        Compression::Stored => CompressionMethod::Stored,
        Compression::Deflated => CompressionMethod::Deflated,
    };
    let mut archive = ZipWriter::new(output);
    for (name, data) in named(sae) {
        let large = data.num_elements() as u64 * 4 >= u64::from(u32::MAX);
        // A fixed date, so that the same weights give the same bytes.
        let options = FileOptions::default()
            .compression_method(method)
            .last_modified_time(zip::DateTime::default())
            .large_file(large);
        let shape: Vec<u64> = data.shape().iter().map(|&n| n as u64).collect();
        archive.start_file(file_name_from_array_name(name), options).map_err(io::Error::other)?;
        let array = WriteOptions::new().default_dtype().shape(&shape).writer(&mut archive);
        let mut writer = array.begin_nd()?;
        writer.extend(data.iter::<f32>())?;
        writer.finish()?;
    }
    archive.finish().map_err(io::Error::other)?.flush()
}
