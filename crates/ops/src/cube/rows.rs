//! From flat tokens to heads in padded rows and back: gathering, changing the layout and adding up in one go. A kernel does it for
//! several tensors.

use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{Int, Shape, Tensor},
};
use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::{
    KernelOfMany,
    matrix::{Matrix, address},
    place::{Plan, UNITS},
    run_of_many,
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
    /// Each x `[1, tokens, its heads, head_dim]`, all of one type, and the token of each cell, `[rows · width]` →
    /// `[rows, heads, width, head_dim]`, zero where there is no token, which is -1.
    pub fn heads(self, xs: Vec<Plain>, tokens: &Tensor<1, Int>) -> Vec<Tensor<4>> {
        let inputs = xs.into_iter().chain([tokens.clone().into()]).collect();
        run_of_many(ToHeads(self), inputs).into_iter().map(Tensor::from).collect()
    }

    /// The reverse: each token's cell, plus that in `second` if it isn't -1; both `[tokens]`.
    pub fn tokens(
        self,
        xs: Vec<Tensor<4>>,
        cells: &Tensor<1, Int>,
        second: Option<&Tensor<1, Int>>,
    ) -> Vec<Plain> {
        let adds = second.is_some();
        let second = second.unwrap_or(cells).clone();
        let xs = xs.into_iter().map(Plain::from);
        let inputs = xs.chain([cells.clone().into(), second.into()]).collect();
        run_of_many(ToTokens { width: self.width, adds }, inputs)
    }
}

/// One of the tensors. `output` has `rows` rows of `head_dim` elements.
#[derive(CubeType, CubeLaunch)]
struct Part<F: Float> {
    x: Box<[F]>,
    output: Box<[F]>,
    rows: usize,
    heads: usize,
    head_dim: usize,
    x_stride: usize,
    output_stride: usize,
}

/// As many cubes as cover all parts, one part after the other, with a unit per element of the outputs.
fn plan(outputs: &[Matrix]) -> Plan {
    let cubes = outputs.iter().map(|output| (output.count() * output.width()).div_ceil(UNITS));
    Plan { group: UNITS, cubes: cubes.sum() }
}

/// `heads` gives those of an output.
fn parts<F: Float>(
    xs: &[Matrix],
    outputs: &[Matrix],
    heads: impl Fn(&Matrix) -> usize,
) -> SequenceArg<Part<F>> {
    let parts = xs.iter().zip(outputs).map(|(x, output)| {
        PartLaunch::new(
            x.clone().argument(),
            output.clone().argument(),
            output.count(),
            heads(output),
            output.width(),
            x.stride,
            output.stride,
        )
    });
    parts.collect()
}

#[derive(Clone, Debug)]
struct ToHeads(PaddedRows);

impl KernelOfMany for ToHeads {
    const NAME: &'static str = "fpo::heads_of_rows";

    fn outputs(&self, inputs: &[TensorSpec]) -> Vec<TensorSpec> {
        let PaddedRows { rows, width } = self.0;
        let output = |x: &TensorSpec| {
            TensorSpec::new(Shape::new([rows, x.shape[2], width, x.shape[3]]), x.dtype)
        };
        inputs[..inputs.len() - 1].iter().map(output).collect()
    }

    fn launch(&self, inputs: Vec<Matrix>, outputs: Vec<Matrix>) {
        let (xs, tokens) = inputs.split_at(outputs.len());
        let PaddedRows { rows, width } = self.0;
        let plan = plan(&outputs);
        let address = address(xs.iter().chain(&outputs));
        let types = [xs[0].element(), tokens[0].element()];
        // SAFETY: the kernel only accesses as many rows of an output as it has, of `head_dim` elements, and rows of x of tokens that
        // exist.
        unsafe {
            heads_of_rows::launch_unchecked(
                &xs[0].client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                parts(xs, &outputs, |output| output.count() / (rows * width).max(1)),
                tokens[0].clone().argument(),
                width,
                types,
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn heads_of_rows<F: Float, I: Numeric>(
    parts: &mut Sequence<Part<F>>,
    tokens: &[I],
    width: usize,
    #[define(F, I)] _types: [ElemType; 2],
) {
    let mut before = 0usize;
    #[unroll]
    for which in 0..parts.len() {
        let part = parts.index_mut(which);
        let cubes = (part.rows * part.head_dim).div_ceil(UNITS);
        if CUBE_POS >= before && CUBE_POS < before + cubes {
            let element = (CUBE_POS - before) * UNITS + UNIT_POS_X as usize;
            let cell = element / part.head_dim;
            if cell < part.rows {
                let feature = element % part.head_dim;
                let row_and_head = cell / width;
                let token =
                    i32::cast_from(tokens[row_and_head / part.heads * width + cell % width]);
                let mut value = F::new(0.0);
                if token >= 0 {
                    let from = usize::cast_from(token) * part.heads + row_and_head % part.heads;
                    value = part.x[from * part.x_stride + feature];
                }
                part.output[cell * part.output_stride + feature] = value;
            }
        }
        before += cubes;
    }
}

#[derive(Clone, Debug)]
struct ToTokens {
    width: usize,
    adds: bool,
}

impl KernelOfMany for ToTokens {
    const NAME: &'static str = "fpo::tokens_of_rows";

    fn outputs(&self, inputs: &[TensorSpec]) -> Vec<TensorSpec> {
        let (xs, cells) = inputs.split_at(inputs.len() - 2);
        let tokens = cells[0].shape.num_elements();
        let output = |x: &TensorSpec| {
            TensorSpec::new(Shape::new([1, tokens, x.shape[1], x.shape[3]]), x.dtype)
        };
        xs.iter().map(output).collect()
    }

    fn launch(&self, inputs: Vec<Matrix>, outputs: Vec<Matrix>) {
        let (xs, cells) = inputs.split_at(outputs.len());
        let tokens = cells[0].width();
        let plan = plan(&outputs);
        let address = address(xs.iter().chain(&outputs));
        let types = [xs[0].element(), cells[0].element()];
        // SAFETY: the kernel only accesses as many rows of an output as it has, of `head_dim` elements, and rows of x of cells that
        // exist.
        unsafe {
            tokens_of_rows::launch_unchecked(
                &xs[0].client(),
                plan.cube_count(),
                plan.cube_dim(),
                address,
                parts(xs, &outputs, |output| output.count() / tokens.max(1)),
                cells[0].clone().argument(),
                cells[1].clone().argument(),
                self.width,
                self.adds,
                types,
            );
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn tokens_of_rows<F: Float, I: Numeric>(
    parts: &mut Sequence<Part<F>>,
    cells: &[I],
    second: &[I],
    width: usize,
    #[comptime] adds: bool,
    #[define(F, I)] _types: [ElemType; 2],
) {
    let mut before = 0usize;
    #[unroll]
    for which in 0..parts.len() {
        let part = parts.index_mut(which);
        let cubes = (part.rows * part.head_dim).div_ceil(UNITS);
        if CUBE_POS >= before && CUBE_POS < before + cubes {
            let element = (CUBE_POS - before) * UNITS + UNIT_POS_X as usize;
            let token_and_head = element / part.head_dim;
            if token_and_head < part.rows {
                let feature = element % part.head_dim;
                let (token, head) = (token_and_head / part.heads, token_and_head % part.heads);
                let cell = usize::cast_from(cells[token]);
                let from = (cell / width * part.heads + head) * width + cell % width;
                let mut value = f32::cast_from(part.x[from * part.x_stride + feature]);
                if adds {
                    let cell = i32::cast_from(second[token]);
                    if cell >= 0 {
                        let cell = usize::cast_from(cell);
                        let from = (cell / width * part.heads + head) * width + cell % width;
                        value += f32::cast_from(part.x[from * part.x_stride + feature]);
                    }
                }
                part.output[token_and_head * part.output_stride + feature] = F::cast_from(value);
            }
        }
        before += cubes;
    }
}
