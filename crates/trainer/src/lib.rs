//! Fine-tuning and preference alignment: the step, the loop, the stages of a run, the optimiser.
//!
//! # Invariants
//! * Joins the other crates and computes nothing of its own: losses are in `fpo-losses`, fused operations in `fpo-ops`, the model in
//!   `fpo-transformer`, what an autoencoder sees in `fpo-interp`.
//! * A stage's folder appears whole or not at all, with a fingerprint of everything that it was made from.
//! * A resumed run repeats an uninterrupted one: whatever a step depends on follows from the settings, the step's number and the
//!   checkpoint.
//! * Alignment reads the reference from its cache. A second model is loaded only for methods whose constraint is over the whole
//!   vocabulary, and for measuring.
//! * Prints nothing: it reports to a [`fpo_device::progress::Reporter`] and returns what it found.

pub mod aligner;
pub mod alignment_step;
pub mod cached;
pub mod compare;
pub mod forward;
pub mod reference;
pub mod stages;
pub mod trained;
pub mod training;

/// The optimiser.
pub use fpo_optim as optim;
/// The folder of a run.
pub use fpo_run as run;
