//! The language-model head: from final hidden states to distributions over the vocabulary.

use burn::tensor::{Int, Tensor};
use fpo_ops::{Rows, TokenStatistics, at_least_f32, profile};

use crate::Precision;

/// Unembedding and soft-cap together: `logits = softcap(hidden · Wᵀ)`, `p = softmax(logits)`. Everything but [`Self::logits`] is
/// computed without all logits in memory.
///
/// A head shares its model's parameters: gradients reach them, unless it is made [constant](Self::without_autodiff).
#[derive(Clone, Debug)]
pub struct Head {
    rows: Rows,
    softcap: Option<f64>,
    precision: Precision,
}

impl Head {
    pub(crate) fn new(rows: Rows, softcap: Option<f64>, precision: Precision) -> Self {
        Self { rows, softcap, precision }
    }

    /// W, the unembedding. `[vocab_size, d_model]`
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// The same head outside any graph.
    pub fn without_autodiff(self) -> Self {
        Self { rows: self.rows.without_autodiff(), ..self }
    }

    /// The logits themselves, in float32 at least: `hidden` `[n, d_model]` → `[n, vocab_size]`. For a few rows, as in
    /// generation: with a vocabulary of 256,000, a thousand rows take a gigabyte.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let _head = profile::part("head");
        let logits =
            self.rows.columns(|rows| at_least_f32(self.precision.linear(hidden.clone(), rows)));
        match self.softcap {
            Some(cap) => fpo_ops::softcap(logits, cap),
            None => logits,
        }
    }

    /// `log p(target)` of each row, in nats: `hidden` `[n, d_model]` and `targets` `[n]` → `[n]`.
    pub fn log_probs(&self, hidden: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
        let _head = profile::part("head");
        fpo_ops::linear_log_probs(hidden, self.rows.clone(), targets, self.softcap)
    }

    /// [`Self::log_probs`] of the distribution at temperature `1 / scale`: `log softmax(scale · logits)` at the target.
    pub fn scaled_log_probs(
        &self,
        hidden: Tensor<2>,
        targets: Tensor<1, Int>,
        scale: f64,
    ) -> Tensor<1> {
        let _head = profile::part("head");
        // s · cap · tanh(z / cap) is what the soft-cap s · cap makes of s · z.
        let softcap = self.softcap.map(|cap| cap * scale);
        fpo_ops::linear_log_probs(hidden * scale, self.rows.clone(), targets, softcap)
    }

    /// Log-probability of the target, entropy and most probable token of each row; constants. Shapes as in
    /// [`Self::log_probs`].
    pub fn token_statistics(&self, hidden: Tensor<2>, targets: Tensor<1, Int>) -> TokenStatistics {
        let _head = profile::part("head");
        let head = self.clone().without_autodiff();
        let (hidden, targets) = (hidden.without_autodiff(), targets.without_autodiff());
        fpo_ops::linear_token_statistics(hidden, head.rows, targets, head.softcap)
    }

    /// `KL(reference ‖ self)` of each row in nats, `[n]`, where the two heads are given the hidden states `reference_hidden`
    /// and `hidden`, `[n, d_model]` each. No gradient reaches the reference.
    ///
    /// # Panics
    /// If the two heads differ in their soft-caps or vocabularies.
    pub fn kl(
        &self,
        hidden: Tensor<2>,
        reference: &Self,
        reference_hidden: Tensor<2>,
    ) -> Tensor<1> {
        let _head = profile::part("head");
        assert_eq!(self.softcap, reference.softcap, "the soft-caps of model and reference differ");
        let (rows, reference_rows) = (self.rows.clone(), reference.rows.clone());
        fpo_ops::linear_kl(reference_hidden, reference_rows, hidden, rows, self.softcap)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, Tolerance, activation::log_softmax};

    use super::*;

    fn close(found: Tensor<1>, expected: Tensor<1>) {
        found.to_data().assert_approx_eq::<f32>(&expected.to_data(), Tolerance::absolute(1e-5));
    }

    /// Oracle: the logits themselves.
    #[test]
    fn everything_agrees_with_the_logits() {
        let device = Device::flex();
        let random = |shape| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.5), &device);
        for softcap in [None, Some(2.0)] {
            let head = |rows: Tensor<2>| Head::new(rows.into(), softcap, Precision::Float32);
            let (policy, reference) = (head(random([11, 4])), head(random([11, 4])));
            let (hidden, reference_hidden) = (random([3, 4]), random([3, 4]));
            let targets = Tensor::<1, Int>::from_ints([10, 0, 5], &device);
            let logits = policy.logits(hidden.clone());
            let at_targets = |log_probs: Tensor<2>| {
                log_probs.gather(1, targets.clone().unsqueeze_dim(1)).squeeze_dim::<1>(1)
            };
            let log_probs = log_softmax(logits.clone(), 1);

            let expected = at_targets(log_probs.clone());
            close(policy.log_probs(hidden.clone(), targets.clone()), expected.clone());
            for scale in [0.5, 1.0, 2.0] {
                close(
                    policy.scaled_log_probs(hidden.clone(), targets.clone(), scale),
                    at_targets(log_softmax(logits.clone() * scale, 1)),
                );
            }
            let statistics = policy.token_statistics(hidden.clone(), targets.clone());
            close(statistics.log_probs, expected);
            let entropy = (log_probs.clone().exp() * log_probs.clone()).sum_dim(1).neg();
            close(statistics.entropy, entropy.squeeze_dim(1));

            let reference_log_probs = log_softmax(reference.logits(reference_hidden.clone()), 1);
            let kl = reference_log_probs.clone().exp() * (reference_log_probs - log_probs);
            close(policy.kl(hidden, &reference, reference_hidden), kl.sum_dim(1).squeeze_dim(1));
        }
    }
}
