//! BLAKE3 hashes of bytes, files and folders, computed in constant memory.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Hash (hex) of bytes.
pub fn hash_bytes(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Hash (hex) of a file's content.
///
/// # Errors
/// I/O errors; the message contains the path.
pub fn hash_file(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hash_into(&mut hasher, path)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Hash (hex) of a folder: relative names, sorted, and contents of all its files. Links are followed, empty folders are ignored.
///
/// # Errors
/// I/O errors; the message contains the path.
pub fn hash_folder(folder: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    list_files(folder, &mut files)?;
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for file in files {
        let name = file.strip_prefix(folder).unwrap_or(&file).to_string_lossy().replace('\\', "/");
        // Each content enters as a hash of fixed length, so no choice of names and contents can imitate another folder.
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        hasher.update(hash_file(&file)?.as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn hash_into(hasher: &mut blake3::Hasher, path: &Path) -> io::Result<()> {
    let file = File::open(path).map_err(|error| named(path, error))?;
    hasher.update_reader(file).map_err(|error| named(path, error))?;
    Ok(())
}

fn list_files(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder).map_err(|error| named(folder, error))? {
        let path = entry?.path();
        if path.is_dir() { list_files(&path, files)? } else { files.push(path) }
    }
    Ok(())
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_hash_depends_on_names_and_contents_alone() {
        let folder = |files: &[(&str, &str)]| {
            let folder = tempfile::tempdir().unwrap();
            for (name, content) in files {
                let path = folder.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
            hash_folder(folder.path()).unwrap()
        };
        let first = folder(&[("a", "1"), ("b/c", "2")]);
        assert_eq!(first, folder(&[("b/c", "2"), ("a", "1")]));
        for other in [
            &[("a", "1"), ("b/c", "3")][..],
            &[("a", "1"), ("c", "2")],
            &[("a", "1")],
            &[("a1", ""), ("b/c", "2")],
        ] {
            assert_ne!(first, folder(other));
        }
    }

    #[test]
    fn files_are_hashed_by_content_and_errors_name_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, "abc").unwrap();
        assert_eq!(hash_file(&path).unwrap(), hash_bytes(b"abc"));
        let error = hash_file(&folder.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("none") && error.kind() == io::ErrorKind::NotFound);
    }
}
