//! Sets of features for alignment that targets a single capability (FPO paper, section 5.3): a search for features that separate
//! two sets of texts, and the files that hold the result.

mod file;
mod search;

pub use file::{Feature, FeatureFile};
pub use search::{FindOptions, Found, TextFeatures, find};
