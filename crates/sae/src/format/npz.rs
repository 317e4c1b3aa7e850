//! Gemma Scope's `params.npz`: an archive (zip, stored or deflated) of NumPy arrays.

use std::{
    fs::File,
    io::{self, BufReader, Cursor, Read, Seek, Write},
    path::Path,
};

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
/// Weights of float32 hardly compress: an archive that claims more than this many times its own size is
/// a trap.
const LARGEST_RATIO: u64 = 20;
/// Except for small ones, which may well be zeros.
const ALWAYS_READ: u64 = 16 << 20;
/// Arrays in an archive, at most.
const MOST_ARRAYS: usize = 64;
/// NumPy's header of an array of floats has 128 bytes.
const LARGEST_HEADER: usize = 1024;

/// How the arrays of an archive are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As they are, like `numpy.savez`.
    Stored,
    /// Deflated, like `numpy.savez_compressed`.
    Deflated,
}

/// Every array of an archive, as float32 in C order.
pub(super) fn read(path: &Path) -> Result<Arrays, Error> {
    let size = bounded(path, LARGEST)?;
    let file = File::open(path).map_err(Error::io(path))?;
    let mut archive = ZipArchive::new(BufReader::new(file))
        .map_err(|e| Error::format(path, format!("no readable archive: {e}")))?;
    if archive.len() > MOST_ARRAYS {
        return Err(Error::format(path, format!("{} entries in the archive", archive.len())));
    }
    let mut arrays = Arrays::default();
    let mut left = ALWAYS_READ.max(size.saturating_mul(LARGEST_RATIO)).min(LARGEST);
    for index in 0..archive.len() {
        let fail = |message: String| Error::format(path, message);
        let entry = archive.by_index(index).map_err(|e| fail(format!("entry {index}: {e}")))?;
        let Some(name) = array_name_from_file_name(entry.name()).map(str::to_owned) else {
            return Err(fail(format!("`{}` is no NumPy array", entry.name())));
        };
        let claimed = entry.size();
        left = left.checked_sub(claimed).ok_or_else(|| {
            fail(format!("`{name}` claims {claimed} bytes of an archive of {size}: a zip bomb"))
        })?;
        let array = read_array(entry, claimed).map_err(|e| fail(format!("`{name}`: {e}")))?;
        arrays.insert(&name, array);
    }
    Ok(arrays)
}

/// An array of `claimed` bytes, header included. No more than those are ever held.
fn read_array(mut entry: impl Read, claimed: u64) -> io::Result<Array> {
    let wrong = |message: String| io::Error::new(io::ErrorKind::InvalidData, message);
    let mut bytes = Vec::new();
    entry.by_ref().take(claimed.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != claimed {
        return Err(wrong(format!("the archive claims {claimed} bytes and holds others")));
    }
    // The length of the header's text: 2 bytes in version 1 of the format, 4 in the later ones.
    let length = match bytes.get(..12) {
        Some(&[_, _, _, _, _, _, 1, _, a, b, _, _]) => usize::from(u16::from_le_bytes([a, b])),
        Some(&[_, _, _, _, _, _, _, _, a, b, c, d]) => u32::from_le_bytes([a, b, c, d]) as usize,
        _ => return Err(wrong("shorter than a header".into())),
    };
    if length > LARGEST_HEADER {
        return Err(wrong(format!("a header of {length} bytes")));
    }
    let mut cursor = Cursor::new(&bytes);
    let header = NpyHeader::from_reader(&mut cursor)?;
    if header.uses_pickled_array() {
        return Err(wrong(
            "a pickled array: unpickling runs code, so that it is refused; save it as float32"
                .into(),
        ));
    }
    let data = &bytes[cursor.position() as usize..];
    let shape: Vec<usize> = header.shape().iter().map(|&n| n as usize).collect();
    let count = shape.iter().try_fold(1usize, |n, &m| n.checked_mul(m));
    let descr = header.dtype().descr();
    let (width, values): (usize, Vec<f32>) = match descr.trim_matches('\'') {
        "<f4" => (4, data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        "<f8" => (8, data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect()),
        other => return Err(wrong(format!("{other} is not read, only float32 and float64"))),
    };
    if count.and_then(|n| n.checked_mul(width)) != Some(data.len()) {
        return Err(wrong(format!("the shape {shape:?} is not that of {} bytes", data.len())));
    }
    match (header.order(), shape.as_slice()) {
        (Order::Fortran, &[rows, columns]) => {
            let at = |i: usize| values[(i % columns) * rows + i / columns];
            Ok(Array { values: (0..rows * columns).map(at).collect(), shape })
        }
        _ => Ok(Array { shape, values }),
    }
}

/// Writes `params.npz` as Gemma Scope has it.
pub fn save_npz(sae: &Sae, output: impl Write + Seek, compression: Compression) -> io::Result<()> {
    let method = match compression {
        Compression::Stored => CompressionMethod::Stored,
        Compression::Deflated => CompressionMethod::Deflated,
    };
    let mut archive = ZipWriter::new(output);
    for (name, data) in named(sae) {
        let large = data.num_elements() as u64 * 4 >= u64::from(u32::MAX);
        // A fixed date, so that the same weights are the same bytes.
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
