//! From flat tokens to heads in padded rows and back, in one kernel each: gathering, changing the layout and adding up in one go.

use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{Int, Shape, Tensor},
};
use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::{
    Kernel,
    matrix::{Matrix, address},
    place::{Plan, UNITS},
    run,
};
use crate::graph::Plain;

/// The sizes of padded rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PaddedRows {
    pub rows: usize,
    /// Cells per row.
    pub width: usize,
}

impl PaddedRows {
    /// x `[1, tokens, heads, head_dim]` and the token of each cell, `[rows · width]` → `[rows, heads, width, head_dim]`, zero where
    /// there is no token, which is -1.
    pub fn heads(self, x: Plain, tokens: &Tensor<1, Int>) -> Tensor<4> {
        let [output] = run(ToHeads(self), [x, tokens.clone().into()]);
        output.into()
    }

    /// The reverse: each token's cell, plus that in `second` if it isn't -1; both `[tokens]`.
    pub fn tokens(
        self,
        x: Tensor<4>,
        cells: &Tensor<1, Int>,
        second: Option<&Tensor<1, Int>>,
    ) -> Plain {
        let adds = second.is_some();
        let second = second.unwrap_or(cells).clone();
        let kernel = ToTokens { width: self.width, adds };
        let [output] = run(kernel, [x.into(), cells.clone().into(), second.into()]);
        output
    }
}

#[derive(Clone, Debug)]
struct ToHeads(PaddedRows);

impl Kernel<2, 1> for ToHeads {
    const NAME: &'static str = "fpo::heads_of_rows";

    fn outputs(&self, [x, _]: [&TensorSpec; 2]) -> [TensorSpec; 1] {
        let PaddedRows { rows, width } = self.0;
        [TensorSpec::new(Shape::new([rows, x.shape[2], width, x.shape[3]]), x.dtype)]
    }

    fn launch(&self, [x, tokens]: [Matrix; 2], [output]: [Matrix; 1]) {
        let (cells, head_dim) = (output.count(), output.width());
        let heads = cells / (self.0.rows * self.0.width).max(1);
        let plan = Plan { group: UNITS, cubes: (cells * head_dim).div_ceil(UNITS) };
        let address = address([&x, &output]);
        let strides = [x.stride, output.stride];
        let types = [x.element(), tokens.element()];
        // SAFETY: the kernel only accesses `cells` rows of `head_dim` elements of the output, and rows of x of tokens that exist.
        unsafe {
            heads_of_rows::launch_unchecked(
                &x.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                x.argument(),
                tokens.argument(),
                output.argument(),
                cells,
                heads,
                self.0.width,
                head_dim,
                strides[0],
                strides[1],
                types,
            );
        }
    }
}

/// A unit per element.
#[cube(launch_unchecked, address_type = "dynamic")]
fn heads_of_rows<F: Float, I: Numeric>(
    x: &[F],
    tokens: &[I],
    output: &mut [F],
    cells: usize,
    heads: usize,
    width: usize,
    head_dim: usize,
    x_stride: usize,
    output_stride: usize,
    #[define(F, I)] _types: [ElemType; 2],
) {
    let element = CUBE_POS * UNITS + UNIT_POS_X as usize;
    let cell = element / head_dim;
    if cell < cells {
        let feature = element % head_dim;
        let row_and_head = cell / width;
        let token = i32::cast_from(tokens[row_and_head / heads * width + cell % width]);
        let mut value = F::new(0.0);
        if token >= 0 {
            let from = usize::cast_from(token) * heads + row_and_head % heads;
            value = x[from * x_stride + feature];
        }
        output[cell * output_stride + feature] = value;
    }
}

#[derive(Clone, Debug)]
struct ToTokens {
    width: usize,
    adds: bool,
}

impl Kernel<3, 1> for ToTokens {
    const NAME: &'static str = "fpo::tokens_of_rows";

    fn outputs(&self, [x, cells, _]: [&TensorSpec; 3]) -> [TensorSpec; 1] {
        let tokens = cells.shape.num_elements();
        [TensorSpec::new(Shape::new([1, tokens, x.shape[1], x.shape[3]]), x.dtype)]
    }

    fn launch(&self, [x, cells, second]: [Matrix; 3], [output]: [Matrix; 1]) {
        let (count, head_dim) = (output.count(), output.width());
        let heads = count / cells.width().max(1);
        let plan = Plan { group: UNITS, cubes: (count * head_dim).div_ceil(UNITS) };
        let address = address([&x, &output]);
        let strides = [x.stride, output.stride];
        let types = [x.element(), cells.element()];
        // SAFETY: the kernel only accesses `count` rows of `head_dim` elements of the output, and rows of x of cells that exist.
        unsafe {
            tokens_of_rows::launch_unchecked(
                &x.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                x.argument(),
                cells.argument(),
                second.argument(),
                output.argument(),
                count,
                heads,
                self.width,
                head_dim,
                strides[0],
                strides[1],
                self.adds,
                types,
            );
        }
    }
}

/// A unit per element.
#[cube(launch_unchecked, address_type = "dynamic")]
fn tokens_of_rows<F: Float, I: Numeric>(
    x: &[F],
    cells: &[I],
    second: &[I],
    output: &mut [F],
    count: usize,
    heads: usize,
    width: usize,
    head_dim: usize,
    x_stride: usize,
    output_stride: usize,
    #[comptime] adds: bool,
    #[define(F, I)] _types: [ElemType; 2],
) {
    let element = CUBE_POS * UNITS + UNIT_POS_X as usize;
    let token_and_head = element / head_dim;
    if token_and_head < count {
        let feature = element % head_dim;
        let (token, head) = (token_and_head / heads, token_and_head % heads);
        let cell = usize::cast_from(cells[token]);
        let from = (cell / width * heads + head) * width + cell % width;
        let mut value = f32::cast_from(x[from * x_stride + feature]);
        if adds {
            let cell = i32::cast_from(second[token]);
            if cell >= 0 {
                let cell = usize::cast_from(cell);
                let from = (cell / width * heads + head) * width + cell % width;
                value += f32::cast_from(x[from * x_stride + feature]);
            }
        }
        output[token_and_head * output_stride + feature] = F::cast_from(value);
    }
}
