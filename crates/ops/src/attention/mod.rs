//! Causal grouped-query attention with optional soft-cap and sliding window, over one or several texts per row, or over rows that lie
//! flat.

mod blocked;
#[cfg(feature = "flex")]
mod fast;
pub(crate) mod flat;

#[cfg(feature = "flex")]
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Bool, Device, FloatDType, Int, Tensor, TensorData, activation::softmax};

pub use flat::{FlatRows, flat_attention};

use crate::{graph, profile, rms_norm::at_least_f32, softcap::optional_softcap};

/// How attention scores are scaled, capped and masked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionOptions {
    /// Multiplies the dot products; in Gemma-2 `query_pre_attn_scalar^-½`.
    pub scale: f64,
    /// The soft-cap of the scores, applied before the mask.
    pub softcap: Option<f64>,
    /// The sliding window in tokens: position i attends to j with i − window < j ≤ i.
    pub window: Option<usize>,
}

/// Where the texts start in a batch whose rows hold several texts in sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextStarts {
    rows: usize,
    /// The first position of each position's text in its row, row by row.
    starts: Arc<[usize]>,
}

impl TextStarts {
    /// From the lengths of the texts in tokens, one list per row. The rest of `width` is one more text: padding.
    ///
    /// # Panics
    /// If the texts of a row are longer than `width`.
    pub fn new(lengths: &[Vec<usize>], width: usize) -> Self {
        let mut starts = Vec::with_capacity(lengths.len() * width);
        for (row, lengths) in lengths.iter().enumerate() {
            let total = lengths.iter().sum::<usize>();
            assert!(total <= width, "row {row}: texts of {total} tokens don't fit into {width}");
            let mut first = 0;
            for &length in lengths.iter().chain([&(width - total)]) {
                starts.extend(std::iter::repeat_n(first, length));
                first += length;
            }
        }
        Self { rows: lengths.len(), starts: starts.into() }
    }

    /// Number of rows, and positions per row.
    pub fn dims(&self) -> [usize; 2] {
        [self.rows, self.starts.len() / self.rows.max(1)]
    }

    /// The position of each token in its own text, row by row.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        let [_, width] = self.dims();
        self.starts.iter().enumerate().map(move |(i, start)| i % width - start)
    }

    /// The texts, as places of their tokens in all rows.
    #[cfg(feature = "flex")]
    fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        let [rows, width] = self.dims();
        (0..rows).flat_map(move |row| {
            let places = row * width..(row + 1) * width;
            let texts = self.starts[places.clone()].chunk_by(|a, b| a == b);
            texts.scan(places.start, |end, text| {
                let start = *end;
                *end += text.len();
                Some(start..*end)
            })
        })
    }

    /// The first position of the text at `position`.
    fn of(&self, row: usize, position: usize) -> usize {
        self.starts[row * self.dims()[1] + position]
    }
}

/// `softmax(mask(softcap(scale · q·kᵀ)))·v` with the causal mask.
///
/// Head h of `q` uses head `h / (heads / kv_heads)` of `k` and `v`. If `k` has more tokens than `q`, the queries are the last of
/// them (generation with a cache). Padding on the right needs no mask: a real position never attends to a later one.
///
/// # Shapes
/// * `q`: `[batch, tokens, heads, head_dim]`
/// * `k`, `v`: `[batch, kv_tokens, kv_heads, head_dim]`, `kv_tokens ≥ tokens`, `heads` a multiple of `kv_heads`
/// * result: `[batch, tokens, heads, head_dim]`
pub fn causal_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    options: &AttentionOptions,
) -> Tensor<4> {
    attention(q, k, v, options, None)
}

/// [`causal_attention`] within each text of each row: a position sees no text before its own.
///
/// # Shapes
/// * `q`, `k`, `v`: as in [`causal_attention`], with `kv_tokens = tokens`
/// * `texts`: `[batch, tokens]`
pub fn packed_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    options: &AttentionOptions,
    texts: &TextStarts,
) -> Tensor<4> {
    let [batch, tokens, ..] = q.dims();
    assert!(
        texts.dims() == [batch, tokens] && k.dims()[1] == tokens,
        "packed_attention: q {:?}, k {:?} and texts {:?} don't fit together",
        q.dims(),
        k.dims(),
        texts.dims()
    );
    attention(q, k, v, options, Some(texts))
}

fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    options: &AttentionOptions,
    texts: Option<&TextStarts>,
) -> Tensor<4> {
    let [batch, tokens, heads, head_dim] = q.dims();
    let [_, kv_tokens, kv_heads, _] = k.dims();
    assert!(
        k.dims() == [batch, kv_tokens, kv_heads, head_dim]
            && v.dims() == k.dims()
            && kv_tokens >= tokens
            && kv_heads > 0
            && heads % kv_heads == 0,
        "causal_attention: q {:?}, k {:?} and v {:?} don't fit together",
        q.dims(),
        k.dims(),
        v.dims()
    );
    assert!(options.window != Some(0), "causal_attention: a window of 0 tokens hides every key");
    let _within = profile::operation("causal_attention", || match texts {
        Some(texts) => flops(texts.positions(), heads * head_dim, options),
        None => {
            let row = flops(kv_tokens - tokens..kv_tokens, heads * head_dim, options);
            batch as f64 * row
        }
    });
    #[cfg(feature = "flex")]
    if let Some(output) = crate::flex::apply(
        fast::Attention::of_rows(options, [batch, tokens, kv_tokens], texts),
        [&q, &k, &v].map(crate::flex::operand),
    ) {
        return Tensor::from_dispatch(output);
    }
    let blocked = blocked::Blocked::new(options, texts.cloned(), batch * heads * kv_tokens);
    let inputs = [&q, &k, &v].map(|x| x.clone().into_dispatch());
    match graph::apply(blocked, inputs) {
        Some(output) => Tensor::from_dispatch(output),
        None => by_definition(q, k, v, options, texts),
    }
}

/// FLOPs of scores and weighted sums, for the keys that queries at these positions see, with `width` elements in all heads.
fn flops(positions: impl Iterator<Item = usize>, width: usize, options: &AttentionOptions) -> f64 {
    let seen = |position: usize| (position + 1).min(options.window.unwrap_or(usize::MAX)) as f64;
    4.0 * positions.map(seen).sum::<f64>() * width as f64
}

/// [`causal_attention`] in plain tensor operations.
pub fn definition(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    options: &AttentionOptions,
) -> Tensor<4> {
    by_definition(q, k, v, options, None)
}

/// [`packed_attention`] in plain tensor operations.
pub fn packed_definition(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    options: &AttentionOptions,
    texts: &TextStarts,
) -> Tensor<4> {
    by_definition(q, k, v, options, Some(texts))
}

fn by_definition(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    options: &AttentionOptions,
    texts: Option<&TextStarts>,
) -> Tensor<4> {
    let ([_, tokens, ..], [_, kv_tokens, ..]) = (q.dims(), k.dims());
    let device = q.device();
    let hidden = hidden(tokens, kv_tokens, options.window, &device).unsqueeze::<4>();
    let hidden = match texts {
        None => hidden,
        Some(texts) => hidden.bool_or(foreign(texts, &device)),
    };
    masked(q, k, v, options, hidden)
}

/// With a mask of hidden keys, `[batch or 1, 1, tokens, kv_tokens]`.
fn masked(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    options: &AttentionOptions,
    hidden: Tensor<4, Bool>,
) -> Tensor<4> {
    let [batch, tokens, heads, head_dim] = q.dims();
    let [_, kv_tokens, kv_heads, _] = k.dims();
    let dtype = q.dtype();

    let q = q.swap_dims(1, 2);
    let group = heads / kv_heads;
    let per_query_head = |x: Tensor<4>| {
        let x = x.swap_dims(1, 2);
        if group == 1 {
            return x;
        }
        x.unsqueeze_dim::<5>(2)
            .expand([batch, kv_heads, group, kv_tokens, head_dim])
            .reshape([batch, heads, kv_tokens, head_dim])
    };
    let (k, v) = (per_query_head(k), per_query_head(v));

    let scores = at_least_f32(q.matmul(k.swap_dims(2, 3))) * options.scale;
    let scores = optional_softcap(scores, options.softcap)
        .mask_fill(hidden.expand([batch, heads, tokens, kv_tokens]), f32::NEG_INFINITY);
    let weights = softmax(scores, 3).cast(FloatDType::from(dtype));
    weights.matmul(v).swap_dims(1, 2)
}

/// Whether each key comes before each query's text, `[rows, 1, tokens, tokens]`.
fn foreign(texts: &TextStarts, device: &Device) -> Tensor<4, Bool> {
    let [rows, tokens] = texts.dims();
    let starts: Vec<i32> = texts.starts.iter().map(|&start| start as i32).collect();
    let starts = Tensor::<1, Int>::from_data(TensorData::new(starts, [rows * tokens]), device);
    let starts = starts.reshape([rows, 1, tokens, 1]).expand([rows, 1, tokens, tokens]);
    let key = Tensor::<1, Int>::arange(0..tokens as i64, device).reshape([1, 1, 1, tokens]);
    key.expand([rows, 1, tokens, tokens]).lower(starts)
}

/// Whether each key is hidden from each query, `[tokens, kv_tokens]`.
fn hidden(
    tokens: usize,
    kv_tokens: usize,
    window: Option<usize>,
    device: &Device,
) -> Tensor<2, Bool> {
    let positions = |range| Tensor::<1, Int>::arange(range, device);
    let first = (kv_tokens - tokens) as i64;
    let query = positions(first..kv_tokens as i64).reshape([tokens, 1]);
    let key = positions(0..kv_tokens as i64).reshape([1, kv_tokens]);
    let distance = query - key;
    let future = distance.clone().lower_elem(0);
    match window {
        Some(window) if window < kv_tokens => {
            future.bool_or(distance.greater_equal_elem(window as i64))
        }
        _ => future,
    }
}
