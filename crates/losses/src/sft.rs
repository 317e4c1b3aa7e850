//! Supervised fine-tuning on chosen responses.

use burn::tensor::Tensor;

/// Mean negative log-likelihood in nats; `log_probs` `[tokens]` are of response tokens only, without padding.
pub fn sft(log_probs: Tensor<1>) -> Tensor<1> {
    -log_probs.mean()
}
