//! The gradients of one step of alignment, over the parts in which its pairs pass through the model.

use anyhow::Result;
use burn::{module::Module, tensor::Tensor};
use fpo_data::PairBatch;
use fpo_losses::{PerResponse, mean_loss};
use fpo_transformer::LanguageModel;

use crate::aligner::Aligner;
use crate::optim::GradientMap;
use crate::pair_log::Log;

/// The gradients of the mean loss over all pairs of `parts`, and what was measured on the way.
///
/// The result does not depend on how the pairs are cut into parts, whatever the method.
///
/// # Errors
/// A pair that the cache lacks.
pub fn step_gradients(
    aligner: &Aligner,
    policy: &LanguageModel,
    parts: &[PairBatch],
) -> Result<(GradientMap, Log)> {
    match aligner.objective.needs().whole_step && parts.len() > 1 {
        true => in_two_passes(aligner, policy, parts),
        false => in_one_pass(aligner, policy, parts),
    }
}

fn in_one_pass(
    aligner: &Aligner,
    policy: &LanguageModel,
    parts: &[PairBatch],
) -> Result<(GradientMap, Log)> {
    let pairs: usize = parts.iter().map(PairBatch::pairs).sum();
    let (mut gradients, mut log) = (GradientMap::default(), Log::default());
    for part in parts {
        let (mut measured, losses) = aligner.evaluate(policy, part)?;
        // The mean over all pairs of the step, whichever part they are in.
        let loss = losses.losses.sum() / pairs as f64;
        gradients.add_of(&loss, policy, measured.tape.take());
        log.add(&measured);
    }
    Ok((gradients, log))
}

/// For losses of the whole step: a pass without a graph finds every log-probability, the loss of them
/// all gives each its gradient, and a second pass takes these to the weights by the chain rule.
fn in_two_passes(
    aligner: &Aligner,
    policy: &LanguageModel,
    parts: &[PairBatch],
) -> Result<(GradientMap, Log)> {
    let mut log = Log::default();
    let frozen = policy.valid();
    for part in parts {
        log.add(&aligner.measure(&frozen, part)?);
    }
    let mut quantities = log.quantities().map(Tensor::autodiff);
    quantities.log_probs = quantities.log_probs.map(Tensor::require_grad);
    quantities.shared = quantities.shared.map(|x| x.map(Tensor::require_grad));
    let (full, shared) = (quantities.log_probs.clone(), quantities.shared.clone());
    let from_loss = mean_loss(aligner.objective.losses(quantities)).backward();
    let slope = |x: &Tensor<1>| x.grad(&from_loss).unwrap_or_else(|| x.zeros_like().inner());
    let slopes =
        |x: PerResponse| PerResponse { chosen: slope(&x.chosen), rejected: slope(&x.rejected) };
    let (full, shared) = (slopes(full), shared.map(slopes));

    let mut gradients = GradientMap::default();
    let mut start = 0;
    for part in parts {
        let range = start..start + part.pairs();
        start = range.end;
        let product = |log_probs: PerResponse, slopes: &PerResponse| {
            let slopes = slopes.clone().map(|x| x.slice(range.clone()).autodiff());
            (log_probs.chosen * slopes.chosen).sum() + (log_probs.rejected * slopes.rejected).sum()
        };
        let (log_probs, tape) = aligner.log_probs(policy, part);
        let mut sum = product(log_probs.full, &full);
        if let (Some(log_probs), Some(slopes)) = (log_probs.shared, &shared) {
            sum = sum + product(log_probs, slopes);
        }
        gradients.add_of(&sum, policy, tape);
    }
    Ok((gradients, log))
}
