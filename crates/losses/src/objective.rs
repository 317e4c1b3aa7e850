//! A method with its constants.

use crate::{
    Method, Needs, ObjectiveError, Options, PairLosses, PerResponse, Quantities,
    length_desensitised, wpo_weights,
};

/// A method with its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// Which function of the rewards is minimised.
    pub method: Method,
    /// β, the scale of the rewards. For ORPO and ASFT it is their λ, the weight of the contrast.
    pub beta: f64,
    /// α, the weight of the constraint (TDPO-2, SimPO+KL, FPO).
    pub alpha: f64,
    /// γ, the target margin (SimPO, SimPO+KL).
    pub gamma: f64,
    /// FPO's stop-gradient on the chosen side; true in the paper.
    pub stop_gradient: bool,
    /// The options that only some methods have.
    pub options: Options,
}

impl Objective {
    /// The paper's constants: α 0.5, γ 0.5, stop-gradient on.
    pub fn paper(method: Method) -> Self {
        Self {
            method,
            beta: method.default_beta(),
            alpha: 0.5,
            gamma: 0.5,
            stop_gradient: true,
            options: Options::NONE,
        }
    }

    /// Checks the constants and the options.
    ///
    /// # Errors
    /// A constant or an option out of range, or an option that the method doesn't have.
    pub fn check(&self) -> Result<(), ObjectiveError> {
        if !(self.beta.is_finite() && self.beta > 0.0) {
            return Err(ObjectiveError::Beta(self.beta));
        }
        for (name, value) in [("alpha", self.alpha), ("gamma", self.gamma)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(ObjectiveError::Negative { name, value });
            }
        }
        self.options.check(self.method)
    }

    /// The quantities that [`Self::losses`] reads.
    pub fn needs(&self) -> Needs {
        let needs = self.method.spec().needs;
        let options = self.options.with_defaults(self.method);
        Needs {
            shared_log_probs: options.ld_alpha.is_some_and(|a| a != 1.0),
            aligned_log_probs: options.use_weighting == Some(true),
            whole_step: needs.whole_step || options.reward_shift == Some(true),
            ..needs
        }
    }

    /// The loss of every pair, and the rewards it is a function of.
    ///
    /// # Panics
    /// If a quantity that [`Self::needs`] names is absent, or an option is one that [`Self::check`]
    /// refuses.
    pub fn losses(&self, q: Quantities) -> PairLosses {
        let complete = Self { options: self.options.with_defaults(self.method), ..*self };
        let mut pairs = (self.method.spec().losses)(&complete, &q);
        if self.needs().aligned_log_probs {
            pairs.losses = pairs.losses * wpo_weights(q.aligned());
        }
        pairs
    }

    /// The summed log-probabilities of policy and reference, with the longer response's tail weighted by
    /// `ld_alpha`.
    pub(crate) fn sums(&self, q: &Quantities) -> (PerResponse, PerResponse) {
        let sums = (q.log_probs.clone(), q.reference());
        match self.options.ld_alpha {
            None | Some(1.0) => sums,
            Some(ld_alpha) => (
                length_desensitised(sums.0, q.shared(), ld_alpha),
                length_desensitised(sums.1, q.reference_shared(), ld_alpha),
            ),
        }
    }

    /// The value of an option that the method's row has.
    pub(crate) fn option<T>(&self, of: impl Fn(&Options) -> Option<T>) -> T {
        of(&self.options)
            .unwrap_or_else(|| panic!("{} reads an option that its row lacks", self.method))
    }
}
