//! Sums of consecutive values: of the log-probabilities of a response's tokens.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData};

use crate::profile;

/// The sum of the values in each range, which don't overlap and come in order; 0 for an empty one. Values in no range count nowhere.
///
/// # Shapes
/// * `values`: `[n]`
/// * result: `[segments.len()]`
pub fn segment_sums(values: Tensor<1>, segments: &[Range<usize>]) -> Tensor<1> {
    let [n] = values.dims();
    let in_order = segments.windows(2).all(|pair| pair[0].end <= pair[1].start);
    assert!(
        in_order && segments.last().is_none_or(|last| last.end <= n),
        "segment_sums: {segments:?} of {n} values"
    );
    let _within = profile::operation("segment_sums", || 0.0);
    #[cfg(feature = "cube")]
    if crate::cube::takes(&values) {
        let operation = crate::cube::segments::SegmentSums::new(segments, n, &values.device());
        let output = crate::graph::apply(operation, [values.into_dispatch()]);
        return Tensor::from_dispatch(output.expect("the backend of this tensor is known"));
    }
    definition(values, segments)
}

/// [`segment_sums`] in plain tensor operations: a product with a matrix of zeros and ones, which is differentiable, and summed in the
/// same order whatever the number of threads.
pub fn definition(values: Tensor<1>, segments: &[Range<usize>]) -> Tensor<1> {
    let [n] = values.dims();
    let mut members = vec![0f32; segments.len() * n];
    for (row, segment) in segments.iter().enumerate() {
        members[row * n..][segment.clone()].fill(1.0);
    }
    let members = TensorData::new(members, [segments.len(), n]);
    let members = Tensor::from_data(members, (&values.device(), values.dtype()));
    members.matmul(values.unsqueeze_dim::<2>(1)).squeeze_dim(1)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::testing::{close, random};

    /// Oracle: a loop. Segments of no value, one and several; a gap before, between and after.
    #[test]
    fn each_range_is_summed() {
        let values = random(1, [1, 12]).squeeze_dim::<1>(0);
        let segments = [1..1, 1..2, 2..7, 9..11];
        let read = values.to_data().try_to_vec::<f64>().unwrap();
        let expected = segments.clone().map(|s| read[s].iter().sum::<f64>());
        let expected = TensorData::from(expected);
        let expected = Tensor::from_data(expected, (&values.device(), burn::tensor::DType::F64));
        close("sums", &segment_sums(values, &segments), &expected);
    }
}
