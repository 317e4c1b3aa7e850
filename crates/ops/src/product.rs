//! Matrix products outside the graph, on GPUs by the chosen strategy.

use burn::tensor::Tensor;

/// An operand, possibly stored transposed.
pub(crate) struct Factor {
    stored: Tensor<2>,
    transposed: bool,
}

impl Factor {
    pub fn transposed(stored: Tensor<2>) -> Self {
        Self { stored, transposed: true }
    }

    fn into_matrix(self) -> Tensor<2> {
        if self.transposed { self.stored.transpose() } else { self.stored }
    }
}

impl From<Tensor<2>> for Factor {
    fn from(stored: Tensor<2>) -> Self {
        Self { stored, transposed: false }
    }
}

/// `lhs·rhs`, in their type.
pub(crate) fn product(lhs: impl Into<Factor>, rhs: impl Into<Factor>) -> Tensor<2> {
    let (lhs, rhs) = (lhs.into(), rhs.into());
    #[cfg(feature = "cube")]
    {
        use fpo_products::ProductStrategy;

        use crate::cube::{
            self,
            products::{Product, strategy_on},
        };
        let strategy = strategy_on(&lhs.stored.device());
        if strategy != ProductStrategy::Burn
            && [&lhs, &rhs].iter().all(|factor| cube::takes_outside_graph(&factor.stored))
        {
            let transposed = [lhs.transposed, rhs.transposed];
            let inputs = [lhs.stored.into(), rhs.stored.into()];
            let [output] = cube::run(Product { strategy, transposed }, inputs);
            return output.into();
        }
    }
    lhs.into_matrix().matmul(rhs.into_matrix())
}
