//! Tables with a row for each token: one tensor, or several if it is too large for one tensor of the device.

use std::ops::Range;

use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use fpo_ops::Rows;

use crate::{
    Error,
    builder::{Builder, Piece},
};

/// The embedding's name in a checkpoint.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The name in a checkpoint of an unembedding that isn't tied to the embedding.
pub(crate) const HEAD: &str = "lm_head.weight";
/// What follows the name of a table in the paths of all parts but the first.
const REST: &str = "_rest.";

/// A table with a row for each token: the embedding, or an unembedding of its own.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[vocab_size, d_model]`, or the first of these rows.
    pub weight: Param<Tensor<2>>,
    /// The remaining rows, in order.
    pub weight_rest: Vec<Param<Tensor<2>>>,
}

impl Embedding {
    pub(crate) fn build(
        builder: &mut Builder,
        name: &str,
        shape: [usize; 2],
    ) -> Result<Self, Error> {
        let dtype = builder.matrix_type();
        let row_bytes = shape[1] * dtype.size();
        let Some(parts) = parts(shape[0], row_bytes, builder.placement.largest_tensor) else {
            return Err(Error::TooLarge {
                name: name.to_owned(),
                bytes: shape[0].saturating_mul(row_bytes),
                largest: builder.placement.largest_tensor.unwrap_or(usize::MAX),
                parts: Rows::MOST_PARTS,
            });
        };
        let pieces = parts.into_iter().map(|rows| Piece { name, shape: &shape, rows, dtype });
        let mut parts = Vec::with_capacity(pieces.len());
        for piece in pieces {
            parts.push(builder.piece(&piece)?);
        }
        let weight_rest = parts.split_off(1);
        Ok(Self { weight: parts.remove(0), weight_rest })
    }

    /// The path in a model of each part of the embedding, and its number of rows.
    pub(crate) fn parts(&self) -> Vec<(String, usize)> {
        let rows = |part: &Param<Tensor<2>>| part.val().dims()[0];
        let rest = self.weight_rest.iter().enumerate();
        let rest = rest.map(|(i, part)| (format!("{EMBEDDING}{REST}{i}"), rows(part)));
        std::iter::once((EMBEDDING.to_owned(), rows(&self.weight))).chain(rest).collect()
    }

    /// All rows, whatever tensors they are in.
    pub(crate) fn rows(&self) -> Rows {
        let parts = std::iter::once(&self.weight).chain(&self.weight_rest);
        Rows::new(parts.map(Param::val).collect())
    }
}

/// `0..rows` in as few ranges as keep each within `limit` bytes, of almost equal length; `None` if that takes too many.
fn parts(rows: usize, row_bytes: usize, limit: Option<usize>) -> Option<Vec<Range<usize>>> {
    let most = limit.map_or(rows, |limit| limit / row_bytes);
    if most == 0 || rows.div_ceil(most) > Rows::MOST_PARTS {
        return None;
    }
    let length = rows.div_ceil(rows.div_ceil(most));
    let starts = (0..rows).step_by(length);
    Some(starts.map(|start| start..(start + length).min(rows)).collect())
}

/// The name in a checkpoint of the parameter at this path of a model. Parameters with the same name are consecutive rows of one
/// tensor.
pub fn stored_name(path: &str) -> &str {
    let table = [EMBEDDING, HEAD]
        .into_iter()
        .find(|&table| path.strip_prefix(table).is_some_and(|rest| rest.starts_with(REST)));
    table.unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The parts cover the rows in order, each is within the limit, and no fewer would be.
        #[test]
        fn parts_cover_the_rows(rows in 1..1000_usize, row_bytes in 1..100_usize, limit in 1..50_000_usize) {
            let most = limit / row_bytes;
            match parts(rows, row_bytes, Some(limit)) {
                None => prop_assert!(Rows::MOST_PARTS * most < rows),
                Some(parts) => {
                    let covered: Vec<_> = parts.iter().cloned().flatten().collect();
                    prop_assert_eq!(covered, (0..rows).collect::<Vec<_>>());
                    prop_assert!(parts.iter().all(|part| part.len() * row_bytes <= limit));
                    prop_assert!((parts.len() - 1) * most < rows);
                }
            }
        }
    }

    #[test]
    fn parts_are_few_and_even() {
        let lengths = |rows, row_bytes, limit| {
            let ranges = parts(rows, row_bytes, limit)?;
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, rows));
            Some(ranges.iter().map(Range::len).collect::<Vec<_>>())
        };
        assert_eq!(lengths(10, 4, None), Some(vec![10]));
        assert_eq!(lengths(10, 4, Some(40)), Some(vec![10]));
        assert_eq!(lengths(10, 4, Some(39)), Some(vec![5, 5]));
        assert_eq!(lengths(10, 4, Some(16)), Some(vec![4, 4, 2]));
        assert_eq!(lengths(7, 4, Some(8)), Some(vec![2, 2, 2, 1]));
        assert_eq!(lengths(9, 4, Some(8)), None);
        assert_eq!(lengths(1, 4, Some(3)), None);
        // Gemma-2-2B and 9B on WGPU.
        let wgpu = Some((1 << 31) - 1);
        assert_eq!(lengths(256_000, 4 * 2304, wgpu), Some(vec![128_000; 2]));
        assert_eq!(lengths(256_000, 4 * 3584, wgpu), Some(vec![128_000; 2]));
    }
}
