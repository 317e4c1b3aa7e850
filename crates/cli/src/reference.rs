//! `fpo reference`: the cache of a reference model's log-probabilities and features.

use std::{num::NonZeroUsize, path::PathBuf, str::FromStr};

use anyhow::Result;
use clap::{Args, builder::RangedU64ValueParser};
use fpo_data::{
    Pooling,
    reference::{BLOCK, CacheShape, Pass, ROWS_PER_SHARD, SharedCache, StoredFeatures},
};
use fpo_interp::{autoencoder, reader::FeatureReader};
use fpo_trainer::reference::{self, FeatureBinding, fingerprint};
use fpo_transformer::{Site, hash_model};

use crate::{
    loaded::{ModelFolder, PlacementArgs},
    streams,
    terminal::reporter,
    tokens::{TOKENS_HELP, TokenArgs},
};

/// Caches a reference model's log-probabilities and pooled features, so that alignment doesn't need the model
///
/// Writes a folder of Parquet files with one row per pair: `id`, the row in the data from 0, and with the
/// prefixes chosen_ and rejected_
///   log_prob                      log-probability of the response in nats, summed over its tokens
///   shared_log_prob               the same over its first n tokens, n being the length of the shorter response
///   tokens                        number of response tokens
///   feature_index, feature_value  nonzero pooled activations
///
/// The files record what they were made from: data, weights, autoencoder, tokenizer, chat template, maximum
/// lengths, site, pooling and top-n. Using them with anything else is an error that names the difference.
///
/// With --shard 0/4 to --shard 3/4, four processes on different machines each write one part, into the same
/// folder or into folders whose files are merged afterwards. Existing parts are kept; interrupted or damaged
/// ones are computed again. Without --shard all missing parts are computed.
///
/// Example:
///   fpo reference --model gemma-2-2b-sft --sae sae --site resid_post:25 --data pairs.jsonl --out cache
#[derive(Args)]
#[command(verbatim_doc_comment, after_help = TOKENS_HELP)]
pub struct Reference {
    /// Folder of the reference model in Hugging Face's layout, with its tokenizer.
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// The autoencoder: SAELens, Gemma Scope, Llama Scope, Qwen-Scope, sparsify or dictionary_learning. Without it only
    /// log-probabilities are cached.
    #[arg(long, value_name = "PATH")]
    sae: Option<PathBuf>,
    /// Site where the autoencoder reads activations, such as resid_post:25 [default: the one in its file].
    #[arg(long, value_name = "SITE", requires = "sae")]
    site: Option<Site>,
    /// Preference pairs; see below.
    #[arg(long, value_name = "FILE", value_parser = streams::input)]
    data: PathBuf,
    /// Folder of the cache.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Positions over which features are averaged: predicting (those whose logits give the response), response (the
    /// response's tokens) or sequence (all). Special tokens such as BOS and EOS are excluded unless there are no others.
    #[arg(long, value_name = "POSITIONS", default_value = "predicting")]
    pooling: Pooling,
    /// Stores only the N largest pooled activations per response [default: all nonzero ones].
    #[arg(long, value_name = "N")]
    top_n: Option<NonZeroUsize>,
    /// Computes only part I of N, with I from 0 to N − 1.
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Pairs per forward pass, at most 64.
    #[arg(long, default_value = "8", value_name = "PAIRS", value_parser = batch_size())]
    batch_size: usize,
    #[command(flatten)]
    tokens: TokenArgs,
    #[command(flatten)]
    placement: PlacementArgs,
}

/// Parses a batch size of 1 to [`BLOCK`]: batches are cut from blocks of pairs, so none can be larger.
pub fn batch_size() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=BLOCK.get() as u64)
}

/// `--shard I/N`.
#[derive(Clone, Copy)]
struct Shard {
    index: usize,
    of: NonZeroUsize,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(index, of)| {
            Some(Self { index: index.parse().ok()?, of: of.parse().ok()? })
        });
        let shard = parsed.ok_or("expected I/N, such as 0/4")?;
        match shard.index < shard.of.get() && shard.of.get() <= 99_999 {
            true => Ok(shard),
            false => Err(format!(
                "parts are counted from 0, from 0/{of} to {}/{of}; the maximum is 99999 parts",
                shard.of.get() - 1,
                of = shard.of
            )),
        }
    }
}

impl Reference {
    pub fn run(self) -> Result<()> {
        streams::keep_apart(&self.out, &[&self.data, &self.model])?;
        let placement = self.placement.open()?;
        let folder = ModelFolder::open(&self.model)?.with_system(self.tokens.system);
        let reader = match &self.sae {
            Some(path) => {
                let site = autoencoder::site(self.site, path)?;
                let sae = folder.open_sae(path, site, &placement.device)?;
                let reader = FeatureReader::new(self.pooling, folder.tokenizer.special_ids());
                Some(reader.with(&sae, site))
            }
            None => None,
        };
        let pairs = self.tokens.read_pairs(&folder, &self.data)?;
        let weights = hash_model(&self.model)?;
        let precision = self.placement.precision();
        let features = reader.as_ref().map(|reader| FeatureBinding::new(reader, self.top_n));
        let bound = fingerprint(pairs.binding.clone(), weights, precision, features.as_ref());
        let views = pairs.views();
        let shape = CacheShape {
            pairs: views.len(),
            d_sae: reader.as_ref().map_or(0, FeatureReader::d_sae),
            stored: self.top_n.map_or(StoredFeatures::All, StoredFeatures::Top),
            rows_per_shard: ROWS_PER_SHARD,
        };
        let cache = SharedCache::open(&self.out, &bound, shape, self.shard.map(|s| s.of))?;
        let missing = self.missing(&cache)?;
        if missing.is_empty() {
            return Ok(());
        }
        let model = folder.load(&placement)?;
        let reference = reference::Reference { model: &model, reader: reader.as_ref() };
        let of = views.len();
        let pass = Pass::new(views, self.batch_size);
        let count = |&shard: &usize| pass.pairs_of(shard, cache.shards());
        let total = missing.iter().map(count).sum();
        let mut progress = reporter().begin("reference", "pairs", total, 0);
        for shard in missing {
            reference.write(&pass, &cache, shard, &mut progress)?;
        }
        progress.finish(&format!("{total} pairs of {of}"));
        Ok(())
    }

    /// The parts to compute: those asked for that don't exist yet.
    fn missing(&self, cache: &SharedCache) -> Result<Vec<usize>> {
        let shards = cache.shards();
        let wanted = match self.shard {
            Some(shard) => shard.index..shard.index + 1,
            None => 0..shards,
        };
        let mut missing = Vec::new();
        for shard in wanted {
            match cache.has(shard)? {
                true => {
                    reporter()
                        .note("reference", format!("part {shard} of {shards} already exists"));
                }
                false => missing.push(shard),
            }
        }
        Ok(missing)
    }
}
