//! A matrix split by rows into several tensors: an embedding table that exceeds the largest tensor of the device.

use burn::{
    backend::DispatchTensor,
    tensor::{DType, Device, Int, Tensor},
};

use crate::{
    graph::{self, Operation},
    select_rows,
};

/// A matrix `[rows, d]` in one to [`Rows::MOST_PARTS`] tensors, each of which holds consecutive rows.
#[derive(Clone, Debug)]
pub struct Rows(Vec<Tensor<2>>);

impl From<Tensor<2>> for Rows {
    fn from(whole: Tensor<2>) -> Self {
        Self(vec![whole])
    }
}

impl Rows {
    /// The most parts: an operation records each of them as an input of its own.
    pub const MOST_PARTS: usize = 4;

    /// From parts `[its rows, d]`, first rows first.
    ///
    /// # Panics
    /// If there are no parts or too many, or if one is empty or of another width.
    pub fn new(parts: Vec<Tensor<2>>) -> Self {
        let dims: Vec<_> = parts.iter().map(Tensor::dims).collect();
        assert!(
            (1..=Self::MOST_PARTS).contains(&dims.len())
                && dims.iter().all(|&[rows, width]| rows > 0 && width == dims[0][1]),
            "expected 1 to {} non-empty parts of equal width, got {dims:?}",
            Self::MOST_PARTS,
        );
        Self(parts)
    }

    /// The size of the whole matrix, `[rows, d]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.0.iter().map(|part| part.dims()[0]).sum(), self.0[0].dims()[1]]
    }

    /// The parts, first rows first.
    pub fn parts(&self) -> &[Tensor<2>] {
        &self.0
    }

    /// The matrix if it is in one part.
    pub(crate) fn whole(&self) -> Option<&Tensor<2>> {
        match self.0.as_slice() {
            [whole] => Some(whole),
            _ => None,
        }
    }

    /// The matrix as one tensor, for small matrices or devices without a limit.
    pub fn joined(self) -> Tensor<2> {
        Tensor::cat(self.0, 0)
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.0[0].dtype()
    }

    /// The device of its parts.
    pub fn device(&self) -> Device {
        self.0[0].device()
    }

    /// The same matrix outside any graph.
    pub fn without_autodiff(self) -> Self {
        Self(self.0.into_iter().map(Tensor::without_autodiff).collect())
    }

    /// Whether it is a leaf of a graph.
    pub fn is_require_grad(&self) -> bool {
        self.0.iter().any(Tensor::is_require_grad)
    }

    /// Applies `f` to each part, giving `[n, rows of the part]`, and concatenates the results to `[n, rows]`.
    pub fn columns(&self, f: impl Fn(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
        match self.whole() {
            Some(whole) => f(whole.clone()),
            None => Tensor::cat(self.0.iter().cloned().map(f).collect(), 1),
        }
    }

    /// The rows at `indices` `[n]`, each in `0..rows`: `[n, d]`.
    pub fn select(&self, indices: Tensor<1, Int>) -> Tensor<2> {
        if let Some(whole) = self.whole() {
            return select_rows(whole.clone(), indices);
        }
        let shape = [indices.dims()[0], self.dims()[1]];
        let mut first = 0;
        let mut selected: Option<Tensor<2>> = None;
        for part in &self.0 {
            let rows = part.dims()[0] as i64;
            // Every part is read at every index, clamped to its own rows, because GPUs don't check bounds.
            let here = part.clone().select(0, (indices.clone() - first).clamp(0, rows - 1));
            selected = Some(match selected {
                None => here,
                Some(before) => {
                    let reached = indices.clone().greater_equal_elem(first);
                    before.mask_where(reached.unsqueeze_dim::<2>(1).expand(shape), here)
                }
            });
            first += rows;
        }
        selected.expect("a matrix has at least one part")
    }
}

/// Runs an operation on hidden states and a matrix, recorded in the graph if one of them is tracked; `None` on an unknown backend.
pub(crate) fn apply<O>(operation: O, hidden: &Tensor<2>, weight: &Rows) -> Option<DispatchTensor>
where
    O: Operation<2> + Operation<3> + Operation<4> + Operation<5>,
{
    let hidden = hidden.clone().into_dispatch();
    let part = |part: &Tensor<2>| part.clone().into_dispatch();
    match weight.parts() {
        [a] => graph::apply(operation, [hidden, part(a)]),
        [a, b] => graph::apply(operation, [hidden, part(a), part(b)]),
        [a, b, c] => graph::apply(operation, [hidden, part(a), part(b), part(c)]),
        [a, b, c, d] => graph::apply(operation, [hidden, part(a), part(b), part(c), part(d)]),
        _ => unreachable!("`Rows::new` limits the number of parts"),
    }
}
