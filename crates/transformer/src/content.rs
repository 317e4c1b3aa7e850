//! What a model is, by content.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use crate::{Error, ModelConfig};

/// BLAKE3 hash (hex) of a model's configuration and weights. Folders with equal hashes hold equal models; the same weights in
/// other shards count as others.
///
/// # Errors
/// A folder that can't be read.
pub fn hash_model(folder: &Path) -> Result<String, Error> {
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).map_err(read(folder))? {
        let path = entry.map_err(read(folder))?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    let mut hasher = blake3::Hasher::new();
    hasher.update(ModelConfig::load(folder)?.to_json("").to_string().as_bytes());
    for path in files {
        let mut file = blake3::Hasher::new();
        file.update_reader(File::open(&path).map_err(read(&path))?).map_err(read(&path))?;
        hasher.update(file.finalize().as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::{Family, Sizes, weights};

    #[test]
    fn the_hash_is_of_content() {
        let sizes = Sizes {
            vocab_size: 16,
            hidden_size: 8,
            intermediate_size: 8,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 4,
        };
        let config = Family::Gemma2.config(&sizes).unwrap();
        let hash = |seed| {
            let folder = tempfile::tempdir().unwrap();
            let model = weights::random(&config, seed, &Device::flex()).unwrap();
            weights::save(&model, folder.path()).unwrap();
            fs::write(folder.path().join("notes.txt"), seed.to_string()).unwrap();
            hash_model(folder.path()).unwrap()
        };
        assert_eq!(hash(1), hash(1));
        assert_ne!(hash(1), hash(2));
        assert!(hash_model(Path::new("nowhere")).is_err());
    }
}
