//! What a reference cache is bound to, by content: names of folders and formats of files don't count.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use fpo_data::{Fingerprint, Pair, Pooling, hash};
use fpo_sae::Sae;
use fpo_transformer::{ModelConfig, Site};

use super::{loaded::ModelFolder, tokens::TokenArgs};
use crate::forward::FeatureReader;

/// Names of the items.
pub const WEIGHTS: &str = "reference weights";
pub const PRECISION: &str = "precision";
pub const SAE: &str = "autoencoder";
pub const SITE: &str = "site";
pub const POOLING: &str = "pooling";
pub const TOP_N: &str = "top_n";

/// What a text for "not there" is, in every item.
pub const NONE: &str = "none";

/// The items that decide which tokens are looked at: the same for reference and policy.
pub fn tokens(folder: &ModelFolder, args: &TokenArgs, pairs: &[Pair]) -> Result<Fingerprint> {
    Ok(args.preparer(folder)?.made_from(pairs))
}

/// Hash of a model's configuration and weights.
pub fn hash_model(folder: &Path) -> Result<String> {
    let context = || format!("reading {}", folder.display());
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).with_context(context)? {
        let path = entry.with_context(context)?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    let mut text = ModelConfig::load(folder)?.to_json("").to_string();
    for file in files {
        text += &hash::hash_file(&file).with_context(context)?;
    }
    Ok(hash::hash_bytes(text.as_bytes()))
}

/// An autoencoder's encoder at a site, and the hash of its values.
pub struct Reader {
    pub reader: FeatureReader,
    pub hash: String,
}

impl Reader {
    /// Reads an autoencoder and checks that it belongs at the site of the model.
    pub fn open(
        path: &Path,
        site: Site,
        pooling: Pooling,
        folder: &ModelFolder,
        device: &Device,
    ) -> Result<Self> {
        let config = &folder.config;
        site.check(config.num_hidden_layers)?;
        let sae = fpo_sae::load(path, device)?;
        let (reads, width) = (sae.d_in(), site.width(config));
        ensure!(
            reads == width,
            "{}: this autoencoder reads activations {reads} wide, those at {site} are {width} wide",
            path.display()
        );
        if let Some(hook) = sae.provenance.hook_name.as_ref().filter(|h| **h != site.hook_name()) {
            eprintln!(
                "warning: {} says that it was trained at {hook}, and it is used at {} ({site})",
                path.display(),
                site.hook_name()
            );
        }
        let hash = hash_encoder(&sae);
        let reader = FeatureReader::new(&sae, site, pooling, folder.special_tokens());
        Ok(Self { reader, hash })
    }
}

fn hash_encoder(sae: &Sae) -> String {
    let encoder = &sae.encoder;
    let hash = |data: burn::tensor::TensorData| hash::hash_bytes(data.as_bytes());
    let hashes = [
        hash(encoder.w_enc.to_data()),
        hash(encoder.b_enc.to_data()),
        hash(encoder.threshold.to_data()),
    ];
    hash::hash_bytes(hashes.concat().as_bytes())
}
