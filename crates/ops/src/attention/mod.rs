//! Causal grouped-query attention with soft-capped scores and a sliding window.

#[cfg(feature = "flex")]
mod fast;

use burn::tensor::{Bool, Device, FloatDType, Int, Tensor, activation::softmax};

use crate::{rms_norm::at_least_f32, softcap::optional_softcap};

/// What Gemma-2 does to an attention score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionOptions {
    /// The factor of the dot product, `query_pre_attn_scalar^(-1/2)`.
    pub scale: f64,
    /// The bound of the soft-capping of scores, applied before the mask.
    pub softcap: Option<f64>,
    /// The sliding window: position i attends to j with i − window < j ≤ i.
    pub window: Option<usize>,
}

/// `softmax(mask(softcap(scale · q·kᵀ)))·v` with the causal mask.
///
/// Head h of `q` uses head `h / (heads / kv_heads)` of `k` and `v`. When `k` has more tokens than `q`, the queries are the
/// last of them (generation with a cache). Padding on the right needs no mask: a real position never attends to a later one.
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
    assert!(options.window != Some(0), "causal_attention: a window of 0 hides every position");
    #[cfg(feature = "flex")]
    if let Some(output) =
        crate::flex::apply(fast::Attention(*options), [&q, &k, &v].map(crate::flex::operand))
    {
        return Tensor::from_dispatch(output);
    }
    definition(q, k, v, options)
}

/// [`causal_attention`] by plain tensor operations.
pub fn definition(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    options: &AttentionOptions,
) -> Tensor<4> {
    let [batch, tokens, heads, head_dim] = q.dims();
    let [_, kv_tokens, kv_heads, _] = k.dims();
    let dtype = q.dtype();
    let device = q.device();

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
    let scores = optional_softcap(scores, options.softcap).mask_fill(
        hidden(tokens, kv_tokens, options.window, &device)
            .expand([batch, heads, tokens, kv_tokens]),
        f32::NEG_INFINITY,
    );
    let weights = softmax(scores, 3).cast(FloatDType::from(dtype));
    weights.matmul(v).swap_dims(1, 2)
}

/// Which keys each query must not see, `[tokens, kv_tokens]`.
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
