//! Causal attention over rows whose tokens lie flat, one after another: without padding, and what two rows begin with is there once.
//!
//! Only attention sees rows. On Flex it reads them where they lie. Elsewhere, queries, keys and values are copied to padded rows, and
//! the outputs back; the backward pass copies again instead of keeping the rows. All copies read from a known place, gradients too:
//! those of a shared key are read from both rows and added.

use std::{ops::Range, sync::Arc};

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

#[cfg(feature = "flex")]
use super::fast;
use super::{AttentionOptions, blocked::Blocked, masked};
use crate::{
    graph::{self, Operation, Plain},
    profile,
};

/// Which of a batch's flat tokens make up each row.
#[derive(Clone, Debug)]
pub struct FlatRows {
    rows: Arc<[Row]>,
    /// Tokens of the longest row.
    width: usize,
    /// The position of each token in its row.
    positions: Arc<[usize]>,
    copies: Arc<Copies>,
}

#[derive(Clone, Debug)]
#[cfg_attr(
    not(feature = "flex"),
    expect(dead_code, reason = "Flex alone reads rows where they lie")
)]
pub(super) struct Row {
    pub ranges: [Range<usize>; 2],
    /// How many tokens at its beginning are those of an earlier row, and which row that is: itself if there are none.
    pub shared: usize,
    pub shared_with: usize,
}

impl Row {
    fn tokens(&self) -> impl Iterator<Item = usize> {
        self.ranges.iter().cloned().flatten()
    }
}

/// Where each copy reads from. A cell is a place in the padded rows, `[rows · width]`.
#[derive(Clone, Debug)]
struct Copies {
    /// The token of each cell; any in one that pads.
    token: Tensor<1, Int>,
    /// Whether a cell pads or is the second of its token, `[cells, 1, 1]`.
    is_copy: Tensor<3, Bool>,
    /// The cell of each token, in the first of its rows.
    cell: Tensor<1, Int>,
    /// If tokens are shared.
    second: Option<Second>,
}

#[derive(Clone, Debug)]
struct Second {
    /// The cell of each token in the second of its rows; any if it has one.
    cell: Tensor<1, Int>,
    /// Whether it has one, `[tokens, 1, 1]`.
    is_missing: Tensor<3, Bool>,
}

impl FlatRows {
    /// A row has the tokens of its first range, then those of its second. Each token is in one row, or in two that begin alike up to it.
    ///
    /// # Panics
    /// If a token is in no row or in more than two, or if two rows share more than a beginning.
    pub fn new(rows: &[[Range<usize>; 2]], device: &Device) -> Self {
        let length = |row: &[Range<usize>; 2]| row[0].len() + row[1].len();
        let width = rows.iter().map(length).max().unwrap_or(0);
        let count = rows.iter().flatten().map(|range| range.end).max().unwrap_or(0);
        let mut token = vec![0; rows.len() * width];
        let mut is_copy = vec![true; rows.len() * width];
        let (mut cell, mut second) = (vec![None; count], vec![None; count]);
        let mut found = Vec::with_capacity(rows.len());
        for (row, ranges) in rows.iter().enumerate() {
            let (mut shared, mut shared_with) = (0, row);
            for (position, at) in ranges.iter().cloned().flatten().enumerate() {
                let here = row * width + position;
                token[here] = at;
                let Some(first) = cell[at] else {
                    (cell[at], is_copy[here]) = (Some(here), false);
                    continue;
                };
                let alike = first % width == position && second[at].is_none();
                let begins = shared == position && (shared == 0 || shared_with == first / width);
                assert!(alike && begins, "token {at} is not in the beginning of two rows");
                second[at] = Some(here);
                (shared, shared_with) = (position + 1, first / width);
            }
            found.push(Row { ranges: ranges.clone(), shared, shared_with });
        }
        let cell: Option<Vec<usize>> = cell.into_iter().collect();
        let cell = cell.unwrap_or_else(|| panic!("each of {count} tokens has to be in a row"));
        let index = |places: Vec<usize>| {
            let shape = [places.len()];
            let places: Vec<i32> = places.into_iter().map(|place| place as i32).collect();
            let data = TensorData::new(places, shape);
            Tensor::<1, Int>::from_data(data, device).without_autodiff()
        };
        let mask = |of: Vec<bool>| {
            let shape = [of.len(), 1, 1];
            let data = TensorData::new(of, shape);
            Tensor::<3, Bool>::from_data(data, device).without_autodiff()
        };
        let second = second.iter().any(Option::is_some).then(|| Second {
            is_missing: mask(second.iter().map(Option::is_none).collect()),
            cell: index(second.into_iter().map(Option::unwrap_or_default).collect()),
        });
        Self {
            rows: found.into(),
            width,
            positions: cell.iter().map(|cell| cell % width).collect(),
            copies: Arc::new(Copies {
                token: index(token),
                is_copy: mask(is_copy),
                cell: index(cell),
                second,
            }),
        }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.positions.len()
    }

    /// The position of each token in its row.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        self.positions.iter().copied()
    }

    #[cfg(feature = "flex")]
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    fn cells(&self) -> usize {
        self.rows.len() * self.width
    }

    /// Whether each key is hidden from each query, `[1, 1, tokens, tokens]`.
    fn hidden(&self, window: Option<usize>, device: &Device) -> Tensor<4, Bool> {
        let count = self.tokens();
        let mut hidden = vec![true; count * count];
        for row in self.rows.iter() {
            let tokens: Vec<usize> = row.tokens().collect();
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
        super::flops(rows.positions(), heads * head_dim, options)
    });
    #[cfg(feature = "flex")]
    if let Some(output) = crate::flex::apply(
        fast::Attention::flat(options, rows),
        [&q, &k, &v].map(crate::flex::operand),
    ) {
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
    /// Copies tokens `[1, tokens, heads, head_dim]` to cells `[cells, heads, head_dim]`.
    fn to_cells(&self, x: Plain) -> Tensor<3> {
        by_token(x).select(0, self.rows.copies.token.clone())
    }

    /// As padded rows, `[rows, width, heads, head_dim]`.
    fn as_rows(&self, cells: Tensor<3>) -> Plain {
        let [_, heads, head_dim] = cells.dims();
        cells.reshape([self.rows.rows.len(), self.rows.width, heads, head_dim]).into()
    }

    /// Copies each token's cell in the first of its rows, `[1, tokens, heads, head_dim]`.
    fn to_tokens(&self, cells: Plain) -> Plain {
        let tokens = by_token(cells).select(0, self.rows.copies.cell.clone());
        tokens.unsqueeze::<4>().into()
    }

    /// The sum of each token's cells, `[1, tokens, heads, head_dim]`.
    fn sum_to_tokens(&self, cells: Plain) -> Plain {
        let Some(second) = &self.rows.copies.second else { return self.to_tokens(cells) };
        // In one shape until the end, so that the sum is fused with both selections.
        let cells = by_token(cells);
        let first = cells.clone().select(0, self.rows.copies.cell.clone());
        let again = zero_where(cells.select(0, second.cell.clone()), &second.is_missing);
        (first + again).unsqueeze::<4>().into()
    }
}

fn zero_where(x: Tensor<3>, mask: &Tensor<3, Bool>) -> Tensor<3> {
    let shape = x.dims();
    x.mask_fill(mask.clone().expand(shape), 0.0)
}

/// `[…, heads, head_dim]` → `[all before, heads, head_dim]`.
fn by_token(x: Plain) -> Tensor<3> {
    Tensor::<4>::from(x).flatten(0, 1)
}

impl Operation<3> for Flat {
    type Saved = ();

    fn forward(&self, inputs: [Plain; 3]) -> (Plain, ()) {
        let rows = inputs.map(|x| self.as_rows(self.to_cells(x)));
        let (output, ()) = self.inner.forward(rows);
        (self.to_tokens(output), ())
    }

    /// No output of a copy is used, so its gradient is zero: its query gets none, and passes none on to keys and values.
    fn backward(
        &self,
        inputs: [Plain; 3],
        (): (),
        gradient: Plain,
        wanted: [bool; 3],
    ) -> [Option<Plain>; 3] {
        let gradient = zero_where(self.to_cells(gradient), &self.rows.copies.is_copy);
        let rows = inputs.map(|x| self.as_rows(self.to_cells(x)));
        let [q, k, v] = self.inner.backward(rows, (), self.as_rows(gradient), wanted);
        [
            q.map(|q| self.to_tokens(q)),
            k.map(|k| self.sum_to_tokens(k)),
            v.map(|v| self.sum_to_tokens(v)),
        ]
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
    #[should_panic(expected = "token 1 is not in the beginning of two rows")]
    fn two_rows_share_a_beginning_alone() {
        FlatRows::new(&[[0..2, 2..3], [1..2, 3..4]], &Device::flex());
    }
}
