//! Settings of a run, and the recipes they start from.
//!
//! # Invariants
//! * A setting is declared once, in [`Settings`]. Its key in TOML and on the command line is its path in that struct.
//! * Settings resolve as recipe < configuration file < `KEY=VALUE`. An unknown key is an error that names the nearest known one.
//! * Settings that can't work are refused here, before a run reads or writes anything.
//!
//! ```
//! use fpo_config::Settings;
//!
//! let settings = Settings::resolve("tiny", None, &["align.method=dpo".into()])?;
//! assert_eq!(settings.align.objective().beta, 0.1);
//! let refused = Settings::resolve("tiny", None, &["align.metod=dpo".into()]).unwrap_err();
//! assert!(format!("{refused:#}").contains("did you mean `align.method`?"));
//! # Ok::<(), anyhow::Error>(())
//! ```

pub mod recipes;
mod settings;

pub use settings::*;
