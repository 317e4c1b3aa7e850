//! The CUDA stream behind a stream of CubeCL.
//!
//! CubeCL 0.11 gives access to device pointers but not to its streams. The `Debug` output of its server contains their handles;
//! it is parsed once per stream.

use std::fmt::Debug;

use burn::backend::fusion::custom::StreamId;

/// The handle of a stream that was used before; None if the output isn't that of CubeCL 0.11.
pub(super) fn raw(server: &impl Debug, id: StreamId) -> Option<usize> {
    find(&format!("{server:?}"), id.value)
}

/// The server keeps a list of streams, indexed by their number modulo its length, and a special stream at its end.
fn find(print: &str, number: u64) -> Option<usize> {
    let (_, pool) = print.split_once("StreamPool { streams: [")?;
    let entries = entries(pool)?;
    let (_, regular) = entries.split_last()?;
    let entry = regular.get(usize::try_from(number.checked_rem(regular.len() as u64)?).ok()?)?;
    let (_, handle) = entry.split_once("Stream { sys: 0x")?;
    let digits = handle.split(|c: char| !c.is_ascii_hexdigit()).next()?;
    usize::from_str_radix(digits, 16).ok().filter(|handle| *handle != 0)
}

/// The elements of a printed list, after its opening bracket.
fn entries(list: &str) -> Option<Vec<&str>> {
    let (mut depth, mut first, mut found) = (0, 0, Vec::new());
    for (i, c) in list.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ']' if depth == 0 => {
                found.push(&list[first..i]);
                return Some(found);
            }
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&list[first..i]);
                first = i + 1;
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINT: &str = "CudaServer { ctx: CudaContext { context: 0x1 }, streams: MultiStream { streams: StreamPool { streams: \
        [None, Some(StreamWrapper { stream: Stream { sys: 0x7f01a0, queue: [1, 2] }, cursor: 3, last_synced: {0: 1} }), None, \
        Some(StreamWrapper { stream: Stream { sys: 0x7f02b0, queue: [] }, cursor: 0, last_synced: {} })], max_streams: 3 } } }";

    #[test]
    fn a_stream_is_found_by_its_number() {
        assert_eq!(find(PRINT, 1), Some(0x7f01a0));
        assert_eq!(find(PRINT, 4), Some(0x7f01a0));
    }

    #[test]
    fn an_unused_stream_is_not_found() {
        assert_eq!(find(PRINT, 0), None);
        assert_eq!(find(PRINT, 2), None);
    }

    #[test]
    fn other_output_is_rejected() {
        assert_eq!(find("CudaServer { .. }", 1), None);
        assert_eq!(find("StreamPool { streams: [", 1), None);
        assert_eq!(find("StreamPool { streams: [None]", 1), None);
    }
}
