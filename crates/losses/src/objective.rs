//! A method with its constants, and the dispatch to its function.

use burn::tensor::Tensor;

use crate::{
    Method, Needs, Options, PairLosses, PerResponse, Quantities, ada_dpo, aot, aot_unpaired,
    apo_down, apo_zero, asft, bco_pair, cdpo, cpo, cpo_hinge, discopop, dpo, exo_pair, fpo, hinge,
    ipo, length_desensitised, mean_reward, nca_pair, orpo, robust, sigmoid_norm, simpo, simpo_kl,
    sppo_hard, tdpo1, tdpo2, wpo_weights,
};

/// A method with its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// Which one.
    pub method: Method,
    /// β, the scale of the rewards; the weight of the contrast in ORPO and ASFT, their λ.
    pub beta: f64,
    /// α, the weight of the constraint (TDPO-2, SimPO+KL, FPO).
    pub alpha: f64,
    /// γ, the margin asked for (SimPO, SimPO+KL).
    pub gamma: f64,
    /// FPO's stop-gradient on the chosen side; true in the paper.
    pub stop_gradient: bool,
    /// What only some methods have.
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
            options: Options::default(),
        }
    }

    /// Constants that make no sense, and options that the method lacks, are refused with a sentence.
    pub fn check(&self) -> Result<(), String> {
        if !(self.beta.is_finite() && self.beta > 0.0) {
            return Err(format!("beta = {} must be positive", self.beta));
        }
        for (name, value) in [("alpha", self.alpha), ("gamma", self.gamma)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(format!("{name} = {value} must not be negative"));
            }
        }
        self.options.check(self.method)
    }

    /// What has to be computed, so that nothing else is.
    pub fn needs(&self) -> Needs {
        let method = self.method;
        Needs {
            reference_log_probs: method.has_reference(),
            shared_log_probs: self.options.ld_alpha.is_some(),
            aligned_log_probs: self.options.use_weighting == Some(true),
            token_kl: matches!(method, Method::Tdpo1 | Method::Tdpo2 | Method::SimpoKl),
            features: method == Method::Fpo,
            whole_step: method.is_transport() || self.shifts_rewards(),
        }
    }

    fn shifts_rewards(&self) -> bool {
        self.method == Method::BcoPair && self.options.reward_shift != Some(false)
    }

    /// The loss of every pair, and the rewards that it is made of.
    ///
    /// # Panics
    /// If a quantity that [`Self::needs`] names is absent, or an option is out of range, which
    /// [`Self::check`] tells beforehand.
    pub fn losses(&self, q: Quantities) -> PairLosses {
        let aligned = q.aligned.clone();
        let mut result = self.unweighted(q);
        if self.needs().aligned_log_probs {
            let aligned = self.need(aligned, "the aligned log-probabilities");
            result.losses = result.losses * wpo_weights(aligned);
        }
        result
    }

    fn unweighted(&self, q: Quantities) -> PairLosses {
        let Self { method, beta, alpha, gamma, stop_gradient, options } = *self;
        let (p, n) = (q.log_probs, q.counts);
        let average = || p.clone() / n.clone();
        let nll = || -average().chosen;
        let reference = || self.need(q.reference.clone(), "the reference's log-probabilities");
        let average_reference = || reference() / n.clone();
        let kl = || self.need(q.kl.clone(), "the token-level KL");
        let distance = || self.need(q.distance.clone(), "the feature distance");
        let smoothing = options.label_smoothing(method);
        let nll_weight = options.nll_weight(method);
        // Both models' sums, weighed by ld_alpha where it is given.
        let sums = || match options.ld_alpha {
            None => (p.clone(), reference()),
            Some(ld_alpha) => {
                let shared = self.need(q.shared.clone(), "the shared log-probabilities");
                let of_reference =
                    self.need(q.reference_shared.clone(), "the reference's shared ones");
                (
                    length_desensitised(p.clone(), shared, ld_alpha),
                    length_desensitised(reference(), of_reference, ld_alpha),
                )
            }
        };
        let with_sums = |loss: &dyn Fn(PerResponse, PerResponse) -> PairLosses| {
            let (policy, reference) = sums();
            loss(policy, reference)
        };
        match method {
            Method::Dpo => with_sums(&|p, r| dpo(p, r, beta).into()),
            Method::Tdpo1 => tdpo1(p.clone(), reference(), kl(), beta).into(),
            Method::Tdpo2 => tdpo2(p.clone(), reference(), kl(), beta, alpha).into(),
            Method::Simpo => {
                PairLosses::from(simpo(average(), beta, gamma)).plus_nll(nll(), nll_weight)
            }
            Method::SimpoKl => simpo_kl(average(), kl(), beta, gamma, alpha).into(),
            Method::Fpo => {
                fpo(average(), average_reference(), distance(), beta, alpha, stop_gradient).into()
            }
            Method::Cdpo => with_sums(&|p, r| cdpo(p, r, beta, smoothing)),
            Method::Robust => with_sums(&|p, r| robust(p, r, beta, smoothing)),
            Method::Hinge => with_sums(&|p, r| hinge(p, r, beta)),
            Method::Ipo => ipo(average(), average_reference(), beta),
            Method::SigmoidNorm => sigmoid_norm(average(), average_reference(), beta).into(),
            Method::ExoPair => with_sums(&|p, r| exo_pair(p, r, beta, smoothing)),
            Method::Discopop => with_sums(&|p, r| discopop(p, r, beta, options.discopop_tau())),
            Method::AdaDpo => {
                with_sums(&|p, r| ada_dpo(p, r, beta, options.ada_rho(), options.ada_tau()))
            }
            Method::NcaPair => with_sums(&|p, r| nca_pair(p, r, beta)),
            Method::BcoPair => with_sums(&|p, r| {
                let rewards = dpo(p.clone(), r.clone(), beta).rewards;
                let delta = match self.shifts_rewards() {
                    true => mean_reward(&rewards),
                    false => rewards.chosen.zeros_like().mean(),
                };
                bco_pair(p, r, beta, delta)
            }),
            Method::SppoHard => with_sums(&|p, r| sppo_hard(p, r, beta)),
            Method::ApoZero => with_sums(&|p, r| apo_zero(p, r, beta)),
            Method::ApoDown => with_sums(&|p, r| apo_down(p, r, beta)),
            Method::Aot => with_sums(&|p, r| aot(p, r, beta, smoothing)),
            Method::AotUnpaired => with_sums(&|p, r| aot_unpaired(p, r, beta, smoothing)),
            Method::Orpo => orpo(average(), nll(), beta),
            Method::Cpo => cpo(p.clone(), nll(), beta, smoothing, nll_weight),
            Method::CpoHinge => cpo_hinge(p.clone(), nll(), beta, nll_weight),
            Method::Asft => asft(average(), nll(), beta),
        }
    }

    fn need(&self, quantity: Option<PerResponse>, what: &str) -> PerResponse {
        quantity.unwrap_or_else(|| panic!("{} needs {what}", self.method))
    }
}

/// Mean over pairs, the number that training minimises.
pub fn mean_loss(pairs: impl Into<PairLosses>) -> Tensor<1> {
    let losses = pairs.into().losses;
    // Not `mean`, whose gradient Burn scales in float32.
    let [pairs] = losses.dims();
    losses.sum() / pairs as f64
}
