//! The layout of a batch: the positions of its tokens, for the rotary embedding, and the texts that attention keeps apart.
//! Everything else in a model is computed token by token.

use burn::tensor::{Device, Int, Tensor, TensorData};
use fpo_ops::{AttentionOptions, FlatRows, TextStarts};

use crate::{ModelConfig, Rope};

/// The tokens of a forward pass, and which of them make up a text.
#[derive(Clone, Debug)]
pub struct Input {
    /// `[batch, tokens]`
    pub(crate) tokens: Tensor<2, Int>,
    pub(crate) texts: Texts,
}

#[derive(Clone, Debug)]
pub(crate) enum Texts {
    Padded,
    Packed(TextStarts),
    Flat(FlatRows),
}

/// Tokens `[batch, tokens]`, each row one text that is padded on the right. Padding needs no mask: attention is causal, so a real
/// position never sees the padding after it. Outputs at padded positions are meaningless.
impl From<Tensor<2, Int>> for Input {
    fn from(tokens: Tensor<2, Int>) -> Self {
        Self { tokens, texts: Texts::Padded }
    }
}

impl Input {
    /// Tokens `[rows, tokens]` with several texts in each row, one after another.
    ///
    /// # Panics
    /// If `texts` has another shape than `tokens`.
    pub fn packed(tokens: Tensor<2, Int>, texts: &TextStarts) -> Self {
        assert_eq!(tokens.dims(), texts.dims(), "the text layout doesn't match the tokens");
        Self { tokens, texts: Texts::Packed(texts.clone()) }
    }

    /// Tokens `[tokens]` that make up rows, each of them one text; what two rows begin with may be there once. Outputs are those of
    /// the tokens, with the shape `[1, tokens, …]`.
    ///
    /// # Panics
    /// If `rows` are made up of another number of tokens.
    pub fn flat(tokens: Tensor<1, Int>, rows: FlatRows) -> Self {
        assert_eq!(tokens.dims(), [rows.tokens()], "the rows don't match the tokens");
        Self { tokens: tokens.unsqueeze(), texts: Texts::Flat(rows) }
    }

    pub(crate) fn layout(&self, config: &ModelConfig) -> Layout {
        let [_, width] = self.tokens.dims();
        let device = &self.tokens.device();
        match &self.texts {
            Texts::Padded => Layout::Padded(Rotaries::new(0..width, config, device)),
            Texts::Packed(texts) => {
                Layout::Packed(Rotaries::new(texts.positions(), config, device), texts.clone())
            }
            Texts::Flat(rows) => {
                Layout::Flat(Rotaries::new(rows.positions(), config, device), rows.clone())
            }
        }
    }
}

/// How a batch is laid out in rows.
#[derive(Clone, Debug)]
pub(crate) enum Layout {
    /// Each row is one text, padded on the right.
    Padded(Rotaries),
    /// Each row is several texts in sequence.
    Packed(Rotaries, TextStarts),
    /// The only row has the tokens of all texts.
    Flat(Rotaries, FlatRows),
}

impl Layout {
    /// Attention of queries `[batch, tokens, heads, head_dim]` over keys and values of the same tokens.
    pub(crate) fn attend(
        &self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        options: &AttentionOptions,
    ) -> Tensor<4> {
        match self {
            Self::Padded(rotaries) => {
                let rotary = rotaries.of(options.window);
                let [q, k] = [q, k].map(|x| rotary.shared(x).cast(v.dtype()));
                fpo_ops::causal_attention(q, k, v, options)
            }
            Self::Packed(rotaries, texts) => {
                let rotary = rotaries.of(options.window);
                let [q, k] = [q, k].map(|x| rotary.per_row(x).cast(v.dtype()));
                fpo_ops::packed_attention(q, k, v, options, texts)
            }
            Self::Flat(rotaries, rows) => {
                let rotary = rotaries.of(options.window);
                let [q, k] = [q, k].map(|x| rotary.shared(x).cast(v.dtype()));
                fpo_ops::flat_attention(q, k, v, options, rows)
            }
        }
    }
}

/// The rotary embeddings of both types of layers.
#[derive(Clone, Debug)]
pub(crate) struct Rotaries {
    full: Rotary,
    sliding: Rotary,
}

impl Rotaries {
    /// At the given positions.
    pub(crate) fn new(
        positions: impl Iterator<Item = usize>,
        config: &ModelConfig,
        device: &Device,
    ) -> Self {
        let positions: Vec<usize> = positions.collect();
        let of = |rope: &Rope| Rotary::new(&positions, &rope.frequencies(config.head_dim), device);
        let full = of(&config.rope);
        let sliding = match config.sliding_rope == config.rope {
            true => full.clone(),
            false => of(&config.sliding_rope),
        };
        Self { full, sliding }
    }

    /// That of a layer with this window.
    pub(crate) fn of(&self, window: Option<usize>) -> &Rotary {
        match window {
            Some(_) => &self.sliding,
            None => &self.full,
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
    fn new(positions: &[usize], frequencies: &[f32], device: &Device) -> Self {
        let half = frequencies.len();
        let angles = positions.iter().flat_map(|&p| frequencies.iter().map(move |f| p as f32 * f));
        let angles: Vec<f32> = angles.collect();
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
