//! What a model is, by content.

use std::{fs::File, path::Path};

use crate::{Error, ModelConfig, checkpoint::WeightFiles};

/// BLAKE3 hash (hex) of a model's configuration and of the weights that [`weights::load`](crate::weights::load) reads. Folders with equal hashes hold equal models; the same weights in
/// other shards count as others.
///
/// # Errors
/// A folder that can't be read.
pub fn hash_model(folder: &Path) -> Result<String, Error> {
    let mut files = WeightFiles::of(folder)?.files;
    files.sort();
    let mut hasher = blake3::Hasher::new();
    hasher.update(ModelConfig::load_alone(folder)?.to_json("").to_string().as_bytes());
    for path in files {
        let mut file = blake3::Hasher::new();
        let open = File::open(&path).map_err(Error::io(&path))?;
        file.update_reader(open).map_err(Error::io(&path))?;
        hasher.update(file.finalize().as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use std::fs;

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
