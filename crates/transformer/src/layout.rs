//! The layout of a batch: the positions of its tokens, for the rotary embedding, and the texts that attention keeps apart.

use burn::tensor::{Device, Int, Tensor, TensorData};
use fpo_ops::{AttentionOptions, TextStarts};

use crate::ModelConfig;

/// How a batch is laid out in rows.
#[derive(Clone, Debug)]
pub(crate) enum Layout {
    /// Each row is one text, padded on the right.
    Padded(Rotary),
    /// Each row is several texts in sequence.
    Packed(Rotary, TextStarts),
}

impl Layout {
    pub(crate) fn padded(tokens: &Tensor<2, Int>, config: &ModelConfig) -> Self {
        let [_, width] = tokens.dims();
        Self::Padded(Rotary::new(0..width, config, &tokens.device()))
    }

    pub(crate) fn packed(
        tokens: &Tensor<2, Int>,
        texts: &TextStarts,
        config: &ModelConfig,
    ) -> Self {
        assert_eq!(tokens.dims(), texts.dims(), "the text layout doesn't match the tokens");
        let rotary = Rotary::new(texts.positions(), config, &tokens.device());
        Self::Packed(rotary, texts.clone())
    }

    /// Attention of queries `[batch, tokens, heads, head_dim]` over keys and values of the same tokens.
    pub(crate) fn attend(
        &self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        options: &AttentionOptions,
    ) -> Tensor<4> {
        match self {
            Self::Padded(rotary) => {
                fpo_ops::causal_attention(rotary.shared(q), rotary.shared(k), v, options)
            }
            Self::Packed(rotary, texts) => {
                let (q, k) = (rotary.per_row(q), rotary.per_row(k));
                fpo_ops::packed_attention(q, k, v, options, texts)
            }
        }
    }
}

/// Cosines and sines of the rotary embedding's angles, `[tokens, head_dim / 2]` each.
#[derive(Clone, Debug)]
pub(crate) struct Rotary {
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl Rotary {
    /// The angles at the given positions. Frequencies are computed in float64 and rounded to float32.
    pub(crate) fn new(
        positions: impl Iterator<Item = usize>,
        config: &ModelConfig,
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

    /// Rotates `[batch, tokens, heads, head_dim]`, where every row has the same positions.
    fn shared(&self, x: Tensor<4>) -> Tensor<4> {
        fpo_ops::rotary(x, self.cos.clone(), self.sin.clone())
    }

    /// Rotates `[batch, tokens, heads, head_dim]`, where each of the `batch · tokens` tokens has its own position.
    pub(crate) fn per_row(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, tokens, heads, width] = x.dims();
        let flat = x.reshape([1, batch * tokens, heads, width]);
        self.shared(flat).reshape([batch, tokens, heads, width])
    }
}
