//! What can be wrong with a plan.

use fpo_losses::Method;

/// Why a plan can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Neither a plan nor a file.
    #[error("no plan `{name}`: there are {all}; or name a file")]
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        all: String,
    },
    /// A file that can't be read.
    #[error("plan {path}: can't be read")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, a missing or wrong value.
    #[error("plan {path}: {what}")]
    Malformed {
        /// The file or the name.
        path: String,
        /// The message, with the place.
        what: String,
    },
    /// What a plan must have.
    #[error("plan {path}: {key} {must}")]
    Wrong {
        /// The file or the name.
        path: String,
        /// The key.
        key: String,
        /// What must hold, as in `seeds must not be empty`.
        must: String,
    },
    /// Methods with unequal budgets.
    #[error(
        "plan {path}: {first} has {first_trials} trials and {other} has {other_trials}; every method must have the same number: its \
         learning rates times its constants"
    )]
    Budgets {
        /// The file or the name.
        path: String,
        /// A method.
        first: Method,
        /// Its trials.
        first_trials: usize,
        /// Another one.
        other: Method,
        /// Its trials.
        other_trials: usize,
    },
    /// Settings that can't work, named with the run that has them.
    #[error("plan {path}: {run}: {what}")]
    Settings {
        /// The file or the name.
        path: String,
        /// The run.
        run: String,
        /// What is wrong.
        what: String,
    },
}
