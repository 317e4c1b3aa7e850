//! Errors in a method's name, constants or options.

use crate::Method;

/// An objective that doesn't exist or makes no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ObjectiveError {
    /// A name that no method has.
    #[error("no method `{name}`; choose one of {}", names(&Method::all().collect::<Vec<_>>()))]
    UnknownMethod {
        /// The name as it was given.
        name: String,
    },
    /// β that isn't a positive number.
    #[error("beta = {0} must be positive")]
    Beta(f64),
    /// α or γ that is negative, infinite or NaN.
    #[error("{name} = {value} must be at least 0")]
    Negative {
        /// `alpha` or `gamma`.
        name: &'static str,
        /// The value.
        value: f64,
    },
    /// An option of other methods.
    #[error("{method} has no {option}; leave it out, or choose one of {}", names(having))]
    NoSuchOption {
        /// The method that was chosen.
        method: Method,
        /// A field of [`Options`](crate::Options).
        option: &'static str,
        /// The methods that have it.
        having: Vec<Method>,
    },
    /// A value that the option can't have with this method.
    #[error("{option} = {value} must be {range} for {method}")]
    OutOfRange {
        /// The method that was chosen.
        method: Method,
        /// A field of [`Options`](crate::Options).
        option: &'static str,
        /// The value.
        value: String,
        /// The values it may have, in words.
        range: &'static str,
    },
}

fn names(methods: &[Method]) -> String {
    methods.iter().map(|m| m.name()).collect::<Vec<_>>().join(", ")
}
