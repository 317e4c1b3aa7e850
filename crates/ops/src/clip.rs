//! Clipping of gradients by their global norm.

use burn::tensor::Tensor;

#[cfg(feature = "cube")]
use crate::joined;

/// The Euclidean norm of all gradients together, and the factor `min(1, largest / (norm + 1e-6))` of
/// `torch.nn.utils.clip_grad_norm_`. On GPUs both stay on the device until they are asked for, so that a step doesn't wait.
#[derive(Clone, Debug)]
pub struct Clip(Norm);

#[derive(Clone, Debug)]
enum Norm {
    Host {
        norm: f64,
        factor: f64,
    },
    /// Norm and factor, `[1]` each.
    #[cfg(feature = "cube")]
    Device(Box<[Tensor<1>; 2]>),
}

impl Clip {
    /// Changes nothing.
    pub const NONE: Self = Self(Norm::Host { norm: f64::NAN, factor: 1.0 });

    /// Of all gradients, given their [sums of squares](crate::sums_of_squares), `[pieces]` each. Without a largest norm, the factor
    /// is 1.
    pub fn of(sums: Vec<Tensor<1>>, largest: Option<f64>) -> Self {
        #[cfg(feature = "cube")]
        if !sums.is_empty() && sums.iter().all(crate::cube::takes_outside_graph) {
            let norm = joined(sums, 0).sum().sqrt();
            let factor = match largest {
                Some(largest) => ((norm.clone() + 1e-6).recip() * largest).clamp_max(1.0),
                None => norm.ones_like(),
            };
            return Self(Norm::Device(Box::new([norm, factor])));
        }
        let squares = sums.into_iter().map(|sums| sums.into_data().iter::<f64>().sum::<f64>());
        let norm = squares.sum::<f64>().sqrt();
        let factor = largest.map_or(1.0, |largest| (largest / (norm + 1e-6)).min(1.0));
        Self(Norm::Host { norm, factor })
    }

    /// The norm; on a GPU this waits for the device.
    pub fn norm(&self) -> f64 {
        match &self.0 {
            Norm::Host { norm, .. } => *norm,
            #[cfg(feature = "cube")]
            Norm::Device(both) => both[0].clone().into_scalar(),
        }
    }

    /// The factor; on a GPU this waits for the device.
    pub fn factor(&self) -> f64 {
        match &self.0 {
            Norm::Host { factor, .. } => *factor,
            #[cfg(feature = "cube")]
            Norm::Device(both) => both[1].clone().into_scalar(),
        }
    }

    /// The factor if it is on the device, `[1]`.
    #[cfg(feature = "cube")]
    pub(crate) fn on_device(&self) -> Option<&Tensor<1>> {
        match &self.0 {
            Norm::Host { .. } => None,
            Norm::Device(both) => Some(&both[1]),
        }
    }
}
