//! Memory layouts of a product's operands.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::ProductError;

/// A matrix in memory: contiguous rows at equal distances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(super) struct Layout {
    /// Whether the rows in memory are the matrix's columns.
    pub transposed: bool,
    /// Elements from the start of one row in memory to the start of the next.
    pub stride: usize,
}

/// Shapes, strides and types of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(super) struct Layouts {
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
    let [Ok([m, k]), Ok([rows, n]), Ok(result)] =
        shapes.each_ref().map(|shape| <[usize; 2]>::try_from(shape.as_slice()))
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
    if k != rows || result != [m, n] || !types || output_layout.transposed {
        return Err(no_product());
    }
    Ok(Layouts {
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

/// None if neither rows nor columns are contiguous.
fn layout(matrix: &CubeTensor) -> Option<Layout> {
    let [rows, columns] = <[usize; 2]>::try_from(matrix.meta.shape().to_vec()).ok()?;
    let [down, across] = <[usize; 2]>::try_from(matrix.meta.strides().to_vec()).ok()?;
    if matrix.meta.is_tiled() {
        None
    } else if (across == 1 || columns <= 1) && (rows <= 1 || down >= columns) {
        Some(Layout { transposed: false, stride: down.max(columns).max(1) })
    } else if (down == 1 || rows <= 1) && (columns <= 1 || across >= rows) {
        Some(Layout { transposed: true, stride: across.max(rows).max(1) })
    } else {
        None
    }
}
