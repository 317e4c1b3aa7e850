//! Recipes, stages, the training loop, checkpoints, metrics and the report; the binary `fpo`.
//!
//! # Invariants
//! * The only crate that knows all the others. Mathematics lives in them, not here.
//! * A stage's folder appears whole or not at all, with a fingerprint of all that it was made from.
//! * A resumed run repeats an uninterrupted one: whatever a step depends on follows from the settings,
//!   the step's number and the checkpoint.
//! * Alignment reads the reference from its cache. A second model is loaded only for methods whose
//!   constraint is over the whole vocabulary, and for measuring.
//!
//! ```
//! use fpo_trainer::settings::Settings;
//!
//! let settings = Settings::resolve("tiny", None, &["align.method=dpo".into()])?;
//! assert_eq!(settings.align.objective().beta, 0.1);
//! let refused = Settings::resolve("tiny", None, &["align.metod=dpo".into()]).unwrap_err();
//! assert!(format!("{refused:#}").contains("did you mean `align.method`?"));
//! # Ok::<(), anyhow::Error>(())
//! ```

pub mod activations;
pub mod aligner;
pub mod alignment_step;
pub mod autoencoder;
pub mod bench;
pub mod cached;
pub mod commands;
pub mod compare;
pub mod dashboard;
pub mod device;
pub mod features;
pub mod forward;
pub mod optim;
pub mod pair_log;
pub mod plan;
pub mod progress;
pub mod recipes;
pub mod reference_pass;
pub mod report;
pub mod run;
pub mod sae_evaluation;
pub mod sae_training;
pub mod settings;
pub mod stages;
pub mod trained;
pub mod training;
