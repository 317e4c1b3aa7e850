//! The offline reference: what its cache is bound to, and the pass that fills it. The stage of a run, `fpo reference` and
//! `fpo evaluate` share all of this, so that each reads what another has written.

use std::num::NonZeroUsize;

use anyhow::{Context, Result};
use burn::tensor::Tensor;
use fpo_data::{
    Fingerprint, PairBatch, Pooling, ReferenceRow, SparseFeatures,
    reference::{Pass, ReferenceResponse, SharedCache},
};
use fpo_device::progress::Progress;
use fpo_interp::reader::FeatureReader;
use fpo_transformer::{LanguageModel, Precision, Site};

use crate::forward::{DeviceBatch, Forward};

/// Names of the items that a cache is bound to, besides its tokens.
pub mod item {
    /// Content of the reference model's configuration and weights.
    pub const WEIGHTS: &str = "reference weights";
    /// The types that the reference model computed in.
    pub const PRECISION: &str = "precision";
    /// Content of the encoder, or of several.
    pub const SAE: &str = "autoencoder";
    /// Where it read, or where they did.
    pub const SITE: &str = "site";
    /// Positions whose features were averaged.
    pub const POOLING: &str = "pooling";
    /// Features stored per response.
    pub const TOP_N: &str = "top_n";
}

/// The value of an item that doesn't apply, such as the site of a cache without features.
pub const NONE: &str = "none";

/// The features of a cache: which autoencoders read them where, and how many are kept.
#[derive(Clone, Debug)]
pub struct FeatureBinding {
    /// Hash of each encoder, with its site, in the order of the reader.
    encoders: Vec<(String, Site)>,
    /// Positions whose features are averaged.
    pooling: Pooling,
    /// Features kept per response; all that are not zero if absent.
    top_n: Option<NonZeroUsize>,
}

impl FeatureBinding {
    /// What `reader` reads. This hashes every encoder.
    pub fn new(reader: &FeatureReader, top_n: Option<NonZeroUsize>) -> Self {
        let hashes = reader.encoders().map(fpo_sae::hash_encoder);
        Self { encoders: hashes.zip(reader.sites()).collect(), pooling: reader.pooling(), top_n }
    }
}

/// The fingerprint of a reference cache: everything that its values depend on, by content and not by name. `tokens` is the
/// [binding](fpo_data::binding) of the pairs.
pub fn fingerprint(
    tokens: Fingerprint,
    weights: String,
    precision: Precision,
    features: Option<&FeatureBinding>,
) -> Fingerprint {
    let joined = |values: &mut dyn Iterator<Item = String>| values.collect::<Vec<_>>().join(", ");
    let of = |value: &dyn Fn(&FeatureBinding) -> String| features.map_or(NONE.into(), value);
    tokens
        .with(item::WEIGHTS, weights)
        .with(item::PRECISION, precision)
        .with(item::SAE, of(&|f| joined(&mut f.encoders.iter().map(|(hash, _)| hash.clone()))))
        .with(item::SITE, of(&|f| joined(&mut f.encoders.iter().map(|(_, site)| site.to_string()))))
        .with(item::POOLING, of(&|f| f.pooling.name().into()))
        .with(item::TOP_N, of(&|f| f.top_n.map_or(NONE.into(), |n| n.to_string())))
}

/// The fingerprint of a cache that is read without its features, whatever they are.
pub fn with_features_of(expected: Fingerprint, made_from: &Fingerprint) -> Fingerprint {
    [item::SAE, item::SITE, item::POOLING, item::TOP_N].into_iter().fold(
        expected,
        |expected, item| match made_from.0.get(item) {
            Some(found) => expected.with(item, found),
            None => expected,
        },
    )
}

/// The model that a reference pass runs, and what it reads of it.
pub struct Reference<'a> {
    /// Without autodiff.
    pub model: &'a LanguageModel,
    /// Reads features; without it only log-probabilities are noted.
    pub reader: Option<&'a FeatureReader>,
}

impl Reference<'_> {
    /// Writes one shard of a cache.
    ///
    /// # Errors
    /// Those of the cache.
    pub fn write(
        &self,
        pass: &Pass,
        cache: &SharedCache,
        shard: usize,
        progress: &mut Progress,
    ) -> Result<()> {
        let shards = cache.shards();
        let part = format!("part {shard} of {shards}");
        let mut writer = cache.writer(shard)?;
        for indices in pass.batches(shard, shards) {
            let batch = PairBatch::new(&pass.views(indices))?;
            for row in self.rows(&batch) {
                writer.push(row)?;
            }
            progress.advance(indices.len(), &part);
        }
        fpo_device::check()?;
        writer.finish().context(part)
    }

    /// What the model says of a batch of pairs.
    pub fn rows(&self, batch: &PairBatch) -> Vec<ReferenceRow> {
        let on_device = DeviceBatch::new(&batch.batch, &self.model.device());
        let forward = Forward::new(self.model, &batch.batch, &on_device, self.reader);
        let tokens = forward.token_log_probs();
        let log_probs = read(on_device.sum_by_row(tokens.clone()));
        let shared = read(on_device.sum_shared_by_row(tokens));
        let pooled: Vec<(usize, Vec<f32>)> =
            forward.pooled.into_iter().map(|x| (x.dims()[1], read(x))).collect();
        let response = |row: usize| {
            // The cache has the sites' features one after another.
            let sites = pooled.iter().flat_map(|(width, values)| &values[row * width..][..*width]);
            ReferenceResponse {
                log_prob: log_probs[row],
                shared_log_prob: shared[row],
                tokens: on_device.counts[row] as u32,
                features: SparseFeatures::from_dense(&sites.copied().collect::<Vec<_>>()),
            }
        };
        let pairs = batch.ids.len();
        let row =
            |(i, &id)| ReferenceRow { id, chosen: response(i), rejected: response(pairs + i) };
        batch.ids.iter().enumerate().map(row).collect()
    }
}

fn read<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}
