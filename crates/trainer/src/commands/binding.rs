//! What a reference cache is bound to, by content: names of folders and formats of files don't count.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use fpo_data::{Fingerprint, Pair, Pooling, Prompt, Rendering, hash};
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
pub fn tokens(folder: &ModelFolder, args: &TokenArgs, pairs: &[Pair]) -> Fingerprint {
    let limit = |tokens: Option<usize>| tokens.map_or(NONE.to_owned(), |n| n.to_string());
    Fingerprint::default()
        .with("data", hash_pairs(pairs))
        .with("tokenizer", folder.tokenizer.hash())
        .with("chat template", folder.template.hash())
        .with("rendering", Rendering::AsGiven.name())
        .with("max_length", limit(args.max_length))
        .with("max_prompt_length", limit(args.max_prompt_length))
}

/// Hash of pairs as they were read, whatever file they stood in.
fn hash_pairs(pairs: &[Pair]) -> String {
    let mut hashes = String::with_capacity(64 * pairs.len());
    for pair in pairs {
        let mut bytes = pair.id.to_le_bytes().to_vec();
        let mut add = |text: &str| {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        match &pair.prompt {
            Prompt::Text(text) => add(text),
            Prompt::Messages(messages) => {
                messages
                    .iter()
                    .for_each(|m| [&m.role, &m.content].into_iter().for_each(|t| add(t)));
            }
        }
        add(&pair.chosen);
        add(&pair.rejected);
        hashes += &hash::hash_bytes(&bytes);
    }
    hash::hash_bytes(hashes.as_bytes())
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
        let hash = fpo_sae::hash_encoder(&sae.encoder);
        let reader = FeatureReader::new(&sae, site, pooling, folder.special_tokens());
        Ok(Self { reader, hash })
    }
}
