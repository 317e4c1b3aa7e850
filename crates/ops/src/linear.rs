//! A linear map in Hugging Face's layout.

use burn::tensor::{FloatDType, Tensor};

use crate::graph;

/// `x·Wᵀ`.
///
/// # Shapes
/// * `x`: `[…, in]`
/// * `weight`: `[out, in]`
/// * result: `[…, out]`
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let (d, [_, d_in]) = (x.dims()[D - 1], weight.dims());
    assert_eq!(d, d_in, "linear: x has {d} features, but the weight takes {d_in}");
    #[cfg(feature = "flex")]
    if let Some(output) =
        crate::flex::apply(fast::Linear, [crate::flex::operand(&x), crate::flex::operand(&weight)])
    {
        return Tensor::from_dispatch(output);
    }
    #[cfg(feature = "cube")]
    if crate::cube::takes(&x) && weight.dtype() == x.dtype() {
        let inputs = [x.into_dispatch(), weight.into_dispatch()];
        let output = graph::apply(matrix::Linear::<D> { rounded_to: None }, inputs);
        return Tensor::from_dispatch(output.expect("the backend of these tensors is known"));
    }
    definition(x, weight)
}

/// The same with both factors and the result in bfloat16, whatever types the inputs have. The gradients have the types of `x` and
/// `weight`.
///
/// # Shapes
/// As in [`linear`].
pub fn linear_bf16<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let inputs = [x.clone().into_dispatch(), weight.clone().into_dispatch()];
    match graph::apply(matrix::Linear::<D> { rounded_to: Some(FloatDType::BF16) }, inputs) {
        Some(output) => Tensor::from_dispatch(output),
        None => bf16_definition(x, weight),
    }
}

/// [`linear_bf16`] in plain tensor operations.
pub fn bf16_definition<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    definition(x.cast(FloatDType::BF16), weight.cast(FloatDType::BF16))
}

/// [`linear`] in plain tensor operations.
pub fn definition<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let mut shape = x.dims();
    let [d_out, _] = weight.dims();
    shape[D - 1] = d_out;
    rows(x).matmul(weight.transpose()).reshape(shape)
}

/// `[…, width]` → `[rows, width]`
fn rows<const D: usize>(x: Tensor<D>) -> Tensor<2> {
    let shape = x.dims();
    let rows = shape[..D - 1].iter().product::<usize>();
    x.reshape([rows, shape[D - 1]])
}

/// Three products of matrices. The backward pass saves the unrounded inputs, which are in memory anyway, and rounds them again.
mod matrix {
    use burn::tensor::{FloatDType, Tensor};

    use super::rows;
    use crate::{
        graph::{Operation, Plain},
        product::{Factor, product},
    };

    #[derive(Clone, Debug)]
    pub(super) struct Linear<const D: usize> {
        /// The type of the factors and the result, if not that of the inputs.
        pub rounded_to: Option<FloatDType>,
    }

    impl<const D: usize> Linear<D> {
        fn factors<const N: usize>(&self, inputs: [Tensor<2>; N]) -> [Tensor<2>; N] {
            inputs.map(|x| match self.rounded_to {
                Some(dtype) => x.cast(dtype),
                None => x,
            })
        }
    }

    impl<const D: usize> Operation<2> for Linear<D> {
        type Saved = ();

        fn forward(&self, [x, weight]: [Plain; 2]) -> (Plain, ()) {
            let (x, weight) = (Tensor::<D>::from(x), Tensor::<2>::from(weight));
            let mut shape = x.dims();
            shape[D - 1] = weight.dims()[0];
            let [x, weight] = self.factors([rows(x), weight]);
            (product(x, Factor::transposed(weight)).reshape(shape).into(), ())
        }

        /// `dx = g·W`, `dW = gᵀ·x`.
        fn backward(
            &self,
            [x, weight]: [Plain; 2],
            (): (),
            gradient: Plain,
            [x_wanted, weight_wanted]: [bool; 2],
        ) -> [Option<Plain>; 2] {
            let (x, weight) = (Tensor::<D>::from(x), Tensor::<2>::from(weight));
            let gradient = Tensor::<D>::from(gradient);
            let (shape, [x_type, weight_type]) = (x.dims(), [x.dtype(), weight.dtype()]);
            let [x, weight, g] = self.factors([rows(x), weight, rows(gradient)]);
            let d_x = x_wanted.then(|| {
                let d_x = product(g.clone(), weight);
                d_x.cast(x_type).reshape(shape).into()
            });
            let d_weight = weight_wanted.then(|| {
                let d_weight = product(Factor::transposed(g), x);
                d_weight.cast(weight_type).into()
            });
            [d_x, d_weight]
        }
    }
}

/// Three products in fixed blocks. The weight's gradient has the layout of the weight; the definition's is a transposed view, which
/// slows down every later pass over it.
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
