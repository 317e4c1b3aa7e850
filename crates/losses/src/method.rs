//! The objectives by name, and what each of them needs.

use std::{fmt, str::FromStr};

/// The name of a preference objective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Method {
    /// Direct preference optimization; TRL's `sigmoid`.
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
    /// DPO where a label is wrong with probability ε.
    Cdpo,
    /// The same without bias.
    Robust,
    /// SLiC's hinge on DPO's margin.
    Hinge,
    /// Identity preference optimization.
    Ipo,
    /// DPO on averages per token: FPO without its constraint.
    SigmoidNorm,
    /// Efficient exact optimization.
    ExoPair,
    /// The discovered log-ratio-modulated loss.
    Discopop,
    /// DPO with a scale for every pair.
    AdaDpo,
    /// Noise contrastive alignment.
    NcaPair,
    /// Binary classifier optimization.
    BcoPair,
    /// Self-play preference optimization, hard labels.
    SppoHard,
    /// Anchored: chosen up, rejected down.
    ApoZero,
    /// Anchored: both down, the rejected further.
    ApoDown,
    /// Optimal transport of margins.
    Aot,
    /// Optimal transport of log-ratios.
    AotUnpaired,
    /// Odds ratios and likelihood, reference-free.
    Orpo,
    /// Contrastive, reference-free.
    Cpo,
    /// CPO with SLiC's hinge.
    CpoHinge,
    /// Absolute likelihoods, reference-free.
    Asft,
}

impl Method {
    /// The methods of the FPO paper, in the order of its tables.
    pub const PAPER: [Self; 6] =
        [Self::Dpo, Self::Tdpo1, Self::Tdpo2, Self::Simpo, Self::SimpoKl, Self::Fpo];

    /// The paper's methods and those around them.
    pub const ALL: [Self; 25] = [
        Self::Dpo,
        Self::Tdpo1,
        Self::Tdpo2,
        Self::Simpo,
        Self::SimpoKl,
        Self::Fpo,
        Self::Cdpo,
        Self::Robust,
        Self::Hinge,
        Self::Ipo,
        Self::SigmoidNorm,
        Self::ExoPair,
        Self::Discopop,
        Self::AdaDpo,
        Self::NcaPair,
        Self::BcoPair,
        Self::SppoHard,
        Self::ApoZero,
        Self::ApoDown,
        Self::Aot,
        Self::AotUnpaired,
        Self::Orpo,
        Self::Cpo,
        Self::CpoHinge,
        Self::Asft,
    ];

    /// As settings and file names have it: TRL's name with hyphens, where TRL has the method.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dpo => "dpo",
            Self::Tdpo1 => "tdpo1",
            Self::Tdpo2 => "tdpo2",
            Self::Simpo => "simpo",
            Self::SimpoKl => "simpo-kl",
            Self::Fpo => "fpo",
            Self::Cdpo => "cdpo",
            Self::Robust => "robust",
            Self::Hinge => "hinge",
            Self::Ipo => "ipo",
            Self::SigmoidNorm => "sigmoid-norm",
            Self::ExoPair => "exo-pair",
            Self::Discopop => "discopop",
            Self::AdaDpo => "ada-dpo",
            Self::NcaPair => "nca-pair",
            Self::BcoPair => "bco-pair",
            Self::SppoHard => "sppo-hard",
            Self::ApoZero => "apo-zero",
            Self::ApoDown => "apo-down",
            Self::Aot => "aot",
            Self::AotUnpaired => "aot-unpaired",
            Self::Orpo => "orpo",
            Self::Cpo => "cpo",
            Self::CpoHinge => "cpo-hinge",
            Self::Asft => "asft",
        }
    }

    /// The FPO paper's β: 2 for SimPO and its variant, 0.1 for the others.
    pub const fn default_beta(self) -> f64 {
        match self {
            Self::Simpo | Self::SimpoKl => 2.0,
            _ => 0.1,
        }
    }

    /// Whether the method reads anything of a reference model.
    pub const fn has_reference(self) -> bool {
        !matches!(
            self,
            Self::Simpo | Self::SimpoKl | Self::Orpo | Self::Cpo | Self::CpoHinge | Self::Asft
        )
    }

    /// Whether the method compares averages per token rather than sums.
    pub const fn is_length_normalised(self) -> bool {
        matches!(
            self,
            Self::Simpo
                | Self::SimpoKl
                | Self::Fpo
                | Self::Ipo
                | Self::SigmoidNorm
                | Self::Orpo
                | Self::Asft
        )
    }

    /// Whether the losses of a step depend on the order statistics of all its pairs together.
    pub const fn is_transport(self) -> bool {
        matches!(self, Self::Aot | Self::AotUnpaired)
    }
}

impl From<Method> for &'static str {
    fn from(method: Method) -> Self {
        method.name()
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl TryFrom<String> for Method {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Hyphens or, as in TRL, underscores.
impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.replace('_', "-");
        Self::ALL.into_iter().find(|m| m.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|m| m.name()).collect();
            format!("no method `{text}`: there are {}", names.join(", "))
        })
    }
}

/// What an objective reads besides the policy's own log-probabilities: nothing else is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The reference's summed log-probabilities: two numbers a pair, cached offline.
    pub reference_log_probs: bool,
    /// Log-probabilities of as many tokens as both responses of a pair have: `ld_alpha`.
    pub shared_log_probs: bool,
    /// The policy's whole distribution at every position, without gradient: `use_weighting`.
    pub aligned_log_probs: bool,
    /// The reference's whole distribution at every position: the reference model itself.
    pub token_kl: bool,
    /// Pooled sparse features of policy and reference; the reference's are cached offline.
    pub features: bool,
    /// All pairs of a step at once: a part of them has other losses.
    pub whole_step: bool,
}
