//! Features by what they say: which of them separate two sets of texts, and files of such sets, by which
//! alignment controls single capabilities (section 5.3 of the FPO paper).

mod file;
mod search;

pub use file::{Feature, FeatureFile};
pub use search::{FindOptions, Found, TextFeatures, find};
