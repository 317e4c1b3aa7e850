//! From a product to the argument of the softmax, and the derivative; and the tanh of these kernels.

use burn_cubecl::cubecl::{self, prelude::*};

/// `cap · tanh(scale · product / cap)`, or `scale · product`.
#[cube]
pub(super) fn score(product: f32, scale: f32, cap: f32, #[comptime] capped: bool) -> f32 {
    let score = product * scale;
    if capped { tanh(score / cap) * cap } else { score }
}

/// Some drivers compute tanh from exponentials that overflow. Beyond 15 it is ±1 in float32. NaN stays NaN.
#[cube]
pub(super) fn tanh(x: f32) -> f32 {
    let mut x = x;
    if x > 15.0f32 {
        x = f32::new(15.0);
    } else if x < -15.0f32 {
        x = f32::new(-15.0);
    }
    x.tanh()
}

/// The derivative with respect to the product, given the result `score`.
#[cube]
pub(super) fn slope(score: f32, scale: f32, cap: f32, #[comptime] capped: bool) -> f32 {
    if capped {
        let tanh = score / cap;
        (1.0f32 - tanh) * (1.0f32 + tanh) * scale
    } else {
        scale
    }
}
