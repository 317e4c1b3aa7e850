//! Logits `softcap(h·Wᵀ)` in blocks, never all of them at once. Shared by the operations on the whole vocabulary, on backends
//! without a fast path. On GPUs kernels process the products `h·Wᵀ`; elsewhere tensor operations turn them into logits.

use std::ops::Range;

use burn::tensor::{FloatDType, Int, Tensor};

use crate::{
    Rows,
    graph::Plain,
    product::{Factor, Sums, product},
    rms_norm::at_least_f32,
};

/// Sizes of a block of logits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    /// Rows of hidden states.
    pub rows: usize,
    /// Tokens of the vocabulary.
    pub tokens: usize,
}

/// A block of logits takes 128 MiB in float32.
pub(crate) const BLOCKS: Blocks = Blocks { rows: 2048, tokens: 16384 };

/// `0..length` in ranges of at most `size`.
pub(crate) fn ranges(length: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..length).step_by(size).map(move |first| first..(first + size).min(length))
}

/// The unembedding of a language model and its inputs, outside any graph.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// `[n, d]`
    pub hidden: Tensor<2>,
    /// `[vocabulary, d]`
    pub weight: Rows,
    pub softcap: Option<f64>,
    pub blocks: Blocks,
}

/// Logits of a block, `[rows, tokens]`, in float32 at least.
pub(crate) struct Logits {
    pub values: Tensor<2>,
    /// The tanh inside the soft-cap.
    tanh: Option<Tensor<2>>,
    pub rows: Range<usize>,
    pub tokens: Range<usize>,
}

impl Logits {
    /// The gradient of the products `h·Wᵀ`, given that of these logits: times `1 − tanh²`.
    fn through_softcap(&self, gradient: Tensor<2>) -> Tensor<2> {
        match &self.tanh {
            Some(tanh) => gradient * (-tanh.clone().square() + 1.0),
            None => gradient,
        }
    }

    /// One at each row's target if it is in this block, else zero. `targets` `[rows]` are those of these rows.
    pub fn one_hot(&self, targets: Tensor<1, Int>) -> Tensor<2> {
        let [rows, width] = self.values.dims();
        let tokens = self.tokens.start as i64..self.tokens.end as i64;
        let tokens = Tensor::<1, Int>::arange(tokens, &targets.device()).unsqueeze::<2>();
        let hit =
            tokens.expand([rows, width]).equal(targets.unsqueeze_dim::<2>(1).expand([rows, width]));
        hit.float().cast(FloatDType::from(self.values.dtype()))
    }
}

impl Head {
    pub fn new(hidden: Tensor<2>, weight: Rows, softcap: Option<f64>, blocks: Blocks) -> Self {
        Self { hidden, weight, softcap, blocks }
    }

    /// From the inputs of an operation: the hidden states, then the parts of the weight.
    pub fn of<const N: usize>(inputs: [Plain; N], softcap: Option<f64>, blocks: Blocks) -> Self {
        let mut inputs = inputs.into_iter().map(Tensor::from);
        let hidden = inputs.next().expect("the first input is the hidden states");
        Self::new(hidden, Rows::new(inputs.collect()), softcap, blocks)
    }

    pub fn row_blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        ranges(self.hidden.dims()[0], self.blocks.rows)
    }

    /// Blocks of the vocabulary, none of which spans two parts of the weight.
    pub fn token_blocks(&self) -> impl Iterator<Item = Range<usize>> {
        self.parts().flat_map(|part| self.blocks_of(&part))
    }

    fn blocks_of(&self, part: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let first = part.start;
        ranges(part.len(), self.blocks.tokens)
            .map(move |block| first + block.start..first + block.end)
    }

    /// The tokens of each part of the weight.
    fn parts(&self) -> impl Iterator<Item = Range<usize>> {
        self.weight.parts().iter().scan(0, |first, part| {
            let start = *first;
            *first += part.dims()[0];
            Some(start..*first)
        })
    }

    fn hidden(&self, rows: &Range<usize>) -> Tensor<2> {
        self.hidden.clone().narrow(0, rows.start, rows.len())
    }

    /// Some rows of the weight, in the type of the hidden states.
    fn weight(&self, tokens: &Range<usize>) -> Tensor<2> {
        // The block may come from another head, whose weight is split differently.
        let pieces = self.weight.parts().iter().zip(self.parts()).filter_map(|(weight, part)| {
            let (start, end) = (tokens.start.max(part.start), tokens.end.min(part.end));
            (start < end).then(|| weight.clone().narrow(0, start - part.start, end - start))
        });
        let mut pieces: Vec<_> = pieces.collect();
        let weight = match pieces.len() {
            1 => pieces.remove(0),
            _ => Tensor::cat(pieces, 0),
        };
        weight.cast(self.hidden.dtype())
    }

    /// `h·Wᵀ` of a block, `[rows, tokens]`, in the type of the hidden states.
    pub fn products(&self, rows: &Range<usize>, tokens: &Range<usize>) -> Tensor<2> {
        product(self.hidden(rows), Factor::transposed(self.weight(tokens)))
    }

    pub fn logits(&self, rows: &Range<usize>, tokens: &Range<usize>) -> Logits {
        self.logits_of(self.products(rows, tokens), rows, tokens)
    }

    fn logits_of(&self, products: Tensor<2>, rows: &Range<usize>, tokens: &Range<usize>) -> Logits {
        let products = at_least_f32(products);
        let (values, tanh) = match self.softcap {
            Some(cap) => {
                let tanh = (products / cap).tanh();
                (tanh.clone() * cap, Some(tanh))
            }
            None => (products, None),
        };
        Logits { values, tanh, rows: rows.clone(), tokens: tokens.clone() }
    }

    /// The wanted gradients of the hidden states and of the parts of the weight. `gradient` computes the gradient of a block of
    /// logits.
    pub fn backward<const N: usize>(
        &self,
        wanted: [bool; N],
        gradient: impl Fn(&Logits) -> Tensor<2>,
    ) -> [Option<Plain>; N] {
        let dtype = FloatDType::from(self.hidden.dtype());
        self.backward_of_products(wanted, |rows, tokens, products| {
            let logits = self.logits_of(products, rows, tokens);
            logits.through_softcap(gradient(&logits)).cast(dtype)
        })
    }

    /// The same, where `d_products` computes the gradient of a block of products, in the type of the hidden states, given these
    /// products.
    pub fn backward_of_products<const N: usize>(
        &self,
        wanted: [bool; N],
        d_products: impl Fn(&Range<usize>, &Range<usize>, Tensor<2>) -> Tensor<2>,
    ) -> [Option<Plain>; N] {
        let [dtype, weight_dtype] =
            [self.hidden.dtype(), self.weight.dtype()].map(FloatDType::from);
        let mut d_hidden = Sums::new(self.hidden.dims()[0]);
        let mut results = [const { None }; N];
        let (hidden_wanted, parts_wanted) = (wanted[0], &wanted[1..]);
        for (i, part) in self.parts().enumerate() {
            let mut d_part = Sums::new(part.len());
            for tokens in self.blocks_of(&part) {
                let weight = self.weight(&tokens);
                for rows in self.row_blocks() {
                    let hidden = self.hidden(&rows);
                    let products = product(hidden.clone(), Factor::transposed(weight.clone()));
                    let d_products = d_products(&rows, &tokens, products);
                    if hidden_wanted {
                        d_hidden.add(rows, d_products.clone(), weight.clone());
                    }
                    if parts_wanted[i] {
                        let of_part = tokens.start - part.start..tokens.end - part.start;
                        d_part.add(of_part, Factor::transposed(d_products), hidden);
                    }
                }
            }
            results[1 + i] = parts_wanted[i].then(|| d_part.get().cast(weight_dtype).into());
        }
        results[0] = hidden_wanted.then(|| d_hidden.get().cast(dtype).into());
        results
    }
}

/// Adds to a sum that may not have a first term yet.
pub(crate) fn add<const D: usize>(sum: Option<Tensor<D>>, more: Tensor<D>) -> Tensor<D> {
    match sum {
        Some(sum) => sum + more,
        None => more,
    }
}

/// `log Σ exp` of rows of logits that arrive in blocks, `[rows, 1]` each.
pub(crate) struct LogSumExp {
    pub largest: Tensor<2>,
    pub sum: Tensor<2>,
}

impl LogSumExp {
    /// Adds a block of logits. Returns their exponentials relative to the new largest logit, and the factor that rescales earlier
    /// sums to it.
    pub fn update(state: &mut Option<Self>, logits: &Tensor<2>) -> (Tensor<2>, Option<Tensor<2>>) {
        let largest = logits.clone().max_dim(1);
        let (largest, rescale) = match &state {
            Some(before) => {
                let largest = largest.max_pair(before.largest.clone());
                (largest.clone(), Some((before.largest.clone() - largest).exp()))
            }
            None => (largest, None),
        };
        let weights = (logits.clone() - largest.clone()).exp();
        let sum = weights.clone().sum_dim(1);
        let sum = match (state.take(), &rescale) {
            (Some(before), Some(rescale)) => before.sum * rescale.clone() + sum,
            _ => sum,
        };
        *state = Some(Self { largest, sum });
        (weights, rescale)
    }

    /// `log Σ exp` of all logits so far, `[rows, 1]`.
    pub fn value(&self) -> Tensor<2> {
        self.largest.clone() + self.sum.clone().log()
    }
}
