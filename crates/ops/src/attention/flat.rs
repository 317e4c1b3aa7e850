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
#[cfg(feature = "cube")]
use crate::cube::array;
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
    /// The same, but -1 in a cell that pads or is the second of its token.
    own_token: Tensor<1, Int>,
    /// The cell of each token, in the first of its rows.
    cell: Tensor<1, Int>,
    /// The cell of each token in the second of its rows, or -1. `None` if no token has one.
    second: Option<Tensor<1, Int>>,
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
        let mut own_token = vec![None; rows.len() * width];
        let (mut cell, mut second) = (vec![None; count], vec![None; count]);
        let mut found = Vec::with_capacity(rows.len());
        for (row, ranges) in rows.iter().enumerate() {
            let (mut shared, mut shared_with) = (0, row);
            for (position, at) in ranges.iter().cloned().flatten().enumerate() {
                let here = row * width + position;
                token[here] = at;
                let Some(first) = cell[at] else {
                    (cell[at], own_token[here]) = (Some(here), Some(at));
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
        let index = |places: &mut dyn Iterator<Item = Option<usize>>| {
            let places: Vec<i32> = places.map(|place| place.map_or(-1, |at| at as i32)).collect();
            let shape = [places.len()];
            let data = TensorData::new(places, shape);
            Tensor::<1, Int>::from_data(data, device).without_autodiff()
        };
        let is_shared = second.iter().any(Option::is_some);
        Self {
            rows: found.into(),
            width,
            positions: cell.iter().map(|cell| cell % width).collect(),
            copies: Arc::new(Copies {
                token: index(&mut token.into_iter().map(Some)),
                own_token: index(&mut own_token.into_iter()),
                cell: index(&mut cell.into_iter().map(Some)),
                second: is_shared.then(|| index(&mut second.into_iter())),
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
    let mut inner = Blocked::new(options, None, rows.cells() * heads);
    inner.unread = Some(rows.copies.cell.clone());
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

/// Around attention over padded rows: from flat tokens `[1, tokens, heads, head_dim]` to `[rows, heads, width, head_dim]` and back, by
/// a kernel on GPUs, in tensor operations elsewhere.
#[derive(Clone, Debug)]
struct Flat {
    inner: Blocked,
    rows: FlatRows,
}

impl Flat {
    /// Copies tokens to the cells that have one in `tokens`, and zero to others.
    fn to_heads<const N: usize>(&self, xs: [Plain; N], tokens: &Tensor<1, Int>) -> [Tensor<4>; N] {
        #[cfg(feature = "cube")]
        if takes_together(xs.each_ref().map(|x| Tensor::<4>::from(x.clone()))) {
            return array(self.shape().heads(xs.into(), tokens));
        }
        xs.map(|x| {
            let x: Tensor<3> = Tensor::<4>::from(x).squeeze_dim(0);
            let [_, heads, head_dim] = x.dims();
            let cells = select_or_zero(x, tokens);
            cells.reshape([self.rows.rows.len(), self.rows.width, heads, head_dim]).swap_dims(1, 2)
        })
    }

    /// Copies each token's cell in the first of its rows.
    fn to_tokens(&self, x: Tensor<4>) -> Plain {
        let [x] = self.tokens_of([x], None);
        x
    }

    /// The sum of each token's cells.
    fn sum_to_tokens<const N: usize>(&self, xs: [Tensor<4>; N]) -> [Plain; N] {
        self.tokens_of(xs, self.rows.copies.second.as_ref())
    }

    fn tokens_of<const N: usize>(
        &self,
        xs: [Tensor<4>; N],
        second: Option<&Tensor<1, Int>>,
    ) -> [Plain; N] {
        let cell = &self.rows.copies.cell;
        #[cfg(feature = "cube")]
        if takes_together(xs.clone()) {
            return array(self.shape().tokens(xs.into(), cell, second));
        }
        xs.map(|x| {
            let cells: Tensor<3> = x.swap_dims(1, 2).flatten(0, 1);
            let first = cells.clone().select(0, cell.clone());
            let sum = match second {
                Some(second) => first + select_or_zero(cells, second),
                None => first,
            };
            sum.unsqueeze::<4>().into()
        })
    }

    #[cfg(feature = "cube")]
    fn shape(&self) -> crate::cube::rows::PaddedRows {
        crate::cube::rows::PaddedRows { rows: self.rows.rows.len(), width: self.rows.width }
    }
}

/// Whether one kernel takes all of them.
#[cfg(feature = "cube")]
fn takes_together<const N: usize>(xs: [Tensor<4>; N]) -> bool {
    xs.iter().all(|x| crate::cube::takes(x) && x.dtype() == xs[0].dtype())
}

/// Rows of x, and zero where the place is -1.
fn select_or_zero(x: Tensor<3>, places: &Tensor<1, Int>) -> Tensor<3> {
    let [_, heads, head_dim] = x.dims();
    let [count] = places.dims();
    let is_missing = places.clone().lower_elem(0).reshape([count, 1, 1]);
    let is_missing = is_missing.expand([count, heads, head_dim]);
    x.select(0, places.clone().clamp_min(0)).mask_fill(is_missing, 0.0)
}

impl Operation<3> for Flat {
    type Saved = ();

    fn forward(&self, inputs: [Plain; 3]) -> (Plain, ()) {
        let heads = self.to_heads(inputs, &self.rows.copies.token);
        (self.to_tokens(self.inner.of_heads(heads)), ())
    }

    /// No output of a copy is used, so its gradient is zero: its query gets none, and passes none on to keys and values.
    fn backward(
        &self,
        inputs: [Plain; 3],
        (): (),
        gradient: Plain,
        wanted: [bool; 3],
    ) -> [Option<Plain>; 3] {
        let [gradient] = self.to_heads([gradient], &self.rows.copies.own_token);
        let heads = self.to_heads(inputs, &self.rows.copies.token);
        match self.inner.backward_of_heads(heads, &gradient, wanted) {
            [Some(q), Some(k), Some(v)] => self.sum_to_tokens([q, k, v]).map(Some),
            some => some.map(|x| x.and_then(|x| self.sum_to_tokens([x]).into_iter().next())),
        }
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
                    let inner = Blocked { options, texts: None, queries, unread: None };
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
