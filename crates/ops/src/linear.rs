//! A linear map in Hugging Face's layout.

use burn::tensor::{FloatDType, Tensor};

use crate::{
    graph::{self, Again},
    profile,
};

/// `x·Wᵀ`.
///
/// # Shapes
/// * `x`: `[…, in]`
/// * `weight`: `[out, in]`
/// * result: `[…, out]`
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    either(x, weight, None)
}

/// [`linear`], where the backward pass calls `again` for x instead of keeping it: less memory where x is cheap to compute from
/// what is in memory anyway. `again` must give the values of `x`, from tensors outside any graph; the gradient flows to `x` itself.
///
/// # Shapes
/// As in [`linear`].
pub fn linear_of<const D: usize>(
    x: Tensor<D>,
    again: impl Fn() -> Tensor<D> + Send + Sync + 'static,
    weight: Tensor<2>,
) -> Tensor<D> {
    either(x, weight, Some(Again::new(move || again().into())))
}

fn either<const D: usize>(x: Tensor<D>, weight: Tensor<2>, again: Option<Again>) -> Tensor<D> {
    let (d, [_, d_in]) = (x.dims()[D - 1], weight.dims());
    assert_eq!(d, d_in, "linear: x has {d} features, but the weight takes {d_in}");
    let _within = profile::operation("linear", || flops(&x, &weight));
    #[cfg(feature = "flex")]
    if let Some(output) = crate::flex::apply(
        fast::Linear { again: again.clone() },
        [crate::flex::operand(&x), crate::flex::operand(&weight)],
    ) {
        return Tensor::from_dispatch(output);
    }
    #[cfg(feature = "cube")]
    if crate::cube::takes(&x) && weight.dtype() == x.dtype() {
        let operation = matrix::Linear::<D> { rounded_to: None, x_type: x.dtype(), again };
        let output = graph::apply(operation, [x.into_dispatch(), weight.into_dispatch()]);
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
    either_bf16(x, weight, None)
}

/// [`linear_bf16`], where the backward pass calls `again` for x instead of keeping it, as in [`linear_of`].
///
/// # Shapes
/// As in [`linear`].
pub fn linear_of_bf16<const D: usize>(
    x: Tensor<D>,
    again: impl Fn() -> Tensor<D> + Send + Sync + 'static,
    weight: Tensor<2>,
) -> Tensor<D> {
    either_bf16(x, weight, Some(Again::new(move || again().into())))
}

fn either_bf16<const D: usize>(x: Tensor<D>, weight: Tensor<2>, again: Option<Again>) -> Tensor<D> {
    let _within = profile::operation("linear_bf16", || flops(&x, &weight));
    let rounded_to = Some(FloatDType::BF16);
    let operation = matrix::Linear::<D> { rounded_to, x_type: x.dtype(), again };
    let inputs = [x.clone().into_dispatch(), weight.clone().into_dispatch()];
    match graph::apply(operation, inputs) {
        Some(output) => Tensor::from_dispatch(output),
        None => bf16_definition(x, weight),
    }
}

/// FLOPs of the product.
fn flops<const D: usize>(x: &Tensor<D>, weight: &Tensor<2>) -> f64 {
    let [d_out, _] = weight.dims();
    2.0 * x.shape().num_elements() as f64 * d_out as f64
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
    use burn::tensor::{DType, FloatDType, Tensor};

    use super::rows;
    use crate::{
        graph::{Again, Operation, Plain},
        product::{Factor, product, product_f32},
    };

    #[derive(Clone, Debug)]
    pub(super) struct Linear<const D: usize> {
        /// The type of the factors and the result, if not that of the inputs.
        pub rounded_to: Option<FloatDType>,
        pub x_type: DType,
        /// Computes x for the backward pass; it is kept otherwise.
        pub again: Option<Again>,
    }

    impl<const D: usize> Linear<D> {
        fn factor(&self, x: Tensor<2>) -> Tensor<2> {
            match self.rounded_to {
                Some(dtype) => x.cast(dtype),
                None => x,
            }
        }
    }

    impl<const D: usize> Operation<2> for Linear<D> {
        type Saved = ();

        fn forward(&self, [x, weight]: [Plain; 2]) -> (Plain, ()) {
            let (x, weight) = (Tensor::<D>::from(x), Tensor::<2>::from(weight));
            let mut shape = x.dims();
            shape[D - 1] = weight.dims()[0];
            let (x, weight) = (self.factor(rows(x)), self.factor(weight));
            (product(x, Factor::transposed(weight)).reshape(shape).into(), ())
        }

        fn kept(&self, [x, weight]: [Plain; 2]) -> [Plain; 2] {
            match self.again {
                None => [x, weight],
                // The weight, which is in memory anyway, stands in for x.
                Some(_) => [weight.clone(), weight],
            }
        }

        /// `dx = g·W`, `dW = gᵀ·x`.
        fn backward(
            &self,
            [x, weight]: [Plain; 2],
            (): (),
            gradient: Plain,
            [x_wanted, weight_wanted]: [bool; 2],
        ) -> [Option<Plain>; 2] {
            let weight = Tensor::<2>::from(weight);
            let gradient = Tensor::<D>::from(gradient);
            let weight_type = weight.dtype();
            let mut shape = gradient.dims();
            shape[D - 1] = weight.dims()[1];
            let (weight, g) = (self.factor(weight), self.factor(rows(gradient)));
            let d_x = x_wanted.then(|| {
                let d_x = product(g.clone(), weight);
                d_x.cast(self.x_type).reshape(shape).into()
            });
            let d_weight = weight_wanted.then(|| {
                let x = self.again.as_ref().map_or(x, Again::compute);
                let x = self.factor(rows(Tensor::<D>::from(x)));
                product_f32(Factor::transposed(g), x).cast(weight_type).into()
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

    use crate::{
        flex::{
            Operation,
            matrix::{Matrix, product},
            take, tensor, values,
        },
        graph::Again,
    };

    #[derive(Clone, Debug)]
    pub(super) struct Linear {
        /// Computes x for the backward pass; it is kept otherwise.
        pub again: Option<Again>,
    }

    impl Operation<2> for Linear {
        type Saved = (Option<FlexTensor>, FlexTensor);

        fn forward(&self, [x, weight]: [FlexTensor; 2]) -> (FlexTensor, Self::Saved) {
            let [d_out, d_in] = sizes(&weight);
            let output = product(matrix(&x, d_in), matrix(&weight, d_in).t());
            let mut shape = x.layout().shape().clone();
            let last = shape.num_dims() - 1;
            shape[last] = d_out;
            (tensor(output, shape), (self.again.is_none().then_some(x), weight))
        }

        fn backward(
            &self,
            (x, weight): Self::Saved,
            gradient: FlexTensor,
            [x_wanted, weight_wanted]: [bool; 2],
        ) -> [Option<FlexTensor>; 2] {
            let [d_out, d_in] = sizes(&weight);
            let g = matrix(&gradient, d_out);
            let d_x = x_wanted.then(|| {
                let mut shape = gradient.layout().shape().clone();
                let last = shape.num_dims() - 1;
                shape[last] = d_in;
                tensor(product(g, matrix(&weight, d_in)), shape)
            });
            let d_weight = weight_wanted.then(|| {
                let again = self.again.as_ref().map(|again| take(again.compute()));
                let x = again.or(x).expect("kept if it isn't computed again");
                tensor(product(g.t(), matrix(&x, d_in)), [d_out, d_in])
            });
            [d_x, d_weight]
        }
    }

    /// Output and input width of a weight.
    fn sizes(weight: &FlexTensor) -> [usize; 2] {
        let shape = weight.layout().shape();
        [shape[0], shape[1]]
    }

    /// `[…, width]` as `[rows, width]`
    fn matrix(tensor: &FlexTensor, width: usize) -> Matrix<'_> {
        let values = values(tensor);
        Matrix::dense(values, values.len() / width.max(1), width)
    }
}
