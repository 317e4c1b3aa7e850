//! `fpo reference`.

use std::{num::NonZeroUsize, path::PathBuf, str::FromStr};

use anyhow::Result;
use clap::{Args, builder::RangedU64ValueParser};
use fpo_data::{
    Pooling,
    reference::{BLOCK, CacheShape, Pass, ROWS_PER_SHARD, SharedCache, StoredFeatures},
};
use fpo_interp::reader::FeatureReader;
use fpo_trainer::reference::{self as reference, FeatureBinding, fingerprint};
use fpo_transformer::{Site, hash_model};

use crate::{
    loaded::{ModelFolder, PlacementArgs},
    score::TOKENS_HELP,
    terminal::reporter,
    tokens::TokenArgs,
};

/// Notes what a reference model says of every pair, so that nobody needs the model again.
///
/// Writes a folder of Parquet files with a row for every pair: `id` (its row in the data, from 0), and
/// for each of chosen_ and rejected_: `log_prob` (the sum over the response's tokens), `shared_log_prob`
/// (over as many of its first tokens as the shorter response has), `tokens` (their number),
/// `feature_index` and `feature_value` (the pooled activations that are not zero).
///
/// The files are bound to what they were made from: data, weights, autoencoder, tokenizer, chat template,
/// lengths, site, pooling, top-n. Whoever reads them for something else is told what differs.
///
/// With --shard 0/4 to 3/4 four processes, on as many machines, each write a part into the same folder (or
/// into folders whose files are then put into one). A part that is there is not made again, one that was
/// interrupted or damaged is; without --shard all that are missing are made.
#[derive(Args)]
#[command(verbatim_doc_comment, after_help = TOKENS_HELP)]
pub struct Reference {
    /// The reference model's folder in Hugging Face's layout, with its tokenizer.
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// A SAELens folder or Gemma Scope's params.npz; without it only log-probabilities are noted.
    #[arg(long, value_name = "PATH", requires = "site")]
    sae: Option<PathBuf>,
    /// Where its activations are read, such as resid_post:25.
    #[arg(long, requires = "sae")]
    site: Option<Site>,
    /// Preference pairs.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// The cache's folder.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Positions whose features are averaged: predicting (those whose logits give the response), response
    /// (its own tokens) or sequence (all). Those that hold BOS or EOS are left out where others are there.
    #[arg(long, default_value = "predicting")]
    pooling: Pooling,
    /// Keeps only the n largest pooled activations of a response; all that are not zero where absent.
    #[arg(long, value_name = "N")]
    top_n: Option<NonZeroUsize>,
    /// Writes one part of several, I/N with I from 0 to N − 1.
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Pairs a forward pass, at most 64.
    #[arg(long, default_value = "8", value_name = "PAIRS", value_parser = batch_size())]
    batch_size: usize,
    #[command(flatten)]
    tokens: TokenArgs,
    #[command(flatten)]
    placement: PlacementArgs,
}

/// A block of pairs is divided into batches, so that none is larger.
pub fn batch_size() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=BLOCK.get() as u64)
}

/// One part of several.
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
                "parts are counted from 0: 0/{of} to {}/{of}, and there are at most 99999",
                shard.of.get() - 1,
                of = shard.of
            )),
        }
    }
}

impl Reference {
    pub fn run(self) -> Result<()> {
        let placement = self.placement.open()?;
        let folder = ModelFolder::open(&self.model)?;
        let features = match (&self.sae, self.site) {
            (Some(path), Some(site)) => {
                let sae = folder.open_sae(path, site, &placement.device)?;
                let reader = FeatureReader::new(self.pooling, folder.tokenizer.special_ids());
                let mut bound = FeatureBinding {
                    encoders: Vec::new(),
                    pooling: self.pooling,
                    top_n: self.top_n,
                };
                bound.push(&sae, site);
                Some((reader.with(&sae, site), bound))
            }
            _ => None,
        };
        let (reader, bound) = features.unzip();
        let pairs = self.tokens.read_pairs(&folder, &self.data)?;
        let weights = hash_model(&self.model)?;
        let precision = self.placement.precision();
        let bound = fingerprint(pairs.binding.clone(), weights, precision, bound.as_ref());
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
        let pad = folder.tokenizer.pad_id();
        let reference = reference::Reference { model: &model, reader: reader.as_ref(), pad };
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

    /// The parts that are wanted and not there.
    fn missing(&self, cache: &SharedCache) -> Result<Vec<usize>> {
        let shards = cache.shards();
        let wanted = match self.shard {
            Some(shard) => shard.index..shard.index + 1,
            None => 0..shards,
        };
        let mut missing = Vec::new();
        for shard in wanted {
            match cache.has(shard)? {
                true => eprintln!("part {shard} of {shards} is there"),
                false => missing.push(shard),
            }
        }
        Ok(missing)
    }
}
