//! The options that only some methods have.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, MapAccess, Visitor},
};

use crate::{Limit, Method, ObjectiveError};

/// Each option once: its doc comment, name and type, the values it may have, and those in words.
macro_rules! options {
    ($($(#[$doc:meta])* $name:ident: $type:ty, |$value:pat_param| $holds:expr, $range:literal;)*) => {
        /// The options that only some methods have. One that isn't set defaults to the method's own value.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
        pub struct Options {
            $($(#[$doc])* pub $name: Option<$type>,)*
        }

        impl Options {
            /// No option is set.
            pub const NONE: Self = Self { $($name: None,)* };

            /// The values of each option that make sense for some method.
            const LIMITS: &[Limit] = &[$(Limit {
                option: stringify!($name),
                range: $range,
                holds: |options| options.$name.is_none_or(|$value| $holds),
            },)*];

            /// These options, and those of `defaults` that aren't set here.
            fn or(self, defaults: Self) -> Self {
                Self { $($name: self.$name.or(defaults.$name),)* }
            }

            /// These options without those that aren't set in `kept`.
            fn only(self, kept: Self) -> Self {
                Self { $($name: self.$name.filter(|_| kept.$name.is_some()),)* }
            }

            /// Every option's name and, if it is set, its value.
            fn values(&self) -> Vec<(&'static str, Option<String>)> {
                vec![$((stringify!($name), self.$name.map(|value| format!("{value:?}"))),)*]
            }
        }

        /// As derived, but a value of the wrong type is an error that names its option even where these
        /// options are flattened into other settings.
        impl<'de> Deserialize<'de> for Options {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                const NAMES: &[&str] = &[$(stringify!($name)),*];
                struct Fields;
                impl<'de> Visitor<'de> for Fields {
                    type Value = Options;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("the options of a method")
                    }

                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Options, A::Error> {
                        let mut options = Options::NONE;
                        while let Some(key) = map.next_key::<String>()? {
                            let named = |e: A::Error| {
                                A::Error::custom(format!("{key}: {}", e.to_string().trim_end()))
                            };
                            match key.as_str() {
                                $(stringify!($name) => {
                                    options.$name = map.next_value().map_err(named)?;
                                })*
                                _ => return Err(A::Error::unknown_field(&key, NAMES)),
                            }
                        }
                        Ok(options)
                    }
                }
                deserializer.deserialize_struct("Options", NAMES, Fields)
            }
        }
    };
}

options! {
    /// ε, the share of labels assumed to be wrong.
    label_smoothing: f64, |e| (0.0..=0.5).contains(&e), "from 0 to ½";
    /// τ, the temperature of DiscoPOP's modulation.
    discopop_tau: f64, |t| t > 0.0 && t <= 1.0, "above 0 and at most 1";
    /// Weight of the chosen response's negative log-likelihood, averaged over its tokens.
    nll_weight: f64, |w| w >= 0.0 && w.is_finite(), "at least 0";
    /// Whether BCO's δ is the mean reward of the step, as in the paper, or 0, as in TRL.
    reward_shift: bool, |_| true, "true or false";
    /// ρ₀ of Ada-DPO.
    ada_rho: f64, |r| r > 0.0 && r < std::f64::consts::LN_2, "above 0 and below log 2";
    /// The smallest and the largest scale of Ada-DPO.
    ada_tau: [f64; 2], |[least, largest]| 0.0 < least && least <= largest && largest.is_finite(),
        "two values above 0 in ascending order";
    /// Weight of the tokens by which a response is longer than the other response of its pair (LD-DPO).
    ld_alpha: f64, |a| (0.0..=1.0).contains(&a), "from 0 to 1";
    /// Weights each pair by the policy's probability of its responses (WPO).
    use_weighting: bool, |_| true, "true or false";
}

impl Options {
    /// Those of every method whose losses belong to single pairs.
    pub(crate) const WEIGHTED_PAIRS: Self = Self { use_weighting: Some(false), ..Self::NONE };

    /// Those of a method on sums of log-probabilities; an average has no longer tail to weight.
    pub(crate) const ON_SUMS: Self = Self { ld_alpha: Some(1.0), ..Self::WEIGHTED_PAIRS };

    /// Checks that the method has every option that is set, with a value that makes sense.
    ///
    /// # Errors
    /// An option that the method doesn't have, or a value out of range.
    pub fn check(&self, method: Method) -> Result<(), ObjectiveError> {
        let has = |method: Method, option| {
            let options = method.spec().options.values();
            options.iter().any(|(name, value)| *name == option && value.is_some())
        };
        for (option, value) in self.values() {
            let Some(value) = value else { continue };
            if !has(method, option) {
                let having = Method::all().filter(|m| has(*m, option)).collect();
                return Err(ObjectiveError::NoSuchOption { method, option, having });
            }
            let mut limits = method.spec().limits.iter().chain(Self::LIMITS);
            if let Some(limit) = limits.find(|l| l.option == option && !(l.holds)(self)) {
                let range = limit.range;
                return Err(ObjectiveError::OutOfRange { method, option, value, range });
            }
        }
        Ok(())
    }

    /// The same options without those that `method` doesn't have.
    pub fn for_method(self, method: Method) -> Self {
        self.only(method.spec().options)
    }

    /// The same options, and `method`'s defaults for those that aren't set.
    pub(crate) fn with_defaults(self, method: Method) -> Self {
        self.or(method.spec().options)
    }
}
