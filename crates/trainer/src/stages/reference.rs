//! The offline reference: one pass of the reference model over all pairs, so that alignment needs
//! only a few numbers of each.

use std::fs;

use anyhow::{Context, Result};
use fpo_data::{
    Fingerprint, PairBatch, PairView, ReferenceCache,
    reference::{CacheShape, SharedCache, StoredFeatures},
};
use fpo_transformer::{Site, weights};

use super::prepare::Prepared;
use crate::forward::FeatureReader;
use fpo_device::progress::Progress;
use crate::reference_pass::{Pass, ROWS_PER_SHARD, reference_rows};
use crate::run::{Run, Stage};
use fpo_config::MoreSite;

/// Which half of the data a cache is about.
#[derive(Clone, Copy, Debug)]
pub enum Split {
    /// The training pairs.
    Train,
    /// The held-out pairs.
    HeldOut,
}

impl Split {
    const fn folder(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::HeldOut => "held_out",
        }
    }
}

/// Everything that the numbers in a cache depend on.
fn cache_fingerprint(
    run: &Run,
    prepared: &Prepared,
    sft: &Stage,
    sae: &Stage,
) -> Result<Fingerprint> {
    let s = &run.settings;
    let mut fingerprint = Fingerprint::default();
    for MoreSite { site, sae } in &s.align.more_sites {
        fingerprint = fingerprint.with(&format!("sae at {site}"), super::content(sae)?);
    }
    Ok(fingerprint
        .with("columns", "with shared_log_prob")
        .with("weights", &sft.hash)
        .with("sae", &sae.hash)
        .with("tokenizer", prepared.tokenizer.hash())
        .with("template", prepared.template.hash())
        .with("max_length", s.data.max_length)
        .with("max_prompt_length", format!("{:?}", s.data.max_prompt_length))
        .with("site", &s.sae.site)
        .with("pooling", s.align.pooling.name())
        .with("pairs", &prepared.stage.hash)
        .with("top_n", format!("{:?}", s.reference.top_n)))
}

/// The reader of sparse features, of all sites, that reference and policy share.
pub fn feature_reader(run: &Run, prepared: &Prepared, sae: &Stage) -> Result<FeatureReader> {
    let site: Site = run.settings.sae.site.parse()?;
    let loaded = fpo_sae::load(&sae.folder, &run.device)?;
    let pooling = run.settings.align.pooling;
    let mut reader = FeatureReader::new(&loaded, site, pooling, prepared.excluded_tokens());
    for MoreSite { site, sae } in &run.settings.align.more_sites {
        reader = reader.and(&fpo_sae::load(sae, &run.device)?, site.parse()?);
    }
    Ok(reader)
}

/// Opens one half of the cache; one that was made from other things is refused.
pub fn open_cache(
    run: &Run,
    prepared: &Prepared,
    (sft, sae, reference): (&Stage, &Stage, &Stage),
    split: Split,
) -> Result<ReferenceCache> {
    let expected = cache_fingerprint(run, prepared, sft, sae)?;
    Ok(ReferenceCache::open(&reference.folder.join(split.folder()), &expected)?)
}

/// The stage. Its parts are checkpoints: what was written before it was interrupted need not be made
/// again.
pub fn reference(run: &Run, prepared: &Prepared, sft: &Stage, sae: &Stage) -> Result<Stage> {
    let s = &run.settings;
    let cache = cache_fingerprint(run, prepared, sft, sae)?;
    let fingerprint = super::fingerprint_of_model(run).with("cache", cache.hash());
    run.stage("reference", fingerprint, |workspace| {
        let model = weights::load(&sft.folder, run.placement())?;
        let reader = feature_reader(run, prepared, sae)?;
        reader.check(model.config())?;
        let pad = prepared.tokenizer.pad_id();
        let rows = |batch: &[PairView]| {
            reference_rows(&model, Some(&reader), &PairBatch::new(batch, pad)?)
        };
        let halves = [(Split::Train, &prepared.train), (Split::HeldOut, &prepared.held_out)];
        let total = halves.iter().map(|(_, pairs)| pairs.len()).sum();
        let mut progress = Progress::new("reference", "pairs", total, 0);
        for (split, pairs) in halves {
            let shape = CacheShape {
                pairs: pairs.len(),
                d_sae: reader.d_sae(),
                stored: s.reference.top_n.map_or(StoredFeatures::All, StoredFeatures::Top),
                rows_per_shard: ROWS_PER_SHARD,
            };
            let folder = workspace.checkpoints.join(split.folder());
            let shared = SharedCache::open(&folder, &cache, shape, None)?;
            let pass = Pass::new(pairs.iter().collect(), s.reference.batch_size.get());
            for shard in 0..shared.shards() {
                match shared.has(shard)? {
                    true => progress.skip(pass.pairs_of(shard, shared.shards())),
                    false => pass.write(&shared, shard, &rows, &mut progress)?,
                }
            }
        }
        for (split, _) in halves {
            let (from, to) = [&workspace.checkpoints, &workspace.output]
                .map(|folder| folder.join(split.folder()))
                .into();
            fs::rename(&from, &to).with_context(|| format!("moving {}", from.display()))?;
        }
        progress.finish(&format!("{total} pairs"));
        Ok(())
    })
}
