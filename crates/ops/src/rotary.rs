//! Rotary position embedding in the rotate-half layout of Hugging Face.

use burn::tensor::Tensor;

/// Rotates feature `i` of the first half of a head together with feature `i` of the second half:
/// `out₁ = x₁·cos − x₂·sin`, `out₂ = x₂·cos + x₁·sin` (RoFormer, equation 34, in Hugging Face's order of features).
///
/// `cos` and `sin` are constants: no gradient reaches them.
///
/// # Shapes
/// * `x`: `[batch, tokens, heads, head_dim]`
/// * `cos`, `sin`: `[tokens, head_dim / 2]`
pub fn rotary(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
    let [_, tokens, _, head_dim] = x.dims();
    assert!(
        head_dim % 2 == 0 && cos.dims() == [tokens, head_dim / 2] && sin.dims() == cos.dims(),
        "rotary: x is {:?}, so cos and sin must be [{tokens}, {head_dim}/2], got {:?} and {:?}",
        x.dims(),
        cos.dims(),
        sin.dims()
    );
    definition(x, cos, sin)
}

/// [`rotary`] by plain tensor operations.
pub fn definition(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
    let [_, tokens, _, head_dim] = x.dims();
    let half = head_dim / 2;
    let per_head = |table: Tensor<2>| table.without_autodiff().reshape([1, tokens, 1, half]);
    let (cos, sin) = (per_head(cos), per_head(sin));
    let (x1, x2) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let out1 = x1.clone() * cos.clone() - x2.clone() * sin.clone();
    let out2 = x2 * cos + x1 * sin;
    Tensor::cat(vec![out1, out2], 3)
}
