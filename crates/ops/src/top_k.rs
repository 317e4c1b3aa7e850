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

    fn select(row: &[f32], k: usize) -> Vec<bool> {
        if k >= row.len() {
            return vec![true; row.len()];
        }
        let mut order = row.to_vec();
        let (_, &mut least, _) = order.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
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
