//! Reading what someone else wrote, which may be larger than expected.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// The content of a file; none if it has more than `limit` bytes, of which one more is read at most.
///
/// # Errors
/// Those of opening and reading it.
pub fn read_at_most(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_exactly_the_limit_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"four").unwrap();
        assert_eq!(read_at_most(file.path(), 4).unwrap().unwrap(), b"four");
        assert_eq!(read_at_most(file.path(), 3).unwrap(), None);
        assert!(read_at_most(&file.path().join("missing"), 4).is_err());
    }
}
