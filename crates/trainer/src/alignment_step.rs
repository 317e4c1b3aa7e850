//! The gradients of one step of alignment, over the micro-batches in which its pairs pass through the model.

use anyhow::Result;
use burn::{module::Module, tensor::Tensor};
use fpo_data::PairBatch;
use fpo_losses::{PerResponse, mean_loss};
use fpo_metrics::Pairs;
use fpo_transformer::LanguageModel;

use crate::{aligner::Aligner, optim::StepGradients};

/// The gradients of the mean loss over all pairs, added to those that are there (of a step, none), and what was measured on the way.
/// The logged loss is the differentiated one.
///
/// The result doesn't depend on how the pairs are cut into micro-batches, whatever the method.
///
/// # Errors
/// A pair that the cache lacks.
pub fn step_gradients(
    aligner: &Aligner,
    policy: &LanguageModel,
    micro_batches: &[PairBatch],
    gradients: StepGradients,
) -> Result<(StepGradients, Pairs)> {
    match aligner.objective.needs().whole_step && micro_batches.len() > 1 {
        true => in_two_passes(aligner, policy, micro_batches, gradients),
        false => in_one_pass(aligner, policy, micro_batches, gradients),
    }
}

fn in_one_pass(
    aligner: &Aligner,
    policy: &LanguageModel,
    micro_batches: &[PairBatch],
    mut gradients: StepGradients,
) -> Result<(StepGradients, Pairs)> {
    let pairs: usize = micro_batches.iter().map(PairBatch::pairs).sum();
    let mut measured = Pairs::default();
    for batch in micro_batches {
        let policy = &policy.for_tokens(batch.token_keys());
        let comparison = aligner.compare(policy, batch)?;
        let losses = aligner.objective.losses(comparison.quantities.clone());
        comparison.add_to(&mut measured);
        measured.add_losses(&losses);
        // The mean over all pairs of the step, whichever micro-batch they are in.
        let loss = losses.losses.sum() / pairs as f64;
        gradients.add_of(&loss, policy, comparison.tape);
    }
    Ok((gradients, measured))
}

/// For losses of the whole step: a pass without a graph finds every log-probability, the loss of them all gives each its
/// gradient, and a second pass takes these to the weights by the chain rule.
fn in_two_passes(
    aligner: &Aligner,
    policy: &LanguageModel,
    micro_batches: &[PairBatch],
    mut gradients: StepGradients,
) -> Result<(StepGradients, Pairs)> {
    let mut measured = Pairs::default();
    let frozen = policy.valid();
    for batch in micro_batches {
        let comparison = aligner.compare(&frozen.for_tokens(batch.token_keys()), batch)?;
        comparison.add_to(&mut measured);
    }
    let mut quantities = measured.quantities().map(Tensor::autodiff);
    quantities.log_probs = quantities.log_probs.map(Tensor::require_grad);
    quantities.shared = quantities.shared.map(|x| x.map(Tensor::require_grad));
    let (full, shared) = (quantities.log_probs.clone(), quantities.shared.clone());
    let losses = aligner.objective.losses(quantities);
    measured.add_losses(&losses);
    let from_loss = mean_loss(losses).backward();
    let slope = |x: &Tensor<1>| x.grad(&from_loss).unwrap_or_else(|| x.zeros_like().inner());
    let slopes =
        |x: PerResponse| PerResponse { chosen: slope(&x.chosen), rejected: slope(&x.rejected) };
    let (full, shared) = (slopes(full), shared.map(slopes));

    let mut start = 0;
    for batch in micro_batches {
        let range = start..start + batch.pairs();
        start = range.end;
        let product = |log_probs: PerResponse, slopes: &PerResponse| {
            let slopes = slopes.clone().map(|x| x.slice(range.clone()).autodiff());
            (log_probs.chosen * slopes.chosen).sum() + (log_probs.rejected * slopes.rejected).sum()
        };
        let policy = &policy.for_tokens(batch.token_keys());
        let (log_probs, tape) = aligner.log_probs(policy, batch);
        let mut sum = product(log_probs.full, &full);
        if let (Some(log_probs), Some(slopes)) = (log_probs.shared, &shared) {
            sum = sum + product(log_probs, slopes);
        }
        gradients.add_of(&sum, policy, tape);
    }
    Ok((gradients, measured))
}
