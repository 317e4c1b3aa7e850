//! Sparse vectors of features.

/// The stored elements of a vector by ascending index; all others are zero.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SparseFeatures {
    /// Feature indices, strictly ascending, `[stored]`.
    pub indices: Vec<u32>,
    /// Their values, `[stored]`.
    pub values: Vec<f32>,
}

/// Borrowed [`SparseFeatures`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SparseView<'a> {
    /// Feature indices, strictly ascending, `[stored]`.
    pub indices: &'a [u32],
    /// Their values, `[stored]`.
    pub values: &'a [f32],
}

impl SparseFeatures {
    /// The non-zero elements of a dense vector `[d_sae]`.
    pub fn from_dense(dense: &[f32]) -> Self {
        let nonzero = dense.iter().enumerate().filter(|(_, value)| **value != 0.0);
        let (indices, values) = nonzero.map(|(index, value)| (index as u32, *value)).unzip();
        Self { indices, values }
    }

    /// Keeps the `n` elements of largest magnitude, lower indices first in case of ties. Returns an upper bound on the magnitudes
    /// that were dropped: the smallest one kept, or 0 if nothing was dropped.
    pub fn keep_top(&mut self, n: usize) -> f32 {
        if self.values.len() <= n {
            return 0.0;
        }
        let mut order: Vec<usize> = (0..self.values.len()).collect();
        order.sort_by(|&a, &b| self.values[b].abs().total_cmp(&self.values[a].abs()));
        order.truncate(n);
        let bound = order.last().map_or(f32::INFINITY, |&smallest| self.values[smallest].abs());
        order.sort_unstable();
        self.indices = order.iter().map(|&kept| self.indices[kept]).collect();
        self.values = order.iter().map(|&kept| self.values[kept]).collect();
        bound
    }

    /// A borrowed view.
    pub fn view(&self) -> SparseView<'_> {
        SparseView { indices: &self.indices, values: &self.values }
    }

    /// As [`SparseView::to_dense_into`].
    pub fn to_dense_into(&self, dense: &mut [f32]) {
        self.view().to_dense_into(dense);
    }
}

impl SparseView<'_> {
    /// Writes the vector, zeros included, into `dense` `[d_sae]`.
    ///
    /// # Panics
    /// If an index isn't below `dense.len()`. In a cache, all are below its [`d_sae`](super::ReferenceCache::d_sae).
    pub fn to_dense_into(&self, dense: &mut [f32]) {
        dense.fill(0.0);
        for (&index, &value) in self.indices.iter().zip(self.values) {
            dense[index as usize] = value;
        }
    }

    /// An owned copy.
    pub fn to_owned(&self) -> SparseFeatures {
        SparseFeatures { indices: self.indices.to_vec(), values: self.values.to_vec() }
    }
}
