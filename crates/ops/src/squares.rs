//! Sums of squares of gradients, for clipping by the global norm.

use burn::tensor::Tensor;

use crate::profile;

/// Elements squared at once in tensor operations, so that the squares never take as much memory as the gradient.
const PIECE: usize = 1 << 22;

/// `Σ x²` over consecutive pieces of every tensor, on the device: the caller reads them all at once and adds them up in float64.
///
/// # Shapes
/// * `tensors`: `[n]` each, at least one, outside autodiff
/// * result: `[pieces]`; how many there are depends on the device
pub fn sums_of_squares(tensors: Vec<Tensor<1>>) -> Tensor<1> {
    #[cfg(feature = "cube")]
    if tensors.iter().all(crate::cube::takes_outside_graph) {
        let groups = crate::cube::update::groups(tensors, |x| x.dtype());
        let sums = groups.into_iter().map(|group| {
            let _within = watched(&group);
            let group = group.into_iter().map(Into::into).collect();
            let mut sums = crate::cube::run_of_many(crate::cube::update::SumsOfSquares, group);
            sums.remove(0).into()
        });
        return crate::joined(sums.collect(), 0);
    }
    let sums = tensors.into_iter().flat_map(|x| {
        let _within = watched(std::slice::from_ref(&x));
        x.split(PIECE, 0).into_iter().map(definition).collect::<Vec<_>>()
    });
    Tensor::cat(sums.collect(), 0)
}

fn watched(tensors: &[Tensor<1>]) -> impl Drop + use<> {
    let within = profile::operation("sums_of_squares", || 0.0);
    profile::moved(|| {
        tensors.iter().map(|x| (x.shape().num_elements() * x.dtype().size()) as f64).sum()
    });
    within
}

/// One piece of [`sums_of_squares`] in plain tensor operations, `[1]`.
pub fn definition(x: Tensor<1>) -> Tensor<1> {
    x.square().sum()
}
