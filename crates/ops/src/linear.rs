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
    assert_eq!(d, d_in, "linear: x ends in {d} features, the weight takes {d_in}");
    #[cfg(feature = "flex")]
    if let Some(output) =
        crate::flex::apply(fast::Linear, [crate::flex::operand(&x), crate::flex::operand(&weight)])
    {
        return Tensor::from_dispatch(output);
    }
    definition(x, weight)
}

/// [`linear`] by plain tensor operations.
pub fn definition<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let mut shape = x.dims();
    let [d_out, d_in] = weight.dims();
    let rows = shape[..D - 1].iter().product::<usize>();
    shape[D - 1] = d_out;
    x.reshape([rows, d_in]).matmul(weight.transpose()).reshape(shape)
}

/// Three products in fixed blocks. The weight's gradient comes out in the layout of the weight, where the definition's is a
/// transposed view, which slows every later pass over it.
#[cfg(feature = "flex")]
mod fast {
    use burn::backend::flex::FlexTensor;

    use crate::flex::{
        Operation,
        matrix::{Matrix, product},
        tensor, tensors_like, values,
    };

    #[derive(Clone, Debug)]
    pub(super) struct Linear;

    impl Operation<2> for Linear {
        type Saved = [FlexTensor; 2];

        fn forward(&self, inputs: [FlexTensor; 2]) -> (FlexTensor, Self::Saved) {
            let [x, weight] = matrices(&inputs);
            let output = product(x, weight.t());
            let mut shape = inputs[0].layout().shape().clone();
            let last = shape.num_dims() - 1;
            shape[last] = inputs[1].layout().shape()[0];
            (tensor(output, shape), inputs)
        }

        fn backward(
            &self,
            inputs: Self::Saved,
            gradient: FlexTensor,
            [x_wanted, weight_wanted]: [bool; 2],
        ) -> [Option<FlexTensor>; 2] {
            let [x, weight] = matrices(&inputs);
            let d_out = inputs[1].layout().shape()[0];
            let g = values(&gradient);
            let g = Matrix::dense(g, g.len() / d_out.max(1), d_out);
            let d_x = x_wanted.then(|| product(g, weight));
            let d_weight = weight_wanted.then(|| product(g.t(), x));
            tensors_like([d_x, d_weight], &inputs)
        }
    }

    /// x as `[rows, in]`, the weight as `[out, in]`.
    fn matrices(inputs: &[FlexTensor; 2]) -> [Matrix<'_>; 2] {
        let d_in = inputs[1].layout().shape()[1];
        inputs.each_ref().map(|input| {
            let values = values(input);
            Matrix::dense(values, values.len() / d_in.max(1), d_in)
        })
    }
}
