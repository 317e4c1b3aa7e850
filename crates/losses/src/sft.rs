//! Supervised fine-tuning.

use burn::tensor::Tensor;

/// Mean negative log-likelihood of the response tokens; `log_probs` `[tokens]`, padding left out.
pub fn sft(log_probs: Tensor<1>) -> Tensor<1> {
    -log_probs.mean()
}
