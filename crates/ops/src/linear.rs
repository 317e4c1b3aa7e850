//! A linear map in Hugging Face's layout.

use burn::tensor::Tensor;

/// `x·Wᵀ`.
///
/// # Shapes
/// * `x`: `[…, in]`
/// * `weight`: `[out, in]`
/// * result: `[…, out]`
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let (d, [_, d_in]) = (x.dims()[D - 1], weight.dims());
    assert_eq!(
        d, d_in,
        "linear: x ends in {d} features, the weight takes {d_in}"
    );
    definition(x, weight)
}

/// [`linear`] by plain tensor operations.
pub fn definition<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let mut shape = x.dims();
    let [d_out, d_in] = weight.dims();
    let rows = shape[..D - 1].iter().product::<usize>();
    shape[D - 1] = d_out;
    x.reshape([rows, d_in])
        .matmul(weight.transpose())
        .reshape(shape)
}
