//! The inputs of objectives, and which of them an objective needs.

use burn::tensor::Tensor;

use crate::PerResponse;

/// Measurements of a batch of pairs, `[pairs]` each. Log-probabilities are in nats.
#[derive(Clone, Debug)]
pub struct Quantities {
    /// The policy's summed log-probabilities of the response tokens.
    pub log_probs: PerResponse,
    /// The number of response tokens.
    pub counts: PerResponse,
    /// The policy's log-probabilities summed over the first n tokens of each response, n being the length of
    /// the pair's shorter response.
    pub shared: Option<PerResponse>,
    /// The mean over response tokens of log p(token) − log Σ_v p(v)², without gradient.
    pub aligned: Option<PerResponse>,
    /// The reference's summed log-probabilities.
    pub reference: Option<PerResponse>,
    /// The reference's counterpart of `shared`.
    pub reference_shared: Option<PerResponse>,
    /// KL(reference ‖ policy), summed over the response's positions.
    pub kl: Option<PerResponse>,
    /// FPO's feature distance D.
    pub distance: Option<PerResponse>,
}

/// What an objective reads besides the policy's own log-probabilities; nothing else has to be computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The reference's summed log-probabilities: two numbers per pair, cached offline.
    pub reference_log_probs: bool,
    /// Log-probabilities of as many tokens as both responses of a pair have: `ld_alpha`.
    pub shared_log_probs: bool,
    /// The policy's whole distribution at every position, without gradient: `use_weighting`.
    pub aligned_log_probs: bool,
    /// The reference's whole distribution at every position, which takes the reference model itself.
    pub token_kl: bool,
    /// Pooled sparse features of policy and reference; the reference's are cached offline.
    pub features: bool,
    /// All pairs of a step together: micro-batches on their own have other losses.
    pub whole_step: bool,
}

impl Needs {
    /// The policy's log-probabilities suffice.
    pub const NOTHING: Self = Self {
        reference_log_probs: false,
        shared_log_probs: false,
        aligned_log_probs: false,
        token_kl: false,
        features: false,
        whole_step: false,
    };

    /// The reference's summed log-probabilities too.
    pub const REFERENCE: Self = Self { reference_log_probs: true, ..Self::NOTHING };
}

/// A value that no model can have given.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum QuantityError {
    /// A log-probability that is positive, NaN or infinite.
    #[error(
        "pair {pair}: {whose} log-probability of the {side} response is {value}; it must be finite and at most 0"
    )]
    LogProb {
        /// Index of the pair in the batch.
        pair: usize,
        /// `the policy's` or `the reference's`.
        whose: &'static str,
        /// `chosen` or `rejected`.
        side: &'static str,
        /// The value.
        value: f64,
    },
    /// A response without tokens has no average.
    #[error("pair {pair}: the {side} response has {value} tokens; it must have at least one")]
    Count {
        /// Index of the pair in the batch.
        pair: usize,
        /// `chosen` or `rejected`.
        side: &'static str,
        /// The value.
        value: f64,
    },
}

/// How far above 0 rounding can lift the log-probability of a token of probability 1.
const ROUNDING: f64 = 1e-5;

impl Quantities {
    /// The policy's log-probabilities and token counts alone; everything else is absent.
    pub fn new(log_probs: PerResponse, counts: PerResponse) -> Self {
        Self {
            log_probs,
            counts,
            shared: None,
            aligned: None,
            reference: None,
            reference_shared: None,
            kl: None,
            distance: None,
        }
    }

    /// Concatenates batches. A quantity that one of them lacks is absent from the result.
    ///
    /// # Panics
    /// If `parts` is empty.
    pub fn cat(parts: &[Self]) -> Self {
        let all = |f: fn(&Self) -> Option<&PerResponse>| -> Option<PerResponse> {
            let columns: Option<Vec<_>> = parts.iter().map(|p| f(p).cloned()).collect();
            columns.map(PerResponse::cat)
        };
        let some = |f| all(f).expect("every batch has log-probabilities and counts");
        Self {
            log_probs: some(|q| Some(&q.log_probs)),
            counts: some(|q| Some(&q.counts)),
            shared: all(|q| q.shared.as_ref()),
            aligned: all(|q| q.aligned.as_ref()),
            reference: all(|q| q.reference.as_ref()),
            reference_shared: all(|q| q.reference_shared.as_ref()),
            kl: all(|q| q.kl.as_ref()),
            distance: all(|q| q.distance.as_ref()),
        }
    }

    /// Applies `f` to both responses' tensors of every quantity.
    pub fn map(self, f: impl Fn(Tensor<1>) -> Tensor<1>) -> Self {
        Self {
            log_probs: self.log_probs.map(&f),
            counts: self.counts.map(&f),
            shared: self.shared.map(|x| x.map(&f)),
            aligned: self.aligned.map(|x| x.map(&f)),
            reference: self.reference.map(|x| x.map(&f)),
            reference_shared: self.reference_shared.map(|x| x.map(&f)),
            kl: self.kl.map(|x| x.map(&f)),
            distance: self.distance.map(|x| x.map(&f)),
        }
    }

    /// Copies counts and summed log-probabilities to the host and looks for impossible values.
    ///
    /// # Errors
    /// The first log-probability that is positive, NaN or infinite, or the first response without tokens.
    pub fn check(&self) -> Result<(), QuantityError> {
        let counts = both(&self.counts);
        for (side, values) in &counts {
            if let Some(pair) = values.iter().position(|n| n.is_nan() || *n < 1.0) {
                return Err(QuantityError::Count { pair, side, value: values[pair] });
            }
        }
        let log_probs =
            [("the policy's", Some(&self.log_probs)), ("the reference's", self.reference.as_ref())];
        for (whose, values) in log_probs {
            let Some(values) = values else { continue };
            for ((side, values), (_, counts)) in both(values).iter().zip(&counts) {
                let possible = |(x, n): (&f64, &f64)| x.is_finite() && *x <= ROUNDING * n;
                if let Some(pair) = values.iter().zip(counts).position(|x| !possible(x)) {
                    let value = values[pair];
                    return Err(QuantityError::LogProb { pair, whose, side, value });
                }
            }
        }
        Ok(())
    }

    /// The policy's log-probabilities averaged over response tokens.
    pub(crate) fn policy_averages(&self) -> PerResponse {
        self.log_probs.clone() / self.counts.clone()
    }

    /// Log-probabilities of policy and reference averaged over response tokens.
    pub(crate) fn averages(&self) -> (PerResponse, PerResponse) {
        (self.policy_averages(), self.reference() / self.counts.clone())
    }

    /// The chosen responses' negative log-likelihood averaged over tokens, `[pairs]`.
    pub(crate) fn chosen_nll(&self) -> Tensor<1> {
        -self.policy_averages().chosen
    }

    pub(crate) fn reference(&self) -> PerResponse {
        needed(&self.reference, "the reference's log-probabilities")
    }

    pub(crate) fn shared(&self) -> PerResponse {
        needed(&self.shared, "the policy's log-probabilities of shared tokens")
    }

    pub(crate) fn reference_shared(&self) -> PerResponse {
        needed(&self.reference_shared, "the reference's log-probabilities of shared tokens")
    }

    pub(crate) fn aligned(&self) -> PerResponse {
        needed(&self.aligned, "the aligned log-probabilities")
    }

    pub(crate) fn kl(&self) -> PerResponse {
        needed(&self.kl, "the token-level KL")
    }

    pub(crate) fn distance(&self) -> PerResponse {
        needed(&self.distance, "the feature distance")
    }
}

fn needed(quantity: &Option<PerResponse>, what: &str) -> PerResponse {
    quantity.clone().unwrap_or_else(|| panic!("{what} must be computed: see Objective::needs"))
}

fn both(values: &PerResponse) -> [(&'static str, Vec<f64>); 2] {
    let read = |x: &Tensor<1>| x.to_data().iter::<f64>().collect();
    [("chosen", read(&values.chosen)), ("rejected", read(&values.rejected))]
}
