//! Matrix products outside the graph, on GPUs by the chosen strategy.

use std::{collections::BTreeMap, ops::Range};

#[cfg(feature = "cube")]
use burn::tensor::FloatDType;
use burn::tensor::{DType, Tensor};
#[cfg(feature = "cube")]
use fpo_products::Write;

use crate::{joined, rms_norm::at_least_f32};

/// A matrix `[rows, columns]`, or a batch of them, possibly stored transposed.
pub(crate) struct Factor<const D: usize> {
    stored: Tensor<D>,
    transposed: bool,
}

impl<const D: usize> Factor<D> {
    pub fn transposed(stored: Tensor<D>) -> Self {
        Self { stored, transposed: true }
    }

    /// Rounded to a type.
    #[cfg(feature = "cube")]
    pub fn cast(self, to: FloatDType) -> Self {
        Self { stored: self.stored.cast(to), ..self }
    }

    fn into_matrix(self) -> Tensor<D> {
        if self.transposed { self.stored.transpose() } else { self.stored }
    }
}

impl<const D: usize> From<Tensor<D>> for Factor<D> {
    fn from(stored: Tensor<D>) -> Self {
        Self { stored, transposed: false }
    }
}

/// `lhs·rhs`, in their type.
pub(crate) fn product<const D: usize>(
    lhs: impl Into<Factor<D>>,
    rhs: impl Into<Factor<D>>,
) -> Tensor<D> {
    let lhs = lhs.into();
    let dtype = lhs.stored.dtype();
    product_in(dtype, lhs, rhs.into())
}

/// `lhs·rhs` in float32 at least; where the device can, not even the sum is rounded to the type of the factors.
pub(crate) fn product_f32<const D: usize>(
    lhs: impl Into<Factor<D>>,
    rhs: impl Into<Factor<D>>,
) -> Tensor<D> {
    at_least_f32(product_in(DType::F32, lhs.into(), rhs.into()))
}

/// `lhs·rhs` in a type where the device can, else in theirs.
#[cfg_attr(not(feature = "cube"), expect(unused_variables, reason = "Flex multiplies in one type"))]
fn product_in<const D: usize>(result: DType, lhs: Factor<D>, rhs: Factor<D>) -> Tensor<D> {
    #[cfg(feature = "cube")]
    if let Some(strategy) = library::strategy([&lhs, &rhs]) {
        return library::product(strategy, lhs, rhs, result);
    }
    lhs.into_matrix().matmul(rhs.into_matrix())
}

/// A matrix that products are added to, some rows at a time; in float32 at least. Where the device can, they are added in place.
pub(crate) struct Sums {
    rows: usize,
    /// By their first rows. Where products are added in place, the first is the whole matrix.
    blocks: BTreeMap<usize, Tensor<2>>,
    /// Rows from here on hold nothing yet, where products are added in place.
    #[cfg(feature = "cube")]
    empty_from: usize,
}

impl Sums {
    /// Of no products. Those that follow begin with the first rows.
    pub fn new(rows: usize) -> Self {
        Self {
            rows,
            blocks: BTreeMap::new(),
            #[cfg(feature = "cube")]
            empty_from: 0,
        }
    }

    /// Adds `lhs·rhs` to some of the rows, which are as many as it has.
    pub fn add(
        &mut self,
        rows: Range<usize>,
        lhs: impl Into<Factor<2>>,
        rhs: impl Into<Factor<2>>,
    ) {
        debug_assert!(rows.end <= self.rows);
        let (lhs, rhs) = (lhs.into(), rhs.into());
        #[cfg(feature = "cube")]
        if let Some(strategy) = library::strategy([&lhs, &rhs]) {
            let whole = self.blocks.remove(&0).unwrap_or_else(|| {
                let columns = rhs.stored.dims()[usize::from(!rhs.transposed)];
                Tensor::empty([self.rows, columns], (&rhs.stored.device(), DType::F32))
            });
            let write = if rows.start >= self.empty_from { Write::Over } else { Write::Add };
            self.empty_from = self.empty_from.max(rows.end);
            self.blocks.insert(0, library::product_into(strategy, whole, rows, lhs, rhs, write));
            return;
        }
        let more = product_f32(lhs, rhs);
        let sum = match self.blocks.remove(&rows.start) {
            Some(before) => before + more,
            None => more,
        };
        self.blocks.insert(rows.start, sum);
    }

    /// The sums, of which every row must have had a product.
    pub fn get(self) -> Tensor<2> {
        joined(self.blocks.into_values().collect(), 0)
    }
}

#[cfg(feature = "cube")]
mod library {
    use std::ops::Range;

    use burn::tensor::{DType, Tensor};
    use fpo_products::{ProductStrategy, Write};

    use super::Factor;
    use crate::cube::{
        self,
        products::{Product, ProductInto, strategy_on},
    };

    /// The strategy for a product, if it isn't Burn's own.
    pub(super) fn strategy<const D: usize>(factors: [&Factor<D>; 2]) -> Option<ProductStrategy> {
        let strategy = strategy_on(&factors[0].stored.device());
        let takes = |factor: &&Factor<D>| cube::takes_outside_graph(&factor.stored);
        (strategy != ProductStrategy::Burn && factors.iter().all(takes)).then_some(strategy)
    }

    pub(super) fn product<const D: usize>(
        strategy: ProductStrategy,
        lhs: Factor<D>,
        rhs: Factor<D>,
        result: DType,
    ) -> Tensor<D> {
        let transposed = [lhs.transposed, rhs.transposed];
        let inputs = [lhs.stored.into(), rhs.stored.into()];
        let [output] = cube::run(Product { strategy, transposed, result }, inputs);
        output.into()
    }

    pub(super) fn product_into(
        strategy: ProductStrategy,
        whole: Tensor<2>,
        rows: Range<usize>,
        lhs: Factor<2>,
        rhs: Factor<2>,
        write: Write,
    ) -> Tensor<2> {
        let transposed = [lhs.transposed, rhs.transposed];
        let inputs = [whole.into(), lhs.stored.into(), rhs.stored.into()];
        let [whole] = cube::run(ProductInto { strategy, transposed, rows, write }, inputs);
        whole.into()
    }
}
