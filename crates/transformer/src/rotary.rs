//! Rotary position embedding: the angles of positions, and queries and keys turned by them.

use burn::tensor::{Device, Tensor, TensorData};

use crate::Gemma2Config;

/// The rotary embedding's angles: cosines and sines, `[tokens, head_dim / 2]` each.
#[derive(Clone, Debug)]
pub(crate) struct Rotary {
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl Rotary {
    /// The angles of the given positions; computed in float64, kept in float32.
    pub(crate) fn new(
        positions: impl Iterator<Item = usize>,
        config: &Gemma2Config,
        device: &Device,
    ) -> Self {
        let half = config.head_dim / 2;
        let frequency = |i: usize| {
            let exponent = 2.0 * i as f64 / config.head_dim as f64;
            (1.0 / config.rope_theta.powf(exponent)) as f32
        };
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let angles: Vec<f32> =
            positions.flat_map(|p| frequencies.iter().map(move |f| p as f32 * f)).collect();
        let tensor = |f: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().map(|&a| f(a)).collect();
            Tensor::from_data(TensorData::new(values, [angles.len() / half, half]), device)
        };
        Self { cos: tensor(f32::cos), sin: tensor(f32::sin) }
    }

    /// Rotates `[batch, tokens, heads, head_dim]`, every row of the batch at the same positions.
    pub(crate) fn shared(&self, x: Tensor<4>) -> Tensor<4> {
        fpo_ops::rotary(x, self.cos.clone(), self.sin.clone())
    }

    /// Rotates `[batch, tokens, heads, head_dim]` where the angles are those of all `batch · tokens`
    /// positions in turn.
    pub(crate) fn per_row(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, tokens, heads, width] = x.dims();
        let flat = x.reshape([1, batch * tokens, heads, width]);
        self.shared(flat).reshape([batch, tokens, heads, width])
    }
}
