//! Some rows of a table by their indices, and adding to them: an embedding and its gradient, which has few rows that aren't zero.

#[cfg(feature = "flex")]
use burn::tensor::FloatDType;
use burn::tensor::{IndexingUpdateOp, Int, Tensor};

use crate::profile;

/// The rows of `table` that `indices` name.
///
/// # Shapes
/// * `table`: `[count, d]`
/// * `indices`: `[n]`, each in `0..count`
/// * result: `[n, d]`
pub fn select_rows(table: Tensor<2>, indices: Tensor<1, Int>) -> Tensor<2> {
    let _within = profile::operation("select_rows", || 0.0);
    #[cfg(feature = "cube")]
    if crate::cube::takes(&table) {
        let operation = by_kernel::SelectRows { indices: indices.without_autodiff() };
        let output = crate::graph::apply(operation, [table.into_dispatch()]);
        return Tensor::from_dispatch(output.expect("the backend of this tensor is known"));
    }
    table.select(0, indices)
}

/// With the gradient that [`add_rows`] sums.
#[cfg(feature = "cube")]
mod by_kernel {
    use burn::tensor::{DType, Int, Tensor};

    use super::add_rows;
    use crate::graph::{Operation, Plain};

    #[derive(Clone, Debug)]
    pub(super) struct SelectRows {
        pub indices: Tensor<1, Int>,
    }

    impl Operation<1> for SelectRows {
        /// Shape and type of the table.
        type Saved = ([usize; 2], DType);

        fn forward(&self, [table]: [Plain; 1]) -> (Plain, Self::Saved) {
            let table = Tensor::<2>::from(table);
            let of_table = (table.dims(), table.dtype());
            (table.select(0, self.indices.clone()).into(), of_table)
        }

        fn read(&self, _: [f64; 1], rows: f64) -> [f64; 1] {
            [rows]
        }

        /// The backward pass needs no row of the table.
        fn kept(&self, _: [Plain; 1]) -> [Plain; 1] {
            [self.indices.clone().into()]
        }

        fn backward(
            &self,
            _: [Plain; 1],
            (shape, dtype): Self::Saved,
            gradient: Plain,
            _wanted: [bool; 1],
        ) -> [Option<Plain>; 1] {
            let none = Tensor::zeros(shape, (&self.indices.device(), dtype));
            let sums = add_rows(none, 0, self.indices.clone(), gradient.into());
            [Some(sums.into())]
        }
    }
}

/// Adds each of `rows` to the row of `table` that its index names; all others are left as they are. `table` holds rows from the index
/// `first` on, and indices outside of it are skipped. Outside any graph; in place if the table has no other owner.
///
/// # Shapes
/// * `table`: `[count, d]`, in float32 at least
/// * `indices`: `[n]`, none negative
/// * `rows`: `[n, d]`
pub fn add_rows(
    table: Tensor<2>,
    first: usize,
    indices: Tensor<1, Int>,
    rows: Tensor<2>,
) -> Tensor<2> {
    let ([_, d], [n]) = (table.dims(), indices.dims());
    assert_eq!(rows.dims(), [n, d], "add_rows: rows for {n} indices and a table of width {d}");
    let _within = profile::operation("add_rows", || 0.0);
    #[cfg(feature = "cube")]
    if [&table, &rows].into_iter().all(crate::cube::takes_outside_graph) {
        return crate::cube::table::add_rows(table, first, indices, rows);
    }
    #[cfg(feature = "flex")]
    if crate::flex::is_plain(&table) {
        let rows = rows.clone().cast(FloatDType::from(table.dtype()));
        if crate::flex::is_plain(&rows)
            && let Some(indices) = crate::flex::indices(&indices, usize::MAX, "add_rows")
        {
            return fast(table, first, &indices, rows);
        }
    }
    definition(table, first, indices, rows)
}

/// One row after the other, in place if the table's buffer has no other owner.
#[cfg(feature = "flex")]
fn fast(table: Tensor<2>, first: usize, indices: &[usize], rows: Tensor<2>) -> Tensor<2> {
    use crate::flex::{plain, take, values};

    let [_, d] = table.dims();
    let (mut table, rows) = (take(table), take(rows));
    if d > 0 {
        let sums = table.storage_mut::<f32>();
        for (&index, row) in indices.iter().zip(values(&rows).chunks_exact(d)) {
            let at = index.checked_sub(first).map(|place| place * d);
            if let Some(sum) = at.and_then(|at| sums.get_mut(at..at + d)) {
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
        }
    }
    Tensor::from_dispatch(plain(table))
}

/// [`add_rows`] in plain tensor operations.
pub fn definition(
    table: Tensor<2>,
    first: usize,
    indices: Tensor<1, Int>,
    rows: Tensor<2>,
) -> Tensor<2> {
    let [count, _] = table.dims();
    let shape = rows.dims();
    let places = indices - first as i64;
    let outside =
        places.clone().lower_elem(0).bool_or(places.clone().greater_elem(count as i64 - 1));
    let outside = outside.unsqueeze_dim::<2>(1).expand(shape);
    let rows = rows.cast(table.dtype()).mask_fill(outside, 0.0);
    table.select_assign(0, places.clamp(0, count as i64 - 1), rows, IndexingUpdateOp::Add)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::{DType, TensorData};

    use super::*;
    use crate::{
        numbers::close,
        testing::{random, targets},
    };

    /// Oracle: a loop over the rows. Indices repeat, the table is whole or a part, and another owner of it sees no change.
    #[test]
    fn rows_are_added_where_their_indices_say() {
        let (n, d, vocabulary) = (11, 3, 6);
        let indices = targets(n, vocabulary);
        for (of_table, of_rows, tolerance) in [
            (DType::F64, DType::F64, 1e-12),
            (DType::F32, DType::F32, 1e-6),
            (DType::F32, DType::BF16, 1e-6),
        ] {
            let whole = random(1, [vocabulary, d]).cast(of_table);
            let rows = random(2, [n, d]).cast(of_rows);
            for part in [0..vocabulary, 0..2, 2..5, 5..6] {
                let table = whole.clone().narrow(0, part.start, part.len());
                let found = add_rows(table.clone(), part.start, indices.clone(), rows.clone());
                let mut expected: Vec<f64> = table.into_data().iter().collect();
                let rows: Vec<f64> = rows.to_data().iter().collect();
                for (index, row) in indices.to_data().iter::<i64>().zip(rows.chunks(d)) {
                    if part.contains(&(index as usize)) {
                        let at = (index as usize - part.start) * d;
                        expected[at..at + d].iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                    }
                }
                let expected = TensorData::new(expected, [part.len(), d]);
                let expected = Tensor::from_data(expected, (&found.device(), DType::F64));
                let what = format!("{part:?} of {of_table:?}, rows of {of_rows:?}");
                close(&what, &found.cast(DType::F64), &expected, tolerance);
            }
        }
    }
}
