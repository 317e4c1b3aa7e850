//! Clipping of gradients by their global norm.

use burn::tensor::Tensor;

use crate::sums_of_squares;

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

    /// Of gradients `[n]` each, outside autodiff.
    pub fn of(gradients: Vec<Tensor<1>>, largest: f64) -> Self {
        if gradients.is_empty() {
            return Self(Norm::Host { norm: 0.0, factor: 1.0 });
        }
        #[cfg(feature = "cube")]
        if gradients.iter().all(crate::cube::takes_outside_graph) {
            let norm = sums_of_squares(gradients).sum().sqrt();
            let factor = ((norm.clone() + 1e-6).recip() * largest).clamp_max(1.0);
            return Self(Norm::Device(Box::new([norm, factor])));
        }
        let squares = sums_of_squares(gradients).into_data();
        let norm = squares.iter::<f64>().sum::<f64>().sqrt();
        Self(Norm::Host { norm, factor: (largest / (norm + 1e-6)).min(1.0) })
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
