//! Log-probabilities of target tokens directly from hidden states, without all logits in memory.

use burn::tensor::{Int, Tensor, activation::log_softmax};

use crate::{Rows, blocked::BLOCKS, linear, profile, rows, softcap::optional_softcap};

/// `log softmax(softcap(h·Wᵀ))[target]` per row in nats, in float32 at least; gradients reach `hidden` and `weight`. If the weight
/// has another type than the hidden states, it is cast to theirs, and its gradient is cast back.
///
/// On the CPU, up to 320 MiB of logits are kept until the backward pass, if one can follow: measure without autodiff.
///
/// # Shapes
/// * `hidden`: `[n, d]`, already shifted: row i predicts `targets[i]`
/// * `weight`: `[vocabulary, d]`, the unembedding, whole or in parts
/// * `targets`: `[n]`, each in `0..vocabulary`
/// * result: `[n]`
pub fn linear_log_probs(
    hidden: Tensor<2>,
    weight: impl Into<Rows>,
    targets: Tensor<1, Int>,
    softcap: Option<f64>,
) -> Tensor<1> {
    let weight = weight.into();
    check_shapes("linear_log_probs", &hidden, &weight, &targets);
    let _within = profile::operation("linear_log_probs", || products(&hidden, &weight));
    #[cfg(feature = "flex")]
    if let Some(indices) = crate::flex::indices(&targets, weight.dims()[0], "linear_log_probs")
        && let Some(weight) = weight.whole()
    {
        let operands = [crate::flex::operand(&hidden), crate::flex::operand(weight)];
        let is_tracked = operands.iter().flatten().any(crate::flex::Operand::is_tracked);
        let operation = fast::LinearLogProbs {
            targets: indices.into(),
            softcap: softcap.map(|cap| cap as f32),
            kept: if is_tracked { crate::flex::logits::KEPT } else { 0 },
        };
        if let Some(output) = crate::flex::apply(operation, operands) {
            return Tensor::from_dispatch(output);
        }
    }
    let blocked = blocked::LinearLogProbs {
        targets: targets.clone().without_autodiff(),
        softcap,
        blocks: BLOCKS,
    };
    match rows::apply(blocked, &hidden, &weight) {
        Some(output) => Tensor::from_dispatch(output),
        None => definition(hidden, weight.joined(), targets, softcap),
    }
}

/// [`linear_log_probs`] in plain tensor operations.
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
    let weight = weight.cast(hidden.dtype());
    let logits = crate::rms_norm::at_least_f32(linear::definition(hidden, weight));
    log_softmax(optional_softcap(logits, softcap), 1)
}

/// Checks hidden states `[n, d]`, a weight `[vocabulary, d]` and targets `[n]`.
pub(crate) fn check_shapes(
    operation: &str,
    hidden: &Tensor<2>,
    weight: &Rows,
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

/// FLOPs of the logits.
pub(crate) fn products(hidden: &Tensor<2>, weight: &Rows) -> f64 {
    let ([n, d], [vocabulary, _]) = (hidden.dims(), weight.dims());
    2.0 * n as f64 * d as f64 * vocabulary as f64
}

/// The same in blocks, for backends without a fast path.
mod blocked {
    use burn::tensor::{Int, Tensor};

    use crate::{
        blocked::{Blocks, Head, LogSumExp},
        graph::{Operation, Plain},
        joined,
    };

    #[derive(Clone, Debug)]
    pub(super) struct LinearLogProbs {
        pub targets: Tensor<1, Int>,
        pub softcap: Option<f64>,
        pub blocks: Blocks,
    }

    impl LinearLogProbs {
        fn targets(&self, rows: &std::ops::Range<usize>) -> Tensor<1, Int> {
            self.targets.clone().narrow(0, rows.start, rows.len())
        }
    }

    #[cfg(feature = "cube")]
    impl LinearLogProbs {
        /// The forward pass with a kernel for everything after the products.
        fn by_kernels(&self, head: &Head) -> (Plain, Tensor<2>) {
            let (mut log_probs, mut log_sums) = (Vec::new(), Vec::new());
            for summary in crate::cube::head::summaries(head, &self.targets) {
                let log_sum = summary.log_sum();
                log_probs.push(summary.target() - log_sum.clone());
                log_sums.push(log_sum);
            }
            (joined(log_probs, 0).into(), joined(log_sums, 0).unsqueeze_dim(1))
        }
    }

    impl<const N: usize> Operation<N> for LinearLogProbs {
        /// log Σ exp of each row's logits, `[n, 1]`.
        type Saved = Tensor<2>;

        fn forward(&self, inputs: [Plain; N]) -> (Plain, Self::Saved) {
            let head = Head::of(inputs, self.softcap, self.blocks);
            #[cfg(feature = "cube")]
            if crate::cube::takes(&head.hidden) {
                return self.by_kernels(&head);
            }
            let (mut log_probs, mut log_sums) = (Vec::new(), Vec::new());
            for rows in head.row_blocks() {
                let mut state: Option<LogSumExp> = None;
                let mut target: Option<Tensor<2>> = None;
                for tokens in head.token_blocks() {
                    let logits = head.logits(&rows, &tokens);
                    LogSumExp::update(&mut state, &logits.values);
                    let here = logits.one_hot(self.targets(&rows)) * logits.values;
                    let here = here.sum_dim(1);
                    target = Some(target.map_or(here.clone(), |sum| sum + here));
                }
                if let (Some(state), Some(target)) = (state, target) {
                    log_probs.push(target - state.value());
                    log_sums.push(state.value());
                }
            }
            let output = joined(log_probs, 0).squeeze_dim::<1>(1);
            (output.into(), joined(log_sums, 0))
        }

        /// With p the softmax and g the gradient of the row: `g·(1[v = target] − p_v)` per logit.
        fn backward(
            &self,
            inputs: [Plain; N],
            log_sums: Self::Saved,
            gradient: Plain,
            wanted: [bool; N],
        ) -> [Option<Plain>; N] {
            let gradient = Tensor::<1>::from(gradient);
            let head = Head::of(inputs, self.softcap, self.blocks);
            #[cfg(feature = "cube")]
            if crate::cube::takes(&head.hidden) {
                let softcap = self.softcap;
                let log_sums = log_sums.squeeze_dim::<1>(1);
                return head.backward_of_products(wanted, |rows, tokens, products| {
                    let of = |x: &Tensor<1>| x.clone().narrow(0, rows.start, rows.len());
                    let block = crate::cube::head::Block::new(products, softcap, tokens);
                    block.backward(self.targets(rows), of(&log_sums), of(&gradient))
                });
            }
            let gradient = gradient.unsqueeze_dim::<2>(1);
            head.backward(wanted, |logits| {
                let of = |x: &Tensor<2>| x.clone().narrow(0, logits.rows.start, logits.rows.len());
                let softmax = (logits.values.clone() - of(&log_sums)).exp();
                (logits.one_hot(self.targets(&logits.rows)) - softmax) * of(&gradient)
            })
        }
    }
}

/// Logits in blocks. A fixed number of them is kept for the backward pass, which computes the others again.
#[cfg(feature = "flex")]
mod fast {
    use std::sync::Arc;

    use burn::backend::flex::FlexTensor;

    use crate::flex::{
        Operation,
        elementary::{LANES, exp, tanh},
        logits::{Head, LogSumExp, Slab, backward, scan_and_keep},
        tensor, tensors_like, values,
    };

    #[derive(Clone, Debug)]
    pub(super) struct LinearLogProbs {
        pub targets: Arc<[usize]>,
        pub softcap: Option<f32>,
        /// How many logits to keep for the backward pass at most.
        pub kept: usize,
    }

    impl LinearLogProbs {
        fn head<'a>(&self, [hidden, weight]: &'a [FlexTensor; 2]) -> Head<'a> {
            Head::new(hidden, weight, self.softcap)
        }
    }

    impl Operation<2> for LinearLogProbs {
        /// The inputs, log Σ exp of each row's logits, and the first of the logits.
        type Saved = ([FlexTensor; 2], FlexTensor, Vec<Slab>);

        fn forward(&self, inputs: [FlexTensor; 2]) -> (FlexTensor, Self::Saved) {
            let (states, kept): (Vec<(LogSumExp, f32)>, _) = scan_and_keep(
                [self.head(&inputs)],
                self.kept,
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
            (tensor(log_probs.collect(), [n]), (inputs, tensor(log_sums, [n]), kept))
        }

        /// With p the softmax, t the tanh inside the soft-cap and g the gradient of the row:
        /// `dz_v = g·(1[v = target] − p_v)·(1 − t_v²)`.
        fn backward(
            &self,
            (inputs, log_sums, kept): Self::Saved,
            gradient: FlexTensor,
            wanted: [bool; 2],
        ) -> [Option<FlexTensor>; 2] {
            let (log_sums, g) = (values(&log_sums), values(&gradient));
            let gradients = backward(
                self.head(&inputs),
                None,
                kept,
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

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::{DType, Tensor};

    use super::{blocked::LinearLogProbs, definition, fast};
    use crate::{
        flex::{self, logits::KEPT},
        numbers::close,
        testing::{check_parts, heads, random, targets},
    };

    /// Logits of all rows, of some, or of none are kept; rows and vocabulary aren't multiples of their blocks.
    #[test]
    fn kept_logits_make_no_difference() {
        let (n, d, v) = (600, 5, 300);
        let (of_row, indices) = (512, flex::indices(&targets(n, v), v, "test").unwrap());
        let [hidden, weight] =
            [random(1, [n, d]), random(2, [v, d])].map(|x: Tensor<2>| x.cast(DType::F32));
        let run = |f: &dyn Fn(Tensor<2>, Tensor<2>) -> Tensor<1>| {
            let leaves = [&hidden, &weight].map(|x| x.clone().autodiff().require_grad());
            let output = f(leaves[0].clone(), leaves[1].clone());
            let scale = random(3, [1, n]).cast(DType::F32).autodiff().reshape([n]);
            let gradients = (output.clone() * scale).sum().backward();
            (output.inner(), leaves.map(|leaf| leaf.grad(&gradients).unwrap()))
        };
        for softcap in [None, Some(2.0)] {
            let (output, gradients) =
                run(&|h, w| definition(h, w, targets(n, v).autodiff(), softcap));
            for kept in [0, of_row, 256 * of_row, 599 * of_row, 600 * of_row, KEPT] {
                let (found, found_gradients) = run(&|h, w| {
                    let operation = fast::LinearLogProbs {
                        targets: indices.clone().into(),
                        softcap: softcap.map(|cap| cap as f32),
                        kept,
                    };
                    let operands = [h, w].map(|x| flex::operand(&x));
                    assert!(operands.iter().flatten().all(flex::Operand::is_tracked));
                    Tensor::from_dispatch(flex::apply(operation, operands).unwrap())
                });
                close("log_probs", &found, &output, 5e-6);
                close("d_hidden", &found_gradients[0], &gradients[0], 2e-5);
                close("d_weight", &found_gradients[1], &gradients[1], 2e-5);
            }
        }
    }

    #[test]
    fn blocks_and_parts_make_no_difference() {
        for (n, d, v, blocks) in heads() {
            for softcap in [None, Some(2.0)] {
                let targets = targets(n, v);
                check_parts(
                    LinearLogProbs { targets: targets.clone(), softcap, blocks },
                    [n, d],
                    v,
                    |h, w| super::definition(h, w, targets.clone().autodiff(), softcap),
                );
            }
        }
    }
}
