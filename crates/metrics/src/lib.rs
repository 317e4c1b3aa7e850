//! Metrics of preference pairs and sampled answers: computed in one place, shown wherever they belong.
//!
//! [`Pairs`] gathers tensors over the micro-batches of a step or of an evaluation and reads them to the host as
//! [`PairValues`]. A [`Metric`] is a function of one pair (or of one sampled answer) with its name, unit, direction, averaging
//! and [`Places`]. Everything that shows metrics follows [`METRICS`]: the [`log`] of a training step and its [`charts`], what an
//! evaluation [`measure`]s and the [`table`] of it, the [`columns`] of a comparison, per-pair lines and their [`means`].
//!
//! To add a metric, write its file in `src/metrics/` and list its constant in `src/metrics.rs`.
//!
//! # Invariants
//! * Computes no loss and runs no model: losses come from whoever differentiates them.
//! * Keeps no graph and waits for no device until [`Pairs::read`].
//! * A mean over unequal micro-batches is the mean over all their pairs, or over all their tokens.
//! * Means are float64, over values as they were computed.
//! * Reads and writes no file and prints nothing.
//!
//! ```
//! use fpo_metrics::{PairValues, Sides, log, metrics};
//!
//! let pair = |chosen: f64, rejected: f64| PairValues {
//!     loss: 0.5,
//!     log_probs: Sides::new(chosen, rejected),
//!     tokens: Sides::new(4.0, 2.0),
//!     ..PairValues::default()
//! };
//! // Per token: −1 against −2, then −2 against −1.
//! let pairs = [pair(-4.0, -4.0), pair(-8.0, -2.0)];
//! assert_eq!(metrics::accuracy::ACCURACY.mean(&pairs, &[]), Some(0.5));
//! let (loss, rest) = log(&pairs);
//! assert_eq!(loss, 0.5);
//! assert_eq!(rest["logps/chosen"], -6.0);
//! ```

mod answers;
mod held_out;
mod measured;
mod metric;
pub mod metrics;
mod pairs;
mod per_pair;
mod step;

pub use answers::AnswerValues;
pub use held_out::{Criterion, NoCriterion, held_out_log, logged_as};
pub use measured::{Measured, cells, cells_before, columns, measure, table};
pub use metric::{Curve, Evaluation, Metric, Of, Places, Plot, Slot, Sum};
pub use metrics::METRICS;
pub use pairs::{PairValues, Pairs, Sides, TokenStatistics};
pub use per_pair::{NotFinite, means};
pub use step::{chart, charts, courses, log};
