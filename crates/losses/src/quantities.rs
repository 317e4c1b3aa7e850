//! What objectives are computed from.

use burn::tensor::Tensor;

use crate::PerResponse;

/// What the trainer computed for a batch, `[pairs]` each.
#[derive(Clone, Debug)]
pub struct Quantities {
    /// The policy's summed log-probabilities of the response tokens.
    pub log_probs: PerResponse,
    /// The number of response tokens.
    pub counts: PerResponse,
    /// The policy's log-probabilities of a response's first n tokens, n being the length of the shorter
    /// response of the pair.
    pub shared: Option<PerResponse>,
    /// The mean over response tokens of log p(token) − log Σ_v p(v)², a constant.
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

/// A number that can't be what it should be.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum QuantityError {
    /// Positive, NaN or infinite.
    #[error(
        "pair {pair}: {whose} log-probability of the {side} response is {value}; it must be finite and at most 0"
    )]
    LogProb {
        /// Position in the batch.
        pair: usize,
        /// `the policy's` or `the reference's`.
        whose: &'static str,
        /// `chosen` or `rejected`.
        side: &'static str,
        /// The value.
        value: f64,
    },
    /// Nothing to average over.
    #[error("pair {pair}: the {side} response has {value} tokens; it must have at least one")]
    Count {
        /// Position in the batch.
        pair: usize,
        /// `chosen` or `rejected`.
        side: &'static str,
        /// The value.
        value: f64,
    },
}

/// Rounding can lift the log-probability of a certain token above 0 by so much per token.
const ROUNDING: f64 = 1e-5;

impl Quantities {
    /// Of log-probabilities and counts alone.
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

    /// Batches one after another. What one of them lacks, all lack.
    ///
    /// # Panics
    /// If there are none.
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

    /// Every column through the same function.
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

    /// Reads the numbers back and finds the first that is impossible: a log-probability that is positive,
    /// NaN or infinite, a response without tokens.
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
}

fn both(values: &PerResponse) -> [(&'static str, Vec<f64>); 2] {
    let read = |x: &Tensor<1>| x.to_data().iter::<f64>().collect();
    [("chosen", read(&values.chosen)), ("rejected", read(&values.rejected))]
}
