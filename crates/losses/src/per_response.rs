//! One value for each response of each pair.

use std::ops::{Add, Div, Mul, Sub};

use burn::tensor::Tensor;

/// One quantity, such as a log-probability or a divergence, of both responses of every pair, `[pairs]` each.
#[derive(Clone, Debug)]
pub struct PerResponse {
    /// Values of the preferred responses, y_w in the equations.
    pub chosen: Tensor<1>,
    /// Values of the other responses, y_l in the equations.
    pub rejected: Tensor<1>,
}

impl PerResponse {
    /// Splits `[2 · pairs]` values laid out as batches are: all chosen responses, then all rejected ones.
    ///
    /// # Panics
    /// If the length is odd.
    pub fn split(values: Tensor<1>) -> Self {
        let [rows] = values.dims();
        assert!(rows.is_multiple_of(2), "{rows} responses don't make pairs");
        let pairs = rows / 2;
        Self { chosen: values.clone().slice(0..pairs), rejected: values.slice(pairs..rows) }
    }

    /// Concatenates batches.
    ///
    /// # Panics
    /// If `parts` is empty.
    pub fn cat(parts: Vec<Self>) -> Self {
        let (chosen, rejected) = parts.into_iter().map(|p| (p.chosen, p.rejected)).unzip();
        Self { chosen: fpo_ops::joined(chosen, 0), rejected: fpo_ops::joined(rejected, 0) }
    }

    /// Applies `f` to both sides.
    pub fn map(self, f: impl Fn(Tensor<1>) -> Tensor<1>) -> Self {
        Self { chosen: f(self.chosen), rejected: f(self.rejected) }
    }

    /// chosen − rejected, `[pairs]`
    pub fn margin(&self) -> Tensor<1> {
        self.chosen.clone() - self.rejected.clone()
    }

    /// Detaches the chosen side: the `sg` of equation 8.
    pub fn stop_gradient_on_chosen(self) -> Self {
        Self { chosen: self.chosen.detach(), rejected: self.rejected }
    }
}

/// Scales both sides.
impl Mul<f64> for PerResponse {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        Self { chosen: self.chosen * factor, rejected: self.rejected * factor }
    }
}

impl Add for PerResponse {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { chosen: self.chosen + other.chosen, rejected: self.rejected + other.rejected }
    }
}

impl Sub for PerResponse {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { chosen: self.chosen - other.chosen, rejected: self.rejected - other.rejected }
    }
}

impl Div for PerResponse {
    type Output = Self;

    fn div(self, other: Self) -> Self {
        Self { chosen: self.chosen / other.chosen, rejected: self.rejected / other.rejected }
    }
}
