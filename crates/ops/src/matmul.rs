//! Products of two matrices that both may have a gradient: those of an autoencoder in training.

use burn::tensor::{FloatDType, Tensor};

use crate::profile;

/// `a·b`; on GPUs as all products here are computed, where Burn's own would be slower.
///
/// # Shapes
/// * `a`: `[m, k]`
/// * `b`: `[k, n]`
/// * result: `[m, n]`
pub fn matmul(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    either(a, b, None)
}

/// The same with factors, and those of the gradients, rounded to bfloat16; the results have the type of `a`.
pub fn matmul_bf16(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    either(a, b, Some(FloatDType::BF16))
}

fn either(a: Tensor<2>, b: Tensor<2>, rounded_to: Option<FloatDType>) -> Tensor<2> {
    let ([m, k], [k_b, n]) = (a.dims(), b.dims());
    assert_eq!(k, k_b, "matmul: {:?} · {:?}", a.dims(), b.dims());
    let _within = profile::operation("matmul", || 2.0 * (m * k * n) as f64);
    #[cfg(feature = "cube")]
    if [&a, &b].into_iter().all(crate::cube::takes) && a.dtype() == b.dtype() {
        let inputs = [a.into_dispatch(), b.into_dispatch()];
        let output = crate::graph::apply(by_strategy::Matmul { rounded_to }, inputs);
        return Tensor::from_dispatch(output.expect("the backend of these tensors is known"));
    }
    match rounded_to {
        None => definition(a, b),
        Some(dtype) => rounded_definition(a, b, dtype),
    }
}

/// [`matmul`] in plain tensor operations.
pub fn definition(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    a.matmul(b)
}

/// [`matmul_bf16`] in plain tensor operations.
pub fn bf16_definition(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    rounded_definition(a, b, FloatDType::BF16)
}

fn rounded_definition(a: Tensor<2>, b: Tensor<2>, to: FloatDType) -> Tensor<2> {
    let dtype = FloatDType::from(a.dtype());
    a.cast(to).matmul(b.cast(to)).cast(dtype)
}

#[cfg(feature = "cube")]
mod by_strategy {
    use burn::tensor::{FloatDType, Tensor};

    use crate::{
        graph::{Operation, Plain},
        product::{Factor, product, product_f32},
    };

    #[derive(Clone, Debug)]
    pub(super) struct Matmul {
        pub rounded_to: Option<FloatDType>,
    }

    impl Matmul {
        fn product(&self, a: Factor<2>, b: Factor<2>) -> Tensor<2> {
            match self.rounded_to {
                None => product(a, b),
                Some(to) => product_f32(a.cast(to), b.cast(to)),
            }
        }
    }

    impl Operation<2> for Matmul {
        type Saved = ();

        fn forward(&self, [a, b]: [Plain; 2]) -> (Plain, ()) {
            let dtype = FloatDType::from(Tensor::<2>::from(a.clone()).dtype());
            let [a, b] = [a, b].map(|x| Factor::from(Tensor::<2>::from(x)));
            (self.product(a, b).cast(dtype).into(), ())
        }

        /// `da = g·bᵀ`, `db = aᵀ·g`.
        fn backward(
            &self,
            inputs: [Plain; 2],
            (): (),
            gradient: Plain,
            [a_wanted, b_wanted]: [bool; 2],
        ) -> [Option<Plain>; 2] {
            let [a, b] = inputs.map(Tensor::<2>::from);
            let g = Tensor::<2>::from(gradient);
            let dtype = FloatDType::from(a.dtype());
            let cast = |x: Tensor<2>| Plain::from(x.cast(dtype));
            let d_a = a_wanted.then(|| cast(self.product(g.clone().into(), Factor::transposed(b))));
            let d_b = b_wanted.then(|| cast(self.product(Factor::transposed(a), g.into())));
            [d_a, d_b]
        }
    }
}
