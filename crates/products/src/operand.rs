//! Memory layouts of a product's operands: matrices, or batches of them.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::ProductError;

/// Matrices in memory: contiguous rows at equal distances, and equal distances between matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(super) struct Layout {
    /// Whether the rows in memory are the matrix's columns.
    pub transposed: bool,
    /// Elements from the start of one row in memory to the start of the next.
    pub stride: usize,
    /// Elements from the start of one matrix to the start of the next; 0 if there is one.
    pub batch_stride: usize,
}

/// Shapes, strides and types of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(super) struct Layouts {
    /// Number of products.
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub lhs: Layout,
    pub rhs: Layout,
    pub output: Layout,
    pub factors: DType,
    pub result: DType,
}

/// The layouts of `output = lhs·rhs`; an error where they don't fit together.
pub(super) fn layouts(
    lhs: &CubeTensor,
    rhs: &CubeTensor,
    output: &CubeTensor,
) -> Result<Layouts, ProductError> {
    let shapes = [lhs, rhs, output].map(|x| x.meta.shape().to_vec());
    let no_product = || {
        ProductError::Shapes(format!(
            "{:?} {:?} × {:?} {:?} → {:?} {:?}",
            shapes[0], lhs.dtype, shapes[1], rhs.dtype, shapes[2], output.dtype
        ))
    };
    let [Some((batch, [m, k])), Some((rhs_batch, [rows, n])), Some((output_batch, result))] =
        shapes.each_ref().map(|shape| matrices(shape))
    else {
        return Err(no_product());
    };
    let types = lhs.dtype == rhs.dtype
        && matches!(lhs.dtype, DType::F32 | DType::F16 | DType::BF16)
        && (output.dtype == lhs.dtype || output.dtype == DType::F32);
    let [Some(lhs_layout), Some(rhs_layout), Some(output_layout)] = [lhs, rhs, output].map(layout)
    else {
        return Err(no_product());
    };
    let fit = k == rows && result == [m, n] && [rhs_batch, output_batch] == [batch; 2];
    if !fit || !types || output_layout.transposed {
        return Err(no_product());
    }
    Ok(Layouts {
        batch,
        m,
        n,
        k,
        lhs: lhs_layout,
        rhs: rhs_layout,
        output: output_layout,
        factors: lhs.dtype,
        result: output.dtype,
    })
}

/// The number of matrices in a tensor of this shape, and their shape.
fn matrices(shape: &[usize]) -> Option<(usize, [usize; 2])> {
    match *shape {
        [rows, columns] => Some((1, [rows, columns])),
        [batch, rows, columns] => Some((batch, [rows, columns])),
        _ => None,
    }
}

/// None if neither rows nor columns are contiguous, or if the matrices of a batch overlap.
fn layout(tensor: &CubeTensor) -> Option<Layout> {
    let (batch, [rows, columns]) = matrices(tensor.meta.shape())?;
    let (batch_stride, [down, across]) = matrices(tensor.meta.strides())?;
    let batch_stride = if batch > 1 { batch_stride } else { 0 };
    let layout = |transposed, inner: usize, outer: usize, distance: usize| {
        let stride = distance.max(inner).max(1);
        let apart = batch <= 1 || batch_stride >= outer.saturating_sub(1) * stride + inner;
        apart.then_some(Layout { transposed, stride, batch_stride })
    };
    if tensor.meta.is_tiled() {
        None
    } else if (across == 1 || columns <= 1) && (rows <= 1 || down >= columns) {
        layout(false, columns, rows, down)
    } else if (down == 1 || rows <= 1) && (columns <= 1 || across >= rows) {
        layout(true, rows, columns, across)
    } else {
        None
    }
}
