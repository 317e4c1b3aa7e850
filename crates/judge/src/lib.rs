//! Compares two models' answers by a judge model, with the statistics of AlpacaEval and Arena-Hard.
//!
//! # Invariants
//! * A verdict is on disk before anything knows of it, and is never asked for twice ([`fpo_files::journal`]).
//! * A reply that is no verdict is recorded as such. Nothing is guessed ([`verdict`]).
//! * Both orders of every pair are asked; a question counts when both have a verdict ([`summary`]).
//! * The endpoint's key is in no file and in no message ([`endpoint`]).
//! * Statistics follow the definitions of the peers that they are named after, converged further ([`stats`]).

pub mod annotations;
pub mod answers;
pub mod endpoint;
mod error;
pub mod estimate;
pub mod judgments;
pub mod prompt;
mod rows;
pub mod session;
pub mod stats;
pub mod summary;
pub mod verdict;

pub use answers::{Answers, Missing, Pair, Questions, pairs};
pub use endpoint::{Endpoint, EndpointError, Key, Patience, Usage};
pub use error::Error;
pub use fpo_files::journal::{Journal, JournalError};
pub use prompt::{Template, Wording};
pub use session::{Control, Judge};
pub use stats::gamed::Gamed;
pub use summary::Summary;
pub use verdict::{VERDICTS, Verdict};
