//! The largest elements of each row.

use burn::tensor::{Bool, IndexingUpdateOp, Int, Tensor};

use crate::profile;

/// Whether each element of `z` `[n, m]` is among the `k` largest of its row, which always are `k` or all; outside any graph. Of
/// equal elements the first come first on the CPU, and GPUs choose.
///
/// # Shapes
/// * `z`: `[n, m]`
/// * `k`: at least 1
/// * result: `[n, m]`
pub fn among_largest(z: Tensor<2>, k: usize) -> Tensor<2, Bool> {
    assert!(k > 0, "among_largest: k must be at least 1");
    let _within = profile::operation("among_largest", || 0.0);
    let z = z.without_autodiff();
    #[cfg(feature = "flex")]
    if let Some(found) = fast::among_largest(&z, k) {
        return found;
    }
    definition(z, k)
}

/// [`among_largest`] by plain tensor operations.
pub fn definition(z: Tensor<2>, k: usize) -> Tensor<2, Bool> {
    let z = z.without_autodiff();
    let (shape, device) = (z.dims(), z.device());
    let (_, indices) = z.topk_with_indices(k.min(shape[1]), 1);
    let none = Tensor::<2, Int>::zeros(shape, &device);
    let ones = Tensor::<2, Int>::ones(indices.dims(), &device);
    none.scatter(1, indices, ones, IndexingUpdateOp::Add).greater_elem(0)
}

/// The k-th largest element of each row, outside any graph; NaN counts as larger than all numbers or smaller, by its sign.
///
/// # Shapes
/// * `z`: `[n, m]`, in float32 or half precision on GPUs
/// * `k`: from 1 to m
/// * result: `[n, 1]`
pub fn kth_largest(z: Tensor<2>, k: usize) -> Tensor<2> {
    let [_, m] = z.dims();
    assert!((1..=m).contains(&k), "kth_largest: k is {k}, and rows have {m} elements");
    let _within = profile::operation("kth_largest", || 0.0);
    let z = z.without_autodiff();
    #[cfg(feature = "flex")]
    if let Some(found) = fast::kth_largest(&z, k) {
        return found;
    }
    #[cfg(feature = "cube")]
    if crate::cube::takes(&z) {
        return crate::cube::select::kth_largest(z, k);
    }
    kth_definition(z, k)
}

/// [`kth_largest`] by plain tensor operations.
pub fn kth_definition(z: Tensor<2>, k: usize) -> Tensor<2> {
    let [n, _] = z.dims();
    z.without_autodiff().topk(k, 1).slice([0..n, k - 1..k])
}

/// A selection per row, without sorting it.
#[cfg(feature = "flex")]
mod fast {
    use std::cmp::Ordering;

    use burn::tensor::{Bool, Tensor, TensorData};

    use crate::flex::{blocks, constant, values};

    /// None if the tensor isn't float32 on Flex.
    pub(super) fn among_largest(z: &Tensor<2>, k: usize) -> Option<Tensor<2, Bool>> {
        let shape = z.dims();
        let found = constant(z)?;
        let elements = values(&found);
        let rows = blocks::map(shape[0], |row| select(&elements[row * shape[1]..][..shape[1]], k));
        Some(Tensor::from_data(TensorData::new(rows.concat(), shape), &z.device()))
    }

    /// None if the tensor isn't float32 on Flex.
    pub(super) fn kth_largest(z: &Tensor<2>, k: usize) -> Option<Tensor<2>> {
        let [rows, width] = z.dims();
        let found = constant(z)?;
        let elements = values(&found);
        let least = blocks::map(rows, |row| kth(&elements[row * width..][..width], k));
        Some(Tensor::from_data(TensorData::new(least, [rows, 1]), &z.device()))
    }

    fn kth(row: &[f32], k: usize) -> f32 {
        let mut order = row.to_vec();
        *order.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
    }

    fn select(row: &[f32], k: usize) -> Vec<bool> {
        if k >= row.len() {
            return vec![true; row.len()];
        }
        let least = kth(row, k);
        let above = row.iter().filter(|x| x.total_cmp(&least) == Ordering::Greater).count();
        let mut ties = k - above;
        let open = |x: &f32| match x.total_cmp(&least) {
            Ordering::Greater => true,
            Ordering::Equal if ties > 0 => {
                ties -= 1;
                true
            }
            _ => false,
        };
        row.iter().map(open).collect()
    }
}
