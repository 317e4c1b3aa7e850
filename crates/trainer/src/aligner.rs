//! A policy's pairs against the reference: one forward pass, and what an objective makes of it.

use anyhow::Result;
use burn::tensor::Tensor;
use fpo_data::{PairBatch, ReferenceCache};
use fpo_losses::{Objective, PerResponse, Preference, Quantities, feature_distance};
use fpo_transformer::{Gemma2, Tape};

use crate::{
    cached::{cached_features, cached_log_probs},
    forward::{Activations, DeviceBatch, FeatureReader, Forward},
};

/// What a policy is compared with, and by which objective.
pub struct Aligner {
    /// The method and its constants.
    pub objective: Objective,
    /// Features compared: the k strongest of policy and of reference.
    pub k: usize,
    /// Reads the policy's features, where they are wanted.
    pub reader: Option<FeatureReader>,
    /// What the reference said of the same pairs.
    pub cache: ReferenceCache,
    /// Only for methods whose constraint is over the whole vocabulary.
    pub reference_model: Option<Gemma2>,
    /// What the policy's forward pass keeps.
    pub activations: Activations,
}

/// What an objective made of a batch of pairs.
pub struct Outcome {
    /// Rewards and loss.
    pub preference: Preference,
    /// Summed log-probabilities.
    pub log_probs: PerResponse,
    /// Response tokens.
    pub counts: PerResponse,
    /// KL(reference ‖ policy) over the response, where it was computed.
    pub kl: Option<PerResponse>,
    /// The feature distance, where it was computed.
    pub distance: Option<PerResponse>,
    /// Pooled activations of the policy, `[rows, d_sae]`, where they were computed.
    pub pooled: Option<Tensor<2>>,
    /// For the way back from the loss, where activations are recomputed.
    pub tape: Option<Tape>,
}

impl Aligner {
    /// One forward pass of the policy, and the objective's rewards.
    pub fn evaluate(&self, policy: &Gemma2, batch: &PairBatch) -> Result<Outcome> {
        let device = policy.device();
        let device_batch = DeviceBatch::new(&batch.batch, &device);
        let forward = Forward::for_training(
            policy,
            &batch.batch,
            &device_batch,
            self.reader.as_ref(),
            self.activations,
        );
        let log_probs = PerResponse::split(forward.log_probs(policy, &device_batch));
        let counts = device_batch.counts.iter().map(|&n| n as f32).collect::<Vec<_>>();
        let counts = PerResponse::split(Tensor::from_floats(counts.as_slice(), &device));

        let kl = self.reference_model.as_ref().map(|reference_model| {
            let plain = DeviceBatch::new(&batch.batch, &reference_model.device());
            let reference = Forward::new(reference_model, &batch.batch, &plain, None);
            PerResponse::split(forward.kl(policy, &reference, reference_model, &device_batch))
        });
        let (pooled, tape) = (forward.pooled, forward.tape);
        let distance = match &pooled {
            Some(policy) => {
                let reference = cached_features(&self.cache, &batch.ids, &device)?;
                let distance = feature_distance(policy.clone(), reference, self.k, None);
                Some(PerResponse::split(distance))
            }
            None => None,
        };
        let reference = cached_log_probs(&self.cache, &batch.ids, &device)?;
        let preference = self.objective.preference(Quantities {
            log_probs: log_probs.clone(),
            counts: counts.clone(),
            reference: Some(PerResponse::split(reference)),
            kl: kl.clone(),
            distance: distance.clone(),
        });
        Ok(Outcome { preference, log_probs, counts, kl, distance, pooled, tape })
    }
}
