//! The offline reference: one pass of the reference model over all pairs, so that alignment needs only a few values of each.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use fpo_config::MoreSite;
use fpo_data::{
    Fingerprint, PairStore, ReferenceCache,
    reference::{CacheShape, Pass, ROWS_PER_SHARD, SharedCache, StoredFeatures},
};
use fpo_interp::reader::FeatureReader;
use fpo_transformer::{Site, hash_model, weights};

use super::prepare::Prepared;
use crate::{
    reference::{FeatureBinding, Reference, fingerprint, with_features_of},
    run::{Run, Stage, Workspace},
};

/// Which pairs a cache is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The training pairs.
    Train,
    /// The held-out pairs.
    HeldOut,
}

impl Split {
    const ALL: [Self; 2] = [Self::Train, Self::HeldOut];

    const fn folder(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::HeldOut => "held_out",
        }
    }

    /// Its pairs.
    pub fn pairs(self, prepared: &Prepared) -> &PairStore {
        match self {
            Self::Train => &prepared.train,
            Self::HeldOut => &prepared.held_out,
        }
    }
}

/// The caches of a run: where they are and what they are bound to.
pub struct Caches {
    /// The stage.
    pub stage: Stage,
    /// Reads features as the reference's were read, where they are used.
    pub reader: Option<FeatureReader>,
    folders: [PathBuf; 2],
    bound: [Fingerprint; 2],
}

impl Caches {
    /// Opens the cache of one half of the data; one that was made from other things is refused, and what differs is named.
    ///
    /// # Errors
    /// A cache that can't be read, doesn't match, or lacks pairs.
    pub fn open(&self, split: Split, prepared: &Prepared) -> Result<ReferenceCache> {
        let cache =
            ReferenceCache::open(&self.folders[split as usize], &self.bound[split as usize])?;
        cache.require(split.pairs(prepared).iter().map(|pair| pair.id))?;
        Ok(cache)
    }
}

/// Makes what is missing. Its shards are checkpoints: those written before an interruption are not made again.
///
/// With `reference.path` the training pairs' cache is the one in that folder, as `fpo reference` wrote it.
///
/// # Errors
/// An autoencoder that doesn't fit the model, or a cache in `reference.path` that was made from other things.
pub fn reference(
    run: &Run,
    prepared: &Prepared,
    sft: &Stage,
    sae: Option<&Stage>,
) -> Result<Caches> {
    let s = &run.settings;
    let reader = sae.map(|sae| feature_reader(run, prepared, sae)).transpose()?;
    let features = reader.as_ref().map(|reader| FeatureBinding::new(reader, s.reference.top_n));
    let weights = hash_model(&sft.folder)?;
    let mut bound = Split::ALL.map(|split| {
        let tokens = split.pairs(prepared).binding();
        fingerprint(tokens, weights.clone(), s.model.precision, features.as_ref())
    });
    if let (Some(path), None) = (&s.reference.path, &features) {
        // Features that aren't used may be there.
        let made_from = ReferenceCache::made_from(path).context("reference.path")?;
        let [train, _] = &mut bound;
        *train = with_features_of(train.clone(), &made_from);
    }
    let given = s.reference.path.as_ref();
    let mut made_from = super::fingerprint(run);
    for (split, bound) in Split::ALL.into_iter().zip(&bound) {
        if given.is_none() || split == Split::HeldOut {
            made_from = made_from.with(split.folder(), bound.hash());
        }
    }
    let stage = run.stage("reference", made_from, |workspace| {
        fill(run, prepared, sft, reader.as_ref(), &bound, workspace)
    })?;
    let folders = Split::ALL.map(|split| match given {
        Some(path) if split == Split::Train => path.clone(),
        _ => stage.folder.join(split.folder()),
    });
    let caches = Caches { stage, reader, folders, bound };
    if given.is_some() {
        // Refused before a model is loaded for training.
        caches.open(Split::Train, prepared).context("reference.path")?;
    }
    Ok(caches)
}

fn fill(
    run: &Run,
    prepared: &Prepared,
    sft: &Stage,
    reader: Option<&FeatureReader>,
    bound: &[Fingerprint; 2],
    workspace: &Workspace,
) -> Result<()> {
    let s = &run.settings.reference;
    let model = weights::load(&sft.folder, run.placement())?;
    reader.map_or(Ok(()), |reader| reader.check(model.config()))?;
    let reference = Reference { model: &model, reader };
    let made = |split: &Split| s.path.is_none() || *split == Split::HeldOut;
    let splits: Vec<Split> = Split::ALL.into_iter().filter(made).collect();
    let total = splits.iter().map(|split| split.pairs(prepared).len()).sum();
    let mut progress = run.reporter.begin("reference", "pairs", total, 0);
    for &split in &splits {
        let pairs = split.pairs(prepared);
        let shape = CacheShape {
            pairs: pairs.len(),
            d_sae: reader.map_or(0, FeatureReader::d_sae),
            stored: s.top_n.map_or(StoredFeatures::All, StoredFeatures::Top),
            rows_per_shard: ROWS_PER_SHARD,
        };
        let folder = workspace.checkpoints.join(split.folder());
        let cache = SharedCache::open(&folder, &bound[split as usize], shape, None)?;
        let pass = Pass::new(pairs.iter().collect(), s.batch_size.get());
        for shard in 0..cache.shards() {
            match cache.has(shard)? {
                true => progress.skip(pass.pairs_of(shard, cache.shards())),
                false => reference.write(&pass, &cache, shard, &mut progress)?,
            }
        }
    }
    for split in splits {
        let (from, to) = [&workspace.checkpoints, &workspace.output]
            .map(|folder| folder.join(split.folder()))
            .into();
        fs::rename(&from, &to).with_context(|| format!("moving {}", from.display()))?;
    }
    progress.finish(&format!("{total} pairs"));
    Ok(())
}

/// The reader of sparse features at all sites, which reference and policy share.
fn feature_reader(run: &Run, prepared: &Prepared, sae: &Stage) -> Result<FeatureReader> {
    let s = &run.settings;
    let mut reader = FeatureReader::new(s.align.pooling, prepared.tokenizer.special_ids());
    let first = MoreSite { site: s.sae.site.clone(), sae: sae.folder.clone() };
    for MoreSite { site, sae } in std::iter::once(&first).chain(&s.align.more_sites) {
        let (loaded, site): (_, Site) = (fpo_sae::load(sae, &run.device)?, site.parse()?);
        reader = reader.with(&loaded, site);
    }
    let (k, smallest) = (s.align.k, reader.widths().into_iter().min().unwrap_or(0));
    ensure!(k <= smallest, "align.k = {k} is more than the {smallest} features of the autoencoder");
    Ok(reader)
}
