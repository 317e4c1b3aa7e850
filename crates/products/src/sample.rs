//! Products with operands from a formula, so that the host can compute any element of the result.

use std::fmt;

use burn::tensor::{DType, Shape, bf16, f16};
use burn_cubecl::{
    CubeDevice,
    cubecl::{self, calculate_cube_count_elemwise, ir::ElemType, prelude::*},
    ops::numeric::empty_device_dtype,
    tensor::CubeTensor,
};

use crate::{ProductError, ProductStrategy, Write, product};

/// Shape, layouts and types of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Case {
    /// How many products of this shape at once.
    pub batch: usize,
    /// Rows of the left factor and of the result.
    pub m: usize,
    /// Columns of the right factor and of the result.
    pub n: usize,
    /// Columns of the left factor, rows of the right one.
    pub k: usize,
    /// Whether the left factor is the transpose of what is stored.
    pub lhs_transposed: bool,
    /// Whether the right factor is the transpose of what is stored.
    pub rhs_transposed: bool,
    /// Type of the factors.
    pub factors: DType,
    /// Type of the result.
    pub result: DType,
}

impl Case {
    /// Multiplications and additions.
    pub fn operations(&self) -> f64 {
        2.0 * self.batch as f64 * self.m as f64 * self.n as f64 * self.k as f64
    }

    /// Largest error that rounding can explain, over the root mean square of the elements.
    pub fn allowed(&self) -> f64 {
        match self.result {
            DType::BF16 => 2e-2,
            _ => 2e-3,
        }
    }
}

/// Like `1024×2304·(9216×2304)ᵀ bf16`, after the number of products if there are several.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, m, n, k, .. } = self;
        if *batch > 1 {
            write!(f, "{batch} of ")?;
        }
        let factor = |rows: &usize, columns: &usize, transposed| match transposed {
            true => format!("({columns}×{rows})ᵀ"),
            false => format!("{rows}×{columns}"),
        };
        let (lhs, rhs) = (factor(m, k, self.lhs_transposed), factor(k, n, self.rhs_transposed));
        write!(f, "{lhs}·{rhs} {}", self.factors.name())?;
        if self.result != self.factors {
            write!(f, "→{}", self.result.name())?;
        }
        Ok(())
    }
}

/// A case's matrices on a device.
#[derive(Clone, Debug)]
pub struct Sample {
    case: Case,
    /// `[m, k]`, or `[batch, m, k]`
    pub lhs: CubeTensor,
    /// `[k, n]`, or `[batch, k, n]`
    pub rhs: CubeTensor,
    /// `[m, n]` or `[batch, m, n]`, uninitialised.
    pub output: CubeTensor,
}

const SEEDS: [u32; 2] = [0x51ed_270b, 0xb529_7a4d];

impl Sample {
    /// Generates the operands on the device.
    pub fn new(case: Case, device: &CubeDevice) -> Self {
        let Case { batch, m, n, k, .. } = case;
        let [lhs, rhs] =
            [([m, k], case.lhs_transposed, SEEDS[0]), ([k, n], case.rhs_transposed, SEEDS[1])].map(
                |([rows, columns], transposed, seed)| {
                    let stored = if transposed { [columns, rows] } else { [rows, columns] };
                    let mut matrix = draw(shape(batch, stored), case.factors, seed, device);
                    if transposed {
                        let rank = matrix.meta.shape().len();
                        matrix.meta.swap(rank - 2, rank - 1);
                    }
                    matrix
                },
            );
        let output =
            empty_device_dtype(device.client(), device.clone(), shape(batch, [m, n]), case.result);
        Self { case, lhs, rhs, output }
    }

    /// Queues the product, over the output.
    ///
    /// # Errors
    /// See [`product`].
    pub fn compute(&self, strategy: ProductStrategy) -> Result<(), ProductError> {
        self.write(strategy, Write::Over)
    }

    fn write(&self, strategy: ProductStrategy, write: Write) -> Result<(), ProductError> {
        product(strategy, &self.lhs, &self.rhs, &self.output, write)
    }

    /// Waits for the device.
    ///
    /// # Errors
    /// If the kernel that writes the output didn't compile or didn't run.
    pub fn wait(&self) -> Result<(), ProductError> {
        let handles = [&self.output.handle];
        cubecl::future::block_on(self.output.client.sync_buffers(handles))
            .map_err(|error| ProductError::Device(error.to_string()))
    }

    /// Largest absolute difference to so many times the float64 product, over the root mean square of its elements. Large outputs are
    /// compared at sampled elements, including the corners.
    ///
    /// # Errors
    /// If the output can't be read.
    fn error(&self, times: f64) -> Result<f64, ProductError> {
        let Case { batch, m, n, k, .. } = self.case;
        let whole = batch * m * n * k <= 1 << 23;
        let rows = if whole { spread(m, m) } else { spread(m, 5) };
        let columns = if whole { spread(n, n) } else { spread(n, (1 << 19) / k) };
        let mut largest = 0.0f64;
        for (matrix, row) in
            spread(batch, 5).into_iter().flat_map(|i| rows.iter().map(move |row| (i, *row)))
        {
            let values = self.row(matrix, row)?;
            for column in &columns {
                let terms =
                    (0..k).map(|i| self.lhs_at(matrix, row, i) * self.rhs_at(matrix, i, *column));
                let difference = (values[*column] - times * terms.sum::<f64>()).abs();
                // NaN must not pass.
                largest = if difference.is_nan() { f64::INFINITY } else { largest.max(difference) };
            }
        }
        Ok(largest / ((k as f64).sqrt() / 3.0))
    }

    /// The largest absolute difference of the output to the float64 product, over the root mean square of its elements, at sampled
    /// elements if it is large.
    ///
    /// # Errors
    /// If it is larger than [`Case::allowed`], or if the output can't be read.
    pub fn verify(&self, strategy: ProductStrategy) -> Result<f64, ProductError> {
        self.verify_times(1.0, strategy)
    }

    fn verify_times(&self, times: f64, strategy: ProductStrategy) -> Result<f64, ProductError> {
        let (error, allowed) = (self.error(times)?, self.case.allowed());
        if error > allowed {
            let (strategy, case) = (strategy.to_string(), self.case.to_string());
            return Err(ProductError::Wrong { strategy, case, error, allowed });
        }
        Ok(error)
    }

    fn lhs_at(&self, matrix: usize, row: usize, column: usize) -> f64 {
        let Case { m, k, lhs_transposed, .. } = self.case;
        let at = if lhs_transposed { column * m + row } else { row * k + column };
        value(matrix * m * k + at, SEEDS[0])
    }

    fn rhs_at(&self, matrix: usize, row: usize, column: usize) -> f64 {
        let Case { n, k, rhs_transposed, .. } = self.case;
        let at = if rhs_transposed { column * k + row } else { row * n + column };
        value(matrix * k * n + at, SEEDS[1])
    }

    /// Reads one row of a matrix of the output.
    fn row(&self, matrix: usize, row: usize) -> Result<Vec<f64>, ProductError> {
        let (width, size) = (self.case.n, self.case.result.size());
        let strides = self.output.meta.strides();
        let rows = strides[strides.len() - 2];
        let matrices = if self.case.batch > 1 { strides[0] } else { 0 };
        let first = ((matrix * matrices + row * rows) * size) as u64;
        let handle = &self.output.handle;
        let behind = handle.size_in_used() - first - (width * size) as u64;
        let bytes = self
            .output
            .client
            .read_one(handle.clone().offset_start(first).offset_end(behind))
            .map_err(|error| ProductError::Device(error.to_string()))?;
        let elements = bytes.chunks_exact(size);
        Ok(match self.case.result {
            DType::BF16 => {
                elements.map(|x| f64::from(bf16::from_le_bytes([x[0], x[1]]).to_f32())).collect()
            }
            DType::F16 => {
                elements.map(|x| f64::from(f16::from_le_bytes([x[0], x[1]]).to_f32())).collect()
            }
            _ => {
                elements.map(|x| f64::from(f32::from_le_bytes([x[0], x[1], x[2], x[3]]))).collect()
            }
        })
    }
}

/// Small products of awkward shapes (one row, odd sizes, sizes next to tile sizes) in the three layouts of a linear map's
/// forward and backward passes.
pub fn awkward([factors, result]: [DType; 2]) -> Vec<Case> {
    const SHAPES: [[usize; 4]; 9] = [
        [1, 128, 128, 64],
        [1, 257, 96, 40],
        [1, 33, 65, 129],
        [1, 64, 1000, 72],
        [1, 128, 8, 512],
        [1, 5, 640, 256],
        [1, 1, 7, 5],
        [3, 33, 65, 24],
        [8, 128, 48, 64],
    ];
    let layouts = [(false, true), (false, false), (true, false)];
    let cases = SHAPES.into_iter().flat_map(|[batch, m, n, k]| {
        layouts.map(|(lhs_transposed, rhs_transposed)| Case {
            batch,
            m,
            n,
            k,
            lhs_transposed,
            rhs_transposed,
            factors,
            result,
        })
    });
    cases.collect()
}

/// Computes a product and verifies it (see [`Sample::verify`]); adds it to itself and verifies that, if the result is float32 and the
/// strategy adds.
///
/// # Errors
/// If the strategy doesn't support the product, fails or is wrong.
pub fn check(
    strategy: ProductStrategy,
    case: Case,
    device: &CubeDevice,
) -> Result<f64, ProductError> {
    let sample = Sample::new(case, device);
    sample.compute(strategy)?;
    sample.wait()?;
    let error = sample.verify(strategy)?;
    if case.result != DType::F32 {
        return Ok(error);
    }
    match sample.write(strategy, Write::Add) {
        Ok(()) => {
            sample.wait()?;
            Ok(error.max(sample.verify_times(2.0, strategy)?))
        }
        Err(ProductError::Refused { .. }) => Ok(error),
        Err(other) => Err(other),
    }
}

/// Up to `most` of `0..count` at about equal distances, including the first and the last.
fn spread(count: usize, most: usize) -> Vec<usize> {
    let most = most.clamp(2, 64.max(count.min(1024)));
    if count <= most {
        return (0..count).collect();
    }
    (0..most).map(|i| i * (count - 1) / (most - 1)).collect()
}

/// Element `i` of a stored operand: an odd multiple of 1/256 in (-1, 1), exact in bfloat16.
fn value(i: usize, seed: u32) -> f64 {
    let mut bits = (i as u32).wrapping_mul(0x9e37_79b9).wrapping_add(seed);
    bits = (bits ^ (bits >> 16)).wrapping_mul(0x7feb_352d);
    bits = (bits ^ (bits >> 15)).wrapping_mul(0x846c_a68b);
    (f64::from(bits >> 24) * 2.0 - 255.0) / 256.0
}

fn shape(batch: usize, [rows, columns]: [usize; 2]) -> Shape {
    match batch {
        1 => Shape::new([rows, columns]),
        _ => Shape::new([batch, rows, columns]),
    }
}

fn draw(shape: Shape, dtype: DType, seed: u32, device: &CubeDevice) -> CubeTensor {
    let client = device.client();
    let rank = shape.num_dims();
    let width = shape[rank - 1];
    let rows = shape.num_elements() / width;
    let matrix = empty_device_dtype(client.clone(), device.clone(), shape, dtype);
    let dim = CubeDim::new_1d(256);
    let count = calculate_cube_count_elemwise(&client, rows * width, dim);
    // SAFETY: the kernel keeps to `rows` rows of `width` elements, which the matrices have together.
    unsafe {
        draw_kernel::launch_unchecked(
            &client,
            count,
            dim,
            matrix.required_address_type(),
            matrix.clone().into_buffer_arg(),
            rows * width,
            width,
            matrix.meta.strides()[rank - 2],
            seed,
            burn::backend::cubecl::dtype_to_storage_type(dtype),
        );
    }
    matrix
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn draw_kernel<F: Float>(
    matrix: &mut [F],
    elements: usize,
    width: usize,
    stride: usize,
    seed: u32,
    #[define(F)] _type: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < elements {
        let bits = u32::cast_from(i) * 0x9e37_79b9u32 + seed;
        let bits = (bits ^ (bits >> 16)) * 0x7feb_352du32;
        let bits = (bits ^ (bits >> 15)) * 0x846c_a68bu32;
        let value = (f32::cast_from(bits >> 24) * 2.0f32 - 255.0f32) / 256.0f32;
        matrix[(i / width) * stride + i % width] = F::cast_from(value);
    }
}
