//! Which features FPO's constraint holds in place (section 5.3).

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

/// How a set of features sets the weights of [`feature_distance`](crate::feature_distance).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeatureSelection {
    /// The features of the set have their own weights, all others 0: only the set is held in place.
    #[default]
    Only,
    /// The features of the set have weight 0, all others 1: only the set may move freely.
    Except,
}

impl FeatureSelection {
    /// The w_i of equation 10, `[d_sae]` in float32, from the indices and weights of a set of features.
    ///
    /// # Panics
    /// If an index isn't below `d_sae`.
    pub fn weights(
        self,
        features: impl IntoIterator<Item = (usize, f64)>,
        d_sae: usize,
        device: &Device,
    ) -> Tensor<1> {
        let mut weights = match self {
            Self::Only => vec![0.0; d_sae],
            Self::Except => vec![1.0; d_sae],
        };
        for (index, weight) in features {
            weights[index] = match self {
                Self::Only => weight as f32,
                Self::Except => 0.0,
            };
        }
        Tensor::from_data(TensorData::new(weights, [d_sae]), device)
    }
}
