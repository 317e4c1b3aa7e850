//! Log-probabilities of target tokens straight from hidden states.

use burn::tensor::{Int, Tensor, activation::log_softmax};

use crate::{linear, softcap::optional_softcap};

/// `log softmax(softcap(h·Wᵀ))[target]` per row, in float32 at least; gradients reach `hidden` and `weight`.
///
/// # Shapes
/// * `hidden`: `[n, d]`, states that predict a token (already shifted: row i predicts `targets[i]`)
/// * `weight`: `[vocabulary, d]`, the unembedding
/// * `targets`: `[n]`, each in `0..vocabulary`
/// * result: `[n]`
pub fn linear_log_probs(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: Tensor<1, Int>,
    softcap: Option<f64>,
) -> Tensor<1> {
    check_shapes("linear_log_probs", &hidden, &weight, &targets);
    #[cfg(feature = "flex")]
    if let Some(indices) = crate::flex::indices(&targets, weight.dims()[0], "linear_log_probs")
        && let Some(output) = crate::flex::apply(
            fast::LinearLogProbs {
                targets: indices.into(),
                softcap: softcap.map(|cap| cap as f32),
            },
            [crate::flex::operand(&hidden), crate::flex::operand(&weight)],
        )
    {
        return Tensor::from_dispatch(output);
    }
    definition(hidden, weight, targets, softcap)
}

/// [`linear_log_probs`] by plain tensor operations.
pub fn definition(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: Tensor<1, Int>,
    softcap: Option<f64>,
) -> Tensor<1> {
    log_distribution(hidden, weight, softcap).gather(1, targets.unsqueeze_dim(1)).squeeze_dim(1)
}

/// `log softmax(softcap(h·Wᵀ))`, `[n, vocabulary]`, in float32 at least.
pub(crate) fn log_distribution(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    softcap: Option<f64>,
) -> Tensor<2> {
    let logits = crate::rms_norm::at_least_f32(linear::definition(hidden, weight));
    log_softmax(optional_softcap(logits, softcap), 1)
}

/// The conditions shared by the operations on `[n, d]`, `[vocabulary, d]` and `[n]`.
pub(crate) fn check_shapes(
    operation: &str,
    hidden: &Tensor<2>,
    weight: &Tensor<2>,
    targets: &Tensor<1, Int>,
) {
    let ([n, d], [_, d_weight], [n_targets]) = (hidden.dims(), weight.dims(), targets.dims());
    assert!(
        d == d_weight && n == n_targets,
        "{operation}: hidden {:?}, weight {:?} and targets {:?} don't fit together",
        hidden.dims(),
        weight.dims(),
        targets.dims()
    );
}

/// Logits in blocks, recomputed in the backward pass: nothing of the size n × vocabulary.
#[cfg(feature = "flex")]
mod fast {
    use std::sync::Arc;

    use burn::backend::flex::FlexTensor;

    use crate::flex::{
        Operation,
        elementary::{LANES, exp, tanh},
        logits::{Head, LogSumExp, backward, scan},
        tensor, tensors_like, values,
    };

    #[derive(Clone, Debug)]
    pub(super) struct LinearLogProbs {
        pub targets: Arc<[usize]>,
        pub softcap: Option<f32>,
    }

    impl LinearLogProbs {
        fn head<'a>(&self, [hidden, weight]: &'a [FlexTensor; 2]) -> Head<'a> {
            Head::new(hidden, weight, self.softcap)
        }
    }

    impl Operation<2> for LinearLogProbs {
        /// The inputs, and log Σ exp of each row's logits.
        type Saved = ([FlexTensor; 2], FlexTensor);

        fn forward(&self, inputs: [FlexTensor; 2]) -> (FlexTensor, Self::Saved) {
            let states: Vec<(LogSumExp, f32)> = scan(
                [self.head(&inputs)],
                #[inline(always)]
                |(total, target): &mut (LogSumExp, f32), row, first, [logits]| {
                    total.update(logits);
                    let distance = self.targets[row].wrapping_sub(first);
                    if let Some(&logit) = logits.get(distance) {
                        *target = logit;
                    }
                },
            );
            let n = states.len();
            let log_sums: Vec<f32> = states.iter().map(|(total, _)| total.value()).collect();
            let log_probs = states.iter().zip(&log_sums).map(|((_, target), sum)| target - sum);
            (tensor(log_probs.collect(), [n]), (inputs, tensor(log_sums, [n])))
        }

        /// With p the softmax, t the tanh of the soft-capping and g the gradient of the row:
        /// `dz_v = g·(1[v = target] − p_v)·(1 − t_v²)`.
        fn backward(
            &self,
            (inputs, log_sums): Self::Saved,
            gradient: FlexTensor,
            wanted: [bool; 2],
        ) -> [Option<FlexTensor>; 2] {
            let (log_sums, g) = (values(&log_sums), values(&gradient));
            let gradients = backward(
                self.head(&inputs),
                None,
                wanted,
                #[inline(always)]
                |row, first, z, _| {
                    let (g, log_sum) = (g[row], log_sums[row]);
                    let distance = self.targets[row].wrapping_sub(first);
                    let target = z.get(distance).copied();
                    match self.softcap {
                        Some(cap) => {
                            for z in z.as_chunks_mut::<LANES>().0.as_flattened_mut() {
                                let t = tanh(*z);
                                *z = -g * exp(cap * t - log_sum) * (1.0 - t) * (1.0 + t);
                            }
                        }
                        None => {
                            for z in z.as_chunks_mut::<LANES>().0.as_flattened_mut() {
                                *z = -g * exp(*z - log_sum);
                            }
                        }
                    }
                    if let Some(argument) = target {
                        let t = if self.softcap.is_some() { tanh(argument) } else { 0.0 };
                        z[distance] += g * (1.0 - t) * (1.0 + t);
                    }
                },
            );
            tensors_like(gradients, &inputs)
        }
    }
}
