//! A policy's pairs against the reference: one forward pass, and what objectives are computed from.

use anyhow::Result;
use burn::tensor::Tensor;
use fpo_data::{PairBatch, ReferenceCache};
use fpo_losses::{Needs, Objective, PairLosses, PerResponse, Quantities, feature_distance};
use fpo_transformer::{LanguageModel, Tape};

use crate::cached::{cached_features, cached_log_probs, cached_shared_log_probs};
use crate::forward::{Activations, DeviceBatch, FeatureReader, Forward};

/// What a policy is compared with, and by which objective.
pub struct Aligner {
    /// The method and its constants.
    pub objective: Objective,
    /// What is computed: what the objective needs, or more for measuring.
    pub needs: Needs,
    /// Features compared: the k strongest of policy and of reference.
    pub k: usize,
    /// The weight of each feature's square, `[d_sae]`, of all sites; all 1 where absent.
    pub feature_weights: Option<Tensor<1>>,
    /// Reads the policy's features, where they are wanted.
    pub reader: Option<FeatureReader>,
    /// What the reference said of the same pairs.
    pub cache: ReferenceCache,
    /// Only for methods whose constraint is over the whole vocabulary.
    pub reference_model: Option<LanguageModel>,
    /// What the policy's forward pass keeps.
    pub activations: Activations,
    /// Entropy and token accuracy are wanted too: one more pass over the logits.
    pub token_statistics: bool,
}

/// What was computed of a batch of pairs.
pub struct Measured {
    /// What losses are made of.
    pub quantities: Quantities,
    /// Entropies of the policy's distributions, summed over response tokens, where they were wanted.
    pub entropy: Option<PerResponse>,
    /// Response tokens that the policy holds most probable, where they were wanted.
    pub right: Option<PerResponse>,
    /// Pooled activations of the policy, `[rows, d_sae]`, where they were computed.
    pub pooled: Option<Tensor<2>>,
    /// For the way back from the loss, where activations are recomputed.
    pub tape: Option<Tape>,
}

/// The log-probabilities that gradients go through.
pub struct LogProbs {
    /// Summed over a response.
    pub full: PerResponse,
    /// Over as many of its first tokens as both responses of the pair have, where they are needed.
    pub shared: Option<PerResponse>,
}

impl Aligner {
    /// One forward pass of the policy, and the loss of every pair. Where the objective needs the whole
    /// step, they are the losses of a step of this batch.
    pub fn evaluate(
        &self,
        policy: &LanguageModel,
        batch: &PairBatch,
    ) -> Result<(Measured, PairLosses)> {
        let measured = self.measure(policy, batch)?;
        let losses = self.objective.losses(measured.quantities.clone());
        Ok((measured, losses))
    }

    /// The policy's log-probabilities alone, and the way back from them where activations are recomputed.
    pub fn log_probs(&self, policy: &LanguageModel, batch: &PairBatch) -> (LogProbs, Option<Tape>) {
        let device_batch = DeviceBatch::new(&batch.batch, &policy.device());
        let forward =
            Forward::for_training(policy, &batch.batch, &device_batch, None, self.activations);
        let log_probs = self.read_log_probs(policy, &forward, &device_batch);
        (log_probs, forward.tape)
    }

    fn read_log_probs(
        &self,
        policy: &LanguageModel,
        forward: &Forward,
        device_batch: &DeviceBatch,
    ) -> LogProbs {
        let tokens = forward.token_log_probs(policy, device_batch);
        let shared = self
            .needs
            .shared_log_probs
            .then(|| PerResponse::split(device_batch.sum_shared_by_row(tokens.clone())));
        LogProbs { full: PerResponse::split(device_batch.sum_by_row(tokens)), shared }
    }

    /// D, summed over the sites, whose features stand one after another in `[rows, Σ widths]`
    /// (appendix D.2). `[rows]`
    fn distance(&self, policy: Tensor<2>, reference: Tensor<2>, widths: &[usize]) -> Tensor<1> {
        let weights = || self.feature_weights.clone();
        if widths.len() == 1 {
            return feature_distance(policy, reference, self.k, weights());
        }
        let mut start = 0;
        let distances = widths.iter().map(|&width| {
            let of_site = |x: &Tensor<2>| x.clone().narrow(1, start, width);
            let weights = weights().map(|w| w.narrow(0, start, width));
            let (policy, reference) = (of_site(&policy), of_site(&reference));
            start += width;
            feature_distance(policy, reference, self.k, weights)
        });
        distances.reduce(|sum, distance| sum + distance).expect("a reader has a site")
    }

    /// One forward pass of the policy, and everything that is needed.
    pub fn measure(&self, policy: &LanguageModel, batch: &PairBatch) -> Result<Measured> {
        let device = policy.device();
        let device_batch = DeviceBatch::new(&batch.batch, &device);
        let forward = Forward::for_training(
            policy,
            &batch.batch,
            &device_batch,
            self.reader.as_ref(),
            self.activations,
        );
        let LogProbs { full, shared } = self.read_log_probs(policy, &forward, &device_batch);
        let dtype = full.chosen.dtype();
        // The cache and the counts are float32; a model may be of another type.
        let split = |values: Tensor<1>| PerResponse::split(values.cast(dtype));

        let counts = device_batch.counts.iter().map(|&n| n as f32).collect::<Vec<_>>();
        let counts = split(Tensor::from_floats(counts.as_slice(), &device));
        let aligned = self.needs.aligned_log_probs.then(|| {
            let tokens = forward.token_aligned_log_probs(policy, &device_batch);
            PerResponse::split(device_batch.sum_by_row(tokens)) / counts.clone().map(|n| n.inner())
        });
        let kl = self.reference_model.as_ref().map(|reference_model| {
            let plain = DeviceBatch::new(&batch.batch, &reference_model.device());
            let reference = Forward::new(reference_model, &batch.batch, &plain, None);
            PerResponse::split(forward.kl(policy, &reference, reference_model, &device_batch))
        });
        let [entropy, right] = match self.token_statistics {
            true => forward
                .token_statistics(policy, &device_batch)
                .map(|tokens| Some(PerResponse::split(device_batch.sum_by_row(tokens)))),
            false => [None, None],
        };
        let (pooled, tape) = (forward.pooled, forward.tape);
        let distance = match (&pooled, &self.reader) {
            (Some(policy), Some(reader)) => {
                let reference = cached_features(&self.cache, &batch.ids, &device)?;
                let reference = reference.cast(policy.dtype());
                let distance = self.distance(policy.clone(), reference, &reader.widths());
                Some(PerResponse::split(distance))
            }
            _ => None,
        };
        let reference = match self.needs.reference_log_probs {
            true => Some(split(cached_log_probs(&self.cache, &batch.ids, &device)?)),
            false => None,
        };
        let reference_shared = match self.needs.shared_log_probs {
            true => Some(split(cached_shared_log_probs(&self.cache, &batch.ids, &device)?)),
            false => None,
        };
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
        Ok(Measured { quantities, entropy, right, pooled, tape })
    }
}
