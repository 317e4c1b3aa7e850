//! Preference objectives: pure functions of log-probabilities and pooled features.
//!
//! A loss is a function of implicit rewards: the FPO paper's methods are −log σ(u) with
//! u = reward(y_w) − reward(y_l) − γ (its equation 8, arXiv 2411.07618), the family around DPO has other
//! functions of the same rewards. Each is a plain function that returns [`PairLosses`]; [`Objective`] is
//! any of them by name, with its constants.
//!
//! A new loss is a file with its equation and its row, and three lines at the end of this one: its module,
//! its function, its row.
//!
//! # Invariants
//! * Never sees a model, a tokenizer or a file: tensors go in, tensors come out.
//! * A loss is a short function under its equation. The rewards that are logged are the ones the loss uses.
//! * Log-probabilities are sums over response tokens in nats; averages divide by the number of
//!   response tokens, never by a padded length.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use fpo_losses::{PerResponse, feature_distance, fpo, mean_loss};
//!
//! let device = Device::flex();
//! let pair = |chosen: f32, rejected: f32| PerResponse {
//!     chosen: Tensor::from_floats([chosen], &device),
//!     rejected: Tensor::from_floats([rejected], &device),
//! };
//! let policy = Tensor::from_floats([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]], &device);
//! let reference = Tensor::from_floats([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], &device);
//! let distance = PerResponse::split(feature_distance(policy, reference, 2, None));
//! let pairs = fpo(pair(-1.0, -2.0), pair(-1.5, -1.5), distance, 0.1, 0.5, true);
//! // u = 0.1 · ((0.5 + 0.5 · ½) − (−0.5 + 0.5 · 2)) = 0.025
//! assert!((pairs.logits().into_scalar::<f32>() - 0.025).abs() < 1e-6);
//! assert!((mean_loss(pairs).into_scalar::<f32>() - 0.680_725).abs() < 1e-5);
//! ```

mod ada_dpo;
mod aot;
mod dpo;
mod dpo_variants;
mod error;
mod feature_selection;
mod fpo;
mod method;
mod objective;
mod options;
mod pair_losses;
mod per_response;
mod pointwise;
mod quantities;
mod reference_free;
mod sft;
mod simpo;
mod tdpo;
mod token_weights;

pub use ada_dpo::ada_dpo;
pub use aot::{aot, aot_unpaired};
pub use dpo::dpo;
pub use dpo_variants::{cdpo, discopop, exo_pair, hinge, ipo, robust, sigmoid_norm};
pub use error::ObjectiveError;
pub use feature_selection::FeatureSelection;
pub use fpo::{feature_distance, fpo};
pub use method::Method;
pub use objective::Objective;
pub use options::Options;
pub use pair_losses::{PairLosses, mean_loss};
pub use per_response::PerResponse;
pub use pointwise::{apo_down, apo_zero, bco_pair, mean_reward, nca_pair, sppo_hard};
pub use quantities::{Needs, Quantities, QuantityError};
pub use reference_free::{asft, cpo, cpo_hinge, orpo};
pub use sft::sft;
pub use simpo::{simpo, simpo_kl};
pub use tdpo::{tdpo1, tdpo2};
pub use token_weights::{length_desensitised, wpo_weights};

use method::{Limit, MethodSpec};

/// Every method's row, in the order in which methods are listed.
static METHODS: &[&MethodSpec] = &[
    &dpo::DPO,
    &tdpo::TDPO1,
    &tdpo::TDPO2,
    &simpo::SIMPO,
    &simpo::SIMPO_KL,
    &fpo::FPO,
    &dpo_variants::CDPO,
    &dpo_variants::ROBUST,
    &dpo_variants::HINGE,
    &dpo_variants::IPO,
    &dpo_variants::SIGMOID_NORM,
    &dpo_variants::EXO_PAIR,
    &dpo_variants::DISCOPOP,
    &ada_dpo::ADA_DPO,
    &pointwise::NCA_PAIR,
    &pointwise::BCO_PAIR,
    &pointwise::SPPO_HARD,
    &pointwise::APO_ZERO,
    &pointwise::APO_DOWN,
    &aot::AOT,
    &aot::AOT_UNPAIRED,
    &reference_free::ORPO,
    &reference_free::CPO,
    &reference_free::CPO_HINGE,
    &reference_free::ASFT,
];
