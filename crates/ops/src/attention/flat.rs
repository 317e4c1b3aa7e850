//! Causal attention over rows whose tokens lie flat, one after another: without padding, and what two rows begin with is there once.
//!
//! Only attention sees rows, so only here do tokens become rows: queries, keys and values are copied to padded rows, and the outputs
//! back. The backward pass copies again instead of keeping the rows. All copies read from a known place, gradients too: those of a
//! shared key are read from both rows and added, in a fixed order.

use std::{ops::Range, sync::Arc};

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use super::{AttentionOptions, blocked::Blocked, masked};
use crate::{
    graph::{self, Operation, Plain},
    profile,
    rms_norm::at_least_f32,
};

/// Which of a batch's flat tokens make up each row.
#[derive(Clone, Debug)]
pub struct FlatRows {
    rows: Arc<[[Range<usize>; 2]]>,
    /// Tokens of the longest row.
    width: usize,
    copies: Arc<Copies<Vec<i32>>>,
    /// The same on the device.
    on_device: Arc<Copies<Tensor<1, Int>>>,
}

/// Where each copy reads from. A cell is a place in the padded rows, `[rows · width]`; an index past the last is for zeros.
#[derive(Clone, Debug)]
struct Copies<I> {
    /// The token of each cell.
    token: I,
    /// The same, but zeros in the second of two rows that share the token.
    own_token: I,
    /// The cell of each token, in the first of its rows.
    cell: I,
    /// Its cell in the second of its rows, if tokens are shared.
    second_cell: Option<I>,
}

impl<I> Copies<I> {
    fn map<J>(&self, mut f: impl FnMut(&I) -> J) -> Copies<J> {
        Copies {
            token: f(&self.token),
            own_token: f(&self.own_token),
            cell: f(&self.cell),
            second_cell: self.second_cell.as_ref().map(f),
        }
    }
}

impl FlatRows {
    /// A row has the tokens of its first range, then those of its second. Each token is in one row, or at the same position of two.
    ///
    /// # Panics
    /// If a token is in no row, in more than two, or at different positions.
    pub fn new(rows: &[[Range<usize>; 2]], device: &Device) -> Self {
        let length = |row: &[Range<usize>; 2]| row[0].len() + row[1].len();
        let width = rows.iter().map(length).max().unwrap_or(0);
        let count = rows.iter().flatten().map(|range| range.end).max().unwrap_or(0);
        let (cells, none) = (rows.len() * width, i32::MAX);
        let mut token = vec![count as i32; cells];
        let mut own_token = token.clone();
        let (mut cell, mut second_cell) = (vec![none; count], vec![cells as i32; count]);
        for (row, ranges) in rows.iter().enumerate() {
            for (position, at) in ranges.iter().cloned().flatten().enumerate() {
                let here = row * width + position;
                token[here] = at as i32;
                if cell[at] == none {
                    cell[at] = here as i32;
                    own_token[here] = at as i32;
                } else {
                    let alone = second_cell[at] == cells as i32;
                    let alike = cell[at] as usize % width == position;
                    assert!(alone && alike, "token {at} is not at one position of two rows");
                    second_cell[at] = here as i32;
                }
            }
        }
        assert!(!cell.contains(&none), "each of {count} tokens has to be in a row");
        let shared = second_cell.iter().any(|&cell| cell < cells as i32);
        let second_cell = shared.then_some(second_cell);
        let copies = Copies { token, own_token, cell, second_cell };
        let on_device = copies.map(|index| {
            let data = TensorData::new(index.clone(), [index.len()]);
            Tensor::<1, Int>::from_data(data, device).without_autodiff()
        });
        Self { rows: rows.into(), width, copies: Arc::new(copies), on_device: Arc::new(on_device) }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.copies.cell.len()
    }

    /// The position of each token in its row.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        self.copies.cell.iter().map(|&cell| cell as usize % self.width)
    }

    /// Tokens of each row; those that two rows share count in both.
    fn lengths(&self) -> impl Iterator<Item = usize> {
        self.rows.iter().map(|ranges| ranges.iter().map(ExactSizeIterator::len).sum())
    }

    fn cells(&self) -> usize {
        self.copies.token.len()
    }

    /// Whether each key is hidden from each query, `[1, 1, tokens, tokens]`.
    fn hidden(&self, window: Option<usize>, device: &Device) -> Tensor<4, Bool> {
        let count = self.tokens();
        let mut hidden = vec![true; count * count];
        for row in self.rows.iter() {
            let tokens: Vec<usize> = row.iter().cloned().flatten().collect();
            for (i, query) in tokens.iter().enumerate() {
                let first = window.map_or(0, |window| (i + 1).saturating_sub(window));
                tokens[first..=i].iter().for_each(|key| hidden[query * count + key] = false);
            }
        }
        Tensor::from_data(TensorData::new(hidden, [1, 1, count, count]), device)
    }
}

/// [`causal_attention`](super::causal_attention) within each row: a token sees what comes before it in its rows, which is the same in
/// both if it has two.
///
/// # Shapes
/// * `q`: `[1, tokens, heads, head_dim]`
/// * `k`, `v`: `[1, tokens, kv_heads, head_dim]`, `heads` a multiple of `kv_heads`
/// * result: `[1, tokens, heads, head_dim]`
pub fn flat_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    options: &AttentionOptions,
    rows: &FlatRows,
) -> Tensor<4> {
    let [_, _, heads, head_dim] = q.dims();
    let [_, _, kv_heads, _] = k.dims();
    let count = rows.tokens();
    assert!(
        q.dims() == [1, count, heads, head_dim]
            && k.dims() == [1, count, kv_heads, head_dim]
            && v.dims() == k.dims()
            && kv_heads > 0
            && heads % kv_heads == 0,
        "flat_attention: q {:?}, k {:?}, v {:?} and {count} tokens don't fit together",
        q.dims(),
        k.dims(),
        v.dims()
    );
    assert!(options.window != Some(0), "flat_attention: a window of 0 tokens hides every key");
    let _within = profile::operation("flat_attention", || {
        super::flops(rows.lengths().flat_map(|length| 0..length), heads * head_dim, options)
    });
    #[cfg(feature = "flex")]
    if let Some(output) =
        crate::flex::apply(fast::Flat::new(options, rows), [&q, &k, &v].map(crate::flex::operand))
    {
        return Tensor::from_dispatch(output);
    }
    let inner = Blocked::new(options, None, rows.cells() * heads);
    let inputs = [&q, &k, &v].map(|x| x.clone().into_dispatch());
    match graph::apply(Flat { inner, rows: rows.clone() }, inputs) {
        Some(output) => Tensor::from_dispatch(output),
        None => definition(q, k, v, options, rows),
    }
}

/// [`flat_attention`] in plain tensor operations.
pub fn definition(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    options: &AttentionOptions,
    rows: &FlatRows,
) -> Tensor<4> {
    let hidden = rows.hidden(options.window, &q.device());
    masked(q, k, v, options, hidden)
}

/// In tensor operations, around attention over padded rows.
#[derive(Clone, Debug)]
struct Flat {
    inner: Blocked,
    rows: FlatRows,
}

impl Flat {
    /// Copies tokens `[1, tokens, heads, head_dim]` to padded rows `[rows, width, heads, head_dim]`.
    fn to_rows(&self, x: Plain, tokens: &Tensor<1, Int>) -> Plain {
        let x = Tensor::<4>::from(x);
        let [_, _, heads, head_dim] = x.dims();
        let shape = [self.rows.rows.len(), self.rows.width, heads, head_dim];
        pick(with_zeros(x), tokens).reshape(shape).into()
    }

    /// The reverse: the sum over the given cells of each token.
    fn to_tokens(&self, x: Plain, cells: &[&Tensor<1, Int>]) -> Plain {
        let x = Tensor::<4>::from(x);
        let ([_, _, heads, head_dim], dtype) = (x.dims(), x.dtype());
        let shape = [1, self.rows.tokens(), heads, head_dim];
        let sum = match cells {
            [cell] => x.reshape([self.rows.cells(), heads * head_dim]).select(0, (*cell).clone()),
            _ => {
                let x = with_zeros(x);
                let parts = cells.iter().map(|cell| at_least_f32(pick(x.clone(), cell)));
                parts.reduce(|a, b| a + b).expect("a token has a cell").cast(dtype)
            }
        };
        sum.reshape(shape).into()
    }

    fn rows_of(&self, [q, k, v]: [Plain; 3]) -> [Plain; 3] {
        let Copies { token, own_token, .. } = &*self.rows.on_device;
        [self.to_rows(q, own_token), self.to_rows(k, token), self.to_rows(v, token)]
    }
}

/// `[…, heads, head_dim]` → `[all before + 1, heads · head_dim]`, the last row being zeros.
fn with_zeros(x: Tensor<4>) -> Tensor<2> {
    let [batch, tokens, heads, head_dim] = x.dims();
    let zeros = Tensor::zeros([1, heads * head_dim], (&x.device(), x.dtype()));
    Tensor::cat(vec![x.reshape([batch * tokens, heads * head_dim]), zeros], 0)
}

fn pick(x: Tensor<2>, rows: &Tensor<1, Int>) -> Tensor<2> {
    x.select(0, rows.clone())
}

impl Operation<3> for Flat {
    type Saved = ();

    fn forward(&self, inputs: [Plain; 3]) -> (Plain, ()) {
        let (output, ()) = self.inner.forward(self.rows_of(inputs));
        (self.to_tokens(output, &[&self.rows.on_device.cell]), ())
    }

    /// The output of a shared token's second row isn't used, so its query gets no gradient there; its key and value do.
    fn backward(
        &self,
        inputs: [Plain; 3],
        (): (),
        gradient: Plain,
        wanted: [bool; 3],
    ) -> [Option<Plain>; 3] {
        let Copies { own_token, cell, second_cell, .. } = &*self.rows.on_device;
        let gradient = self.to_rows(gradient, own_token);
        let found = self.inner.backward(self.rows_of(inputs), (), gradient, wanted);
        let both: Vec<_> = [cell].into_iter().chain(second_cell).collect();
        let cells = [&both[..1], both.as_slice(), both.as_slice()];
        let mut cells = cells.into_iter();
        found.map(|x| {
            let cells = cells.next().expect("one per input");
            x.map(|x| self.to_tokens(x, cells))
        })
    }
}

/// On Flex, around the fast path over padded rows.
#[cfg(feature = "flex")]
mod fast {
    use burn::backend::flex::FlexTensor;

    use super::{
        super::{AttentionOptions, fast::Attention},
        Copies, FlatRows,
    };
    use crate::flex::{Operation, blocks, tensor, values};

    #[derive(Clone, Debug)]
    pub(super) struct Flat {
        attention: Attention,
        rows: FlatRows,
    }

    impl Flat {
        pub fn new(options: &AttentionOptions, rows: &FlatRows) -> Self {
            Self { attention: Attention { options: *options, texts: None }, rows: rows.clone() }
        }

        fn to_rows(&self, x: &FlexTensor, tokens: &[i32]) -> FlexTensor {
            copied(x, [self.rows.rows.len(), self.rows.width], &[tokens])
        }

        fn to_tokens(&self, x: &FlexTensor, cells: &[&[i32]]) -> FlexTensor {
            copied(x, [1, self.rows.tokens()], cells)
        }

        fn rows_of(&self, [q, k, v]: &[FlexTensor; 3]) -> [FlexTensor; 3] {
            let Copies { token, own_token, .. } = &*self.rows.copies;
            [self.to_rows(q, own_token), self.to_rows(k, token), self.to_rows(v, token)]
        }
    }

    impl Operation<3> for Flat {
        /// The inputs, and what attention over padded rows saves beside its own.
        type Saved = ([FlexTensor; 3], FlexTensor);

        fn forward(&self, inputs: [FlexTensor; 3]) -> (FlexTensor, Self::Saved) {
            let (output, (_, log_sums)) = self.attention.forward(self.rows_of(&inputs));
            (self.to_tokens(&output, &[&self.rows.copies.cell]), (inputs, log_sums))
        }

        fn backward(
            &self,
            (inputs, log_sums): Self::Saved,
            gradient: FlexTensor,
            wanted: [bool; 3],
        ) -> [Option<FlexTensor>; 3] {
            let Copies { own_token, cell, second_cell, .. } = &*self.rows.copies;
            let gradient = self.to_rows(&gradient, own_token);
            let saved = (self.rows_of(&inputs), log_sums);
            let [q, k, v] = self.attention.backward(saved, gradient, wanted);
            let both: Vec<&[i32]> =
                [cell].into_iter().chain(second_cell).map(Vec::as_slice).collect();
            let of = |x: Option<FlexTensor>, cells| x.map(|x| self.to_tokens(&x, cells));
            [of(q, &both[..1]), of(k, &both), of(v, &both)]
        }
    }

    /// The sum of a tensor's tokens at these indices, `[…, heads, head_dim]` → `[…shape, heads, head_dim]`; an index past the last
    /// token adds nothing.
    fn copied(x: &FlexTensor, shape: [usize; 2], indices: &[&[i32]]) -> FlexTensor {
        let [_, _, heads, head_dim] = x.layout().shape()[..] else { unreachable!("of rank 4") };
        let (x, width) = (values(x), heads * head_dim);
        let count: usize = shape.iter().product();
        let block = (blocks::ELEMENTS / width.max(1)).max(1);
        let mut copied = vec![0.0; count * width];
        blocks::for_each_block([(&mut copied, block * width)], |number, [copied]| {
            for (place, token) in (number * block..).zip(copied.chunks_exact_mut(width)) {
                for (part, index) in indices.iter().enumerate() {
                    let first = index[place] as usize * width;
                    let Some(from) = x.get(first..first + width) else { continue };
                    match part {
                        0 => token.copy_from_slice(from),
                        _ => token.iter_mut().zip(from).for_each(|(sum, x)| *sum += x),
                    }
                }
            }
        });
        tensor(copied, [shape[0], shape[1], heads, head_dim])
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::testing::check;

    /// Rows of one token to many: with a shared beginning, without one, and one that is the beginning of another.
    const CASES: [&[[Range<usize>; 2]]; 4] = [
        &[[0..1, 1..1]],
        &[[0..3, 3..8], [0..3, 8..9]],
        &[[0..2, 3..3], [2..3, 3..9], [0..2, 9..10], [2..3, 10..13]],
        &[[0..0, 0..5], [0..0, 5..6], [0..0, 6..9]],
    ];

    fn options() -> impl Iterator<Item = AttentionOptions> {
        // A power of two: autodiff rounds the reciprocal of a divisor to float32.
        let caps = [None, Some(2.0)].into_iter();
        let both =
            caps.flat_map(|softcap| [None, Some(1), Some(3)].map(|window| (softcap, window)));
        both.map(|(softcap, window)| AttentionOptions { scale: 0.7, softcap, window })
    }

    /// Oracle: the definition, which never copies, in float64.
    #[test]
    fn rows_make_no_difference() {
        for rows in CASES {
            let rows = FlatRows::new(rows, &Device::flex());
            let count = rows.tokens();
            for options in options() {
                for queries in [1, 4, 100] {
                    let inner = Blocked { options, texts: None, queries };
                    check(
                        Flat { inner, rows: rows.clone() },
                        [[1, count, 4, 3], [1, count, 2, 3], [1, count, 2, 3]],
                        |[q, k, v]| definition(q, k, v, &options, &rows),
                    );
                }
            }
        }
    }

    #[test]
    fn positions_are_those_in_rows() {
        let rows = FlatRows::new(CASES[2], &Device::flex());
        let expected = [0, 1, 0, 1, 2, 3, 4, 5, 6, 2, 1, 2, 3];
        assert_eq!(rows.positions().collect::<Vec<_>>(), expected);
    }

    #[test]
    #[should_panic(expected = "token 1 is not at one position of two rows")]
    fn a_token_has_one_position() {
        FlatRows::new(&[[0..2, 2..3], [1..2, 3..4]], &Device::flex());
    }
}
