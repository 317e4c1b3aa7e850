//! NumPy's `.npy` format: an array of floats behind a header, which is a Python dictionary.
//!
//! Source: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>

use half::f16;

use super::arrays::Array;

const MAGIC: &[u8] = b"\x93NUMPY";
/// In bytes. NumPy's header for an array of floats has 118.
const LARGEST_HEADER: usize = 1024;

/// The array in a whole file, as float32 in C order; an error says what is wrong with it.
pub(super) fn parse(bytes: &[u8]) -> Result<Array, String> {
    // The length of the dictionary takes 2 bytes in version 1 of the format, 4 in later versions.
    let (start, length) = match bytes.strip_prefix(MAGIC) {
        Some(&[1, _, a, b, ..]) => (10, usize::from(u16::from_le_bytes([a, b]))),
        Some(&[2 | 3, _, a, b, c, d, ..]) => (12, u32::from_le_bytes([a, b, c, d]) as usize),
        Some(&[version, _, _, _, _, _, ..]) => {
            return Err(format!("version {version} of NumPy's format is not supported"));
        }
        _ => return Err("not a NumPy array, or shorter than its header".into()),
    };
    if length > LARGEST_HEADER {
        return Err(format!("a header of {length} bytes, at most {LARGEST_HEADER} are read"));
    }
    let (header, data) =
        bytes[start..].split_at_checked(length).ok_or("shorter than its header")?;
    let header = str::from_utf8(header).ok().and_then(Header::parse);
    let Header { descr, fortran_order, shape } = header.ok_or("its header can't be read")?;
    let (width, values): (usize, Vec<f32>) = match descr {
        "<f2" => (2, data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
        "<f4" => (4, data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        "<f8" => (8, data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect()),
        "|O" => {
            return Err("a pickled array, refused because unpickling runs code".into());
        }
        other => {
            return Err(format!("`{other}` is not supported, only float16, float32 and float64"));
        }
    };
    let count = shape.iter().try_fold(1usize, |n, &m| n.checked_mul(m));
    if count.and_then(|n| n.checked_mul(width)) != Some(data.len()) {
        return Err(format!("the shape {shape:?} doesn't fit {} bytes", data.len()));
    }
    match (fortran_order, shape.as_slice()) {
        (false, _) | (true, [] | [_]) => Ok(Array { shape, values }),
        (true, &[rows, columns]) => {
            let at = |i: usize| values[(i % columns) * rows + i / columns];
            Ok(Array { values: (0..rows * columns).map(at).collect(), shape })
        }
        (true, _) => Err(format!("the shape {shape:?} in Fortran order is not supported")),
    }
}

/// What a file of float32 values in C order begins with.
pub(super) fn header(shape: &[usize]) -> Vec<u8> {
    let shape: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}");
    // Magic, version, length, text and newline fill a multiple of 64 bytes.
    let length = (text.len() + 11).next_multiple_of(64) - 10;
    let text = format!("{text:<width$}\n", width = length - 1);
    [MAGIC, &[1, 0], &(length as u16).to_le_bytes(), text.as_bytes()].concat()
}

struct Header<'a> {
    descr: &'a str,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl<'a> Header<'a> {
    /// None unless the text is a dictionary of the three keys, as NumPy writes it, and ends with a line: one of another length is cut
    /// off there or goes on into the data.
    fn parse(text: &'a str) -> Option<Self> {
        let text = text.strip_suffix('\n')?.trim();
        let mut rest = text.strip_prefix('{')?.strip_suffix('}')?.trim();
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        while !rest.is_empty() {
            let (key, value) = rest.split_once(':')?;
            let value = value.trim_start();
            let end = match value.starts_with('(') {
                true => value.find(')')? + 1,
                false => value.find(',').unwrap_or(value.len()),
            };
            let (value, after) = value.split_at(end);
            match key.trim_end() {
                "'descr'" => descr = Some(value.strip_prefix('\'')?.strip_suffix('\'')?),
                "'fortran_order'" => {
                    fortran_order = Some(match value {
                        "True" => true,
                        "False" => false,
                        _ => return None,
                    });
                }
                "'shape'" => {
                    let numbers = value.strip_prefix('(')?.strip_suffix(')')?.split(',');
                    let numbers = numbers.map(str::trim).filter(|number| !number.is_empty());
                    shape = Some(numbers.map(|number| number.parse().ok()).collect::<Option<_>>()?);
                }
                _ => return None,
            }
            rest = after.trim_start().strip_prefix(',').unwrap_or(after).trim_start();
        }
        Some(Self { descr: descr?, fortran_order: fortran_order?, shape: shape? })
    }
}
