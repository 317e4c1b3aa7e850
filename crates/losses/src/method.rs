//! Methods by name, and the rows behind them.

use std::{fmt, hash, str::FromStr};

use crate::{
    METHODS, Needs, Objective, ObjectiveError, Options, PairLosses, Quantities, dpo, fpo, simpo,
    tdpo,
};

/// A method's row: all that the rest of the program knows of it.
pub(crate) struct MethodSpec {
    /// In settings and file names: TRL's name with hyphens, if TRL has the method.
    pub name: &'static str,
    /// Other names that are understood, with hyphens.
    pub aliases: &'static [&'static str],
    /// β if none is given.
    pub beta: f64,
    /// The quantities it reads with every choice of options.
    pub needs: Needs,
    /// The options it has, with their defaults; the others aren't set.
    pub options: Options,
    /// Values of its options, where it allows fewer than [`Options`] does in general.
    pub limits: &'static [Limit],
    /// Its losses. The options of the objective are complete: those that the row has are set.
    pub losses: fn(&Objective, &Quantities) -> PairLosses,
}

/// The values that an option may have.
pub(crate) struct Limit {
    /// A field of [`Options`].
    pub option: &'static str,
    /// The values in words, after "must be".
    pub range: &'static str,
    /// Whether the option isn't set, or has one of these values.
    pub holds: fn(&Options) -> bool,
}

impl MethodSpec {
    /// A method on sums of log-probabilities of policy and reference.
    pub const fn on_sums(
        name: &'static str,
        losses: fn(&Objective, &Quantities) -> PairLosses,
    ) -> Self {
        Self {
            name,
            aliases: &[],
            beta: 0.1,
            needs: Needs::REFERENCE,
            options: Options::ON_SUMS,
            limits: &[],
            losses,
        }
    }

    /// A method on averages per token of policy and reference.
    pub const fn on_averages(
        name: &'static str,
        losses: fn(&Objective, &Quantities) -> PairLosses,
    ) -> Self {
        Self { options: Options::WEIGHTED_PAIRS, ..Self::on_sums(name, losses) }
    }

    /// A method on the policy's log-probabilities alone.
    pub const fn reference_free(
        name: &'static str,
        losses: fn(&Objective, &Quantities) -> PairLosses,
    ) -> Self {
        Self { needs: Needs::NOTHING, ..Self::on_averages(name, losses) }
    }
}

/// A preference objective by name: a handle on its row, as cheap as a reference.
#[derive(Clone, Copy, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub struct Method(&'static MethodSpec);

impl Method {
    /// Direct preference optimization.
    pub const DPO: Self = Self(&dpo::DPO);
    /// Token-level DPO, first form.
    pub const TDPO1: Self = Self(&tdpo::TDPO1);
    /// Token-level DPO, second form.
    pub const TDPO2: Self = Self(&tdpo::TDPO2);
    /// Reference-free and length-normalised.
    pub const SIMPO: Self = Self(&simpo::SIMPO);
    /// SimPO with TDPO-2's constraint.
    pub const SIMPO_KL: Self = Self(&simpo::SIMPO_KL);
    /// Feature-level constrained preference optimization.
    pub const FPO: Self = Self(&fpo::FPO);

    /// The methods of the FPO paper, in the order of its tables.
    pub const PAPER: [Self; 6] =
        [Self::DPO, Self::TDPO1, Self::TDPO2, Self::SIMPO, Self::SIMPO_KL, Self::FPO];

    /// The paper's methods, then the others.
    pub fn all() -> impl Iterator<Item = Self> {
        METHODS.iter().map(|spec| Self(spec))
    }

    /// As settings and file names have it: TRL's name with hyphens, if TRL has the method.
    pub const fn name(self) -> &'static str {
        self.0.name
    }

    /// β if none is given: the FPO paper's 2 for SimPO and SimPO+KL, 0.1 for the others.
    pub const fn default_beta(self) -> f64 {
        self.0.beta
    }

    pub(crate) const fn spec(self) -> &'static MethodSpec {
        self.0
    }
}

impl PartialEq for Method {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Method {}

impl hash::Hash for Method {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl From<Method> for &'static str {
    fn from(method: Method) -> Self {
        method.name()
    }
}

impl TryFrom<String> for Method {
    type Error = ObjectiveError;

    fn try_from(text: String) -> Result<Self, ObjectiveError> {
        text.parse()
    }
}

/// A name or an alias, with hyphens or, as in TRL, underscores.
impl FromStr for Method {
    type Err = ObjectiveError;

    fn from_str(text: &str) -> Result<Self, ObjectiveError> {
        let name = text.replace('_', "-");
        Self::all()
            .find(|m| m.name() == name || m.0.aliases.contains(&name.as_str()))
            .ok_or_else(|| ObjectiveError::UnknownMethod { name: text.to_owned() })
    }
}
