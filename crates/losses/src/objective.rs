//! The methods by name: their settings, what they need, and the dispatch to their functions.

use std::{fmt, str::FromStr};

use burn::tensor::Tensor;

use crate::{PerResponse, Preference, dpo, fpo, simpo, simpo_kl, tdpo1, tdpo2};

/// The name of a preference objective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Direct preference optimization.
    Dpo,
    /// Token-level DPO, first form.
    Tdpo1,
    /// Token-level DPO, second form.
    Tdpo2,
    /// Reference-free, length-normalised.
    Simpo,
    /// SimPO with TDPO-2's constraint.
    SimpoKl,
    /// Feature-level constrained.
    Fpo,
}

impl Method {
    /// In the order of the paper's tables.
    pub const ALL: [Self; 6] =
        [Self::Dpo, Self::Tdpo1, Self::Tdpo2, Self::Simpo, Self::SimpoKl, Self::Fpo];

    /// As settings and file names have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dpo => "dpo",
            Self::Tdpo1 => "tdpo1",
            Self::Tdpo2 => "tdpo2",
            Self::Simpo => "simpo",
            Self::SimpoKl => "simpo-kl",
            Self::Fpo => "fpo",
        }
    }

    /// The paper's β: 2 for the reference-free methods, 0.1 for the others.
    pub const fn default_beta(self) -> f64 {
        match self {
            Self::Simpo | Self::SimpoKl => 2.0,
            _ => 0.1,
        }
    }

    /// What has to be computed for this method, so that nothing else is.
    pub const fn needs(self) -> Needs {
        Needs {
            reference_log_probs: !matches!(self, Self::Simpo | Self::SimpoKl),
            token_kl: matches!(self, Self::Tdpo1 | Self::Tdpo2 | Self::SimpoKl),
            features: matches!(self, Self::Fpo),
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|m| m.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|m| m.name()).collect();
            format!("no method `{text}`: there are {}", names.join(", "))
        })
    }
}

/// What a method reads besides the policy's own log-probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The reference's summed log-probabilities: two numbers a pair, cached offline.
    pub reference_log_probs: bool,
    /// The reference's whole distribution at every position: the reference model itself.
    pub token_kl: bool,
    /// Pooled sparse features of policy and reference; the reference's are cached offline.
    pub features: bool,
}

/// A method with its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// Which one.
    pub method: Method,
    /// β, the scale of the rewards.
    pub beta: f64,
    /// α, the weight of the constraint (TDPO-2, SimPO+KL, FPO).
    pub alpha: f64,
    /// γ, the margin asked for (SimPO, SimPO+KL).
    pub gamma: f64,
    /// FPO's stop-gradient on the chosen side; true in the paper.
    pub stop_gradient: bool,
}

impl Objective {
    /// The paper's constants: α 0.5, γ 0.5, stop-gradient on.
    pub const fn paper(method: Method) -> Self {
        Self { method, beta: method.default_beta(), alpha: 0.5, gamma: 0.5, stop_gradient: true }
    }

    /// Constants that make no sense are refused with a sentence.
    pub fn check(&self) -> Result<(), String> {
        if !(self.beta.is_finite() && self.beta > 0.0) {
            return Err(format!("beta = {} must be positive", self.beta));
        }
        for (name, value) in [("alpha", self.alpha), ("gamma", self.gamma)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(format!("{name} = {value} must not be negative"));
            }
        }
        Ok(())
    }

    /// The method's rewards.
    ///
    /// # Panics
    /// If a quantity that [`Method::needs`] names is absent.
    pub fn preference(&self, q: Quantities) -> Preference {
        let Self { beta, alpha, gamma, stop_gradient, .. } = *self;
        let need = |x: Option<PerResponse>, what: &str| {
            x.unwrap_or_else(|| panic!("{} needs {what}", self.method))
        };
        let reference = |x| need(x, "the reference's log-probabilities");
        let kl = |x| need(x, "the token-level KL");
        match self.method {
            Method::Dpo => dpo(q.log_probs, reference(q.reference), beta),
            Method::Tdpo1 => tdpo1(q.log_probs, reference(q.reference), kl(q.kl), beta),
            Method::Tdpo2 => tdpo2(q.log_probs, reference(q.reference), kl(q.kl), beta, alpha),
            Method::Simpo => simpo(q.log_probs / q.counts, beta, gamma),
            Method::SimpoKl => simpo_kl(q.log_probs / q.counts, kl(q.kl), beta, gamma, alpha),
            Method::Fpo => fpo(
                q.log_probs / q.counts.clone(),
                reference(q.reference) / q.counts,
                need(q.distance, "the feature distance"),
                beta,
                alpha,
                stop_gradient,
            ),
        }
    }
}

/// What the trainer computed for a batch.
#[derive(Clone, Debug)]
pub struct Quantities {
    /// The policy's summed log-probabilities of the response tokens.
    pub log_probs: PerResponse,
    /// The number of response tokens.
    pub counts: PerResponse,
    /// The reference's summed log-probabilities.
    pub reference: Option<PerResponse>,
    /// KL(reference ‖ policy), summed over the response's positions.
    pub kl: Option<PerResponse>,
    /// FPO's feature distance D.
    pub distance: Option<PerResponse>,
}

/// Mean over pairs, the number that training minimises.
pub fn mean_loss(preference: &Preference) -> Tensor<1> {
    preference.losses().mean()
}
