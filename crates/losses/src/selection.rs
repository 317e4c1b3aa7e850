//! Which features FPO holds in place (section 5.3).

use serde::{Deserialize, Serialize};

/// How a set of features weighs D.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeatureSelection {
    /// The features of the set have their weights, all others 0: only the set is held in place.
    #[default]
    Only,
    /// The features of the set have weight 0, all others 1: only the set may move freely.
    Except,
}
