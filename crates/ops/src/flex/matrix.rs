//! Strided float32 matrices and their products.

/// A strided view of a slice.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix without gaps between rows.
    pub fn dense(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(values, rows, columns, columns)
    }

    /// Rows `row_stride` apart, each contiguous.
    pub fn strided(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(
            rows == 0 || columns == 0 || (rows - 1) * row_stride + columns <= values.len(),
            "a {rows}×{columns} matrix of stride {row_stride} exceeds its {} values",
            values.len()
        );
        Self { values, rows, columns, row_stride, column_stride: 1 }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Self {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// Whether a product replaces its destination or is added to it.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Write {
    Replace,
    Add,
}

/// `factor·a·b` on this thread, into rows `row_stride` apart, each contiguous.
///
/// # Safety
/// `destination` must be valid for writing such a matrix, and initialised for [`Write::Add`]; no other thread may touch its
/// elements meanwhile.
pub(crate) unsafe fn multiply_into(
    destination: *mut f32,
    row_stride: usize,
    write: Write,
    factor: f32,
    a: Matrix,
    b: Matrix,
) {
    // SAFETY: guaranteed by the caller.
    unsafe { gemm(destination, row_stride, write, factor, a, b, gemm::Parallelism::None) }
}

/// The call of the gemm crate behind all products.
///
/// # Safety
/// As for [`multiply_into`].
unsafe fn gemm(
    destination: *mut f32,
    row_stride: usize,
    write: Write,
    factor: f32,
    a: Matrix,
    b: Matrix,
    parallelism: gemm::Parallelism,
) {
    assert_eq!(a.columns, b.rows, "the inner dimensions of a product differ");
    // SAFETY: the operands are within their slices, as checked by `Matrix::strided`; the caller guarantees the destination.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            destination,
            1,
            row_stride as isize,
            write == Write::Add,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `factor·a·b` on this thread, into a dense slice.
pub(crate) fn multiply(destination: &mut [f32], write: Write, factor: f32, a: Matrix, b: Matrix) {
    assert_eq!(
        destination.len(),
        a.rows * b.columns,
        "the destination of a product has the wrong size"
    );
    // SAFETY: the slice is as large as the product, and exclusive.
    unsafe { multiply_into(destination.as_mut_ptr(), b.columns, write, factor, a, b) }
}

/// `a·b`, dense, on all threads.
///
/// gemm distributes tiles of the result and never splits the inner sum, so the result doesn't depend on the number of threads.
pub(crate) fn product(a: Matrix, b: Matrix) -> Vec<f32> {
    let length = a.rows * b.columns;
    let mut output = Vec::with_capacity(length);
    let destination: *mut f32 = output.as_mut_ptr();
    // SAFETY: the vector has the capacity of the dense product, and gemm writes all of it.
    unsafe {
        gemm(destination, b.columns, Write::Replace, 1.0, a, b, gemm::Parallelism::Rayon(0));
        output.set_len(length);
    }
    output
}
