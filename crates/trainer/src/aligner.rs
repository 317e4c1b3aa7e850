//! A policy's pairs against the reference: one forward pass, and everything that objectives are computed from.

use anyhow::{Context, Result};
use burn::tensor::Tensor;
use fpo_data::{PairBatch, ReferenceCache};
use fpo_interp::reader::FeatureReader;
use fpo_losses::{Needs, Objective, PerResponse, Quantities, feature_distance};
use fpo_metrics::{Pairs, TokenStatistics};
use fpo_ops::profile;
use fpo_transformer::{LanguageModel, Tape};

use crate::{
    cached::Cached,
    forward::{DeviceBatch, Forward, Keep},
};

/// What a policy is compared with, and by which objective.
pub struct Aligner {
    /// The method and its constants.
    pub objective: Objective,
    /// What is computed: what the objective needs, or more for measuring. The parts below are there where this asks for them.
    pub needs: Needs,
    /// Computes entropy and token accuracy too: another pass over the logits.
    pub token_statistics: bool,
    /// What the reference said of the same pairs.
    pub cache: ReferenceCache,
    /// For `needs.features`.
    pub features: Option<FeatureConstraint>,
    /// For `needs.token_kl`.
    pub reference_model: Option<LanguageModel>,
    /// What the policy's forward pass keeps.
    pub keep: Keep,
}

/// FPO's constraint: how far the policy's features may move (equation 10).
pub struct FeatureConstraint {
    /// Reads the policy's features as the reference's were read.
    pub reader: FeatureReader,
    /// Features compared: the k strongest of policy and of reference, at each site.
    pub k: usize,
    /// The weight of each feature's square, `[d_sae]` per site; all 1 if absent.
    pub weights: Option<Vec<Tensor<1>>>,
}

impl FeatureConstraint {
    /// D, summed over the sites (appendix D.2). `policy` and `reference` are pooled features, `[rows, d_sae]` per site. → `[rows]`
    fn distance(&self, policy: &[Tensor<2>], reference: Vec<Tensor<2>>) -> Result<Tensor<1>> {
        let _autoencoder = profile::part("autoencoder");
        let distances =
            policy.iter().zip(reference).enumerate().map(|(site, (policy, reference))| {
                let reference = reference.cast(policy.dtype());
                let weights = self.weights.as_ref().map(|weights| weights[site].clone());
                feature_distance(policy.clone(), reference, self.k, weights)
            });
        distances.reduce(|sum, distance| sum + distance).context("a reader without a site")
    }
}

/// What was computed of a batch of pairs.
pub struct Comparison {
    /// What losses are made of.
    pub quantities: Quantities,
    /// Entropy and most probable tokens of the policy's distributions, where they are measured.
    pub statistics: Option<TokenStatistics>,
    /// Pooled features of the policy, `[rows, d_sae]` per site.
    pub pooled: Vec<Tensor<2>>,
    /// For the backward pass from the loss, where activations are computed again.
    pub tape: Option<Tape>,
}

impl Comparison {
    /// Adds what was measured to that of other batches.
    pub fn add_to(&self, pairs: &mut Pairs) {
        pairs.add(&self.quantities);
        if let Some(statistics) = &self.statistics {
            pairs.add_statistics(statistics);
        }
    }
}

/// The log-probabilities that gradients go through.
pub struct LogProbs {
    /// Summed over a response.
    pub full: PerResponse,
    /// Summed over as many of its first tokens as both responses of the pair have.
    pub shared: Option<PerResponse>,
}

impl Aligner {
    /// One forward pass of the policy, and everything that is needed.
    ///
    /// # Errors
    /// A pair that the cache lacks.
    pub fn compare(&self, policy: &LanguageModel, batch: &PairBatch) -> Result<Comparison> {
        let (needs, device) = (self.needs, policy.device());
        let features = match needs.features {
            true => Some(self.features.as_ref().context("the method needs a feature reader")?),
            false => None,
        };
        let on_device = DeviceBatch::new(&batch.batch, &device);
        let reader = features.map(|features| &features.reader);
        let forward = Forward::for_training(policy, &batch.batch, &on_device, reader, self.keep);
        let by_response = |tokens: Tensor<1>| PerResponse::split(on_device.sum_by_row(tokens));

        let LogProbs { full, shared } = self.read_log_probs(&forward, &on_device);
        // The cache and the counts are float32; a model may be of another type.
        let dtype = full.chosen.dtype();
        let split = |values: Tensor<1>| PerResponse::split(values.cast(dtype));
        let counts: Vec<f32> = on_device.counts.iter().map(|&n| n as f32).collect();
        let counts = split(Tensor::from_floats(counts.as_slice(), &device));
        let aligned = needs.aligned_log_probs.then(|| {
            by_response(forward.token_aligned_log_probs()) / counts.clone().map(|n| n.inner())
        });

        let cached = Cached::new(&self.cache, &batch.ids)?;
        let reference = needs.reference_log_probs.then(|| split(cached.log_probs(&device)));
        let reference_shared =
            needs.shared_log_probs.then(|| split(cached.shared_log_probs(&device)));
        let distance = match features {
            Some(features) => {
                let reference = cached.features(&features.reader.widths(), &device);
                Some(PerResponse::split(features.distance(&forward.pooled, reference)?))
            }
            None => None,
        };
        let kl = match needs.token_kl {
            true => {
                let model = self.reference_model.as_ref();
                let model = model.context("the method needs the reference model")?;
                let on_device = DeviceBatch::new(&batch.batch, &model.device());
                let reference = Forward::new(model, &batch.batch, &on_device, None);
                Some(by_response(forward.token_kl(&reference)))
            }
            false => None,
        };
        let statistics = self.token_statistics.then(|| {
            let [entropy, right] = forward.token_statistics().map(by_response);
            TokenStatistics { entropy, right }
        });
        let quantities = Quantities {
            log_probs: full,
            counts,
            shared,
            aligned,
            reference,
            reference_shared,
            kl,
            distance,
        };
        let Forward { pooled, tape, .. } = forward;
        Ok(Comparison { quantities, statistics, pooled, tape })
    }

    /// The policy's log-probabilities alone, and the tape of the backward pass from them.
    pub fn log_probs(&self, policy: &LanguageModel, batch: &PairBatch) -> (LogProbs, Option<Tape>) {
        let on_device = DeviceBatch::new(&batch.batch, &policy.device());
        let forward = Forward::for_training(policy, &batch.batch, &on_device, None, self.keep);
        (self.read_log_probs(&forward, &on_device), forward.tape)
    }

    fn read_log_probs(&self, forward: &Forward, on_device: &DeviceBatch) -> LogProbs {
        let tokens = forward.token_log_probs();
        let shared = self
            .needs
            .shared_log_probs
            .then(|| PerResponse::split(on_device.sum_shared_by_row(tokens.clone())));
        LogProbs { full: PerResponse::split(on_device.sum_by_row(tokens)), shared }
    }
}
