//! The Kullback-Leibler divergence of two language models, directly from their hidden states.

use burn::tensor::Tensor;

use crate::{
    Rows,
    blocked::{BLOCKS, Head},
    log_probs::log_distribution,
    profile, rows,
};

/// `KL(reference ‖ policy) = Σ_v r_v·(log r_v − log p_v)` per row, with `r = softmax(softcap(h_r·W_rᵀ))` and
/// `p = softmax(softcap(h·Wᵀ))` over the whole vocabulary (TDPO, equation 11). Gradients only reach the policy.
///
/// # Shapes
/// * `reference_hidden`: `[n, d_reference]`, `reference_weight`: `[vocabulary, d_reference]`
/// * `hidden`: `[n, d]`, `weight`: `[vocabulary, d]`; both weights whole or in parts
/// * result: `[n]`, in nats
pub fn linear_kl(
    reference_hidden: Tensor<2>,
    reference_weight: impl Into<Rows>,
    hidden: Tensor<2>,
    weight: impl Into<Rows>,
    softcap: Option<f64>,
) -> Tensor<1> {
    let (reference_weight, weight) = (reference_weight.into(), weight.into());
    let ([n_r, d_r], [v_r, dw_r]) = (reference_hidden.dims(), reference_weight.dims());
    let ([n, d], [v, dw]) = (hidden.dims(), weight.dims());
    assert!(
        n_r == n && v_r == v && d_r == dw_r && d == dw,
        "linear_kl: reference {:?} and {:?}, policy {:?} and {:?} don't fit together",
        reference_hidden.dims(),
        reference_weight.dims(),
        hidden.dims(),
        weight.dims()
    );
    let _within = profile::operation("linear_kl", || 2.0 * (n * v) as f64 * (d + d_r) as f64);
    #[cfg(feature = "flex")]
    if let (Some(reference_weight), Some(weight)) = (reference_weight.whole(), weight.whole())
        && let (Some(reference_hidden), Some(reference_weight)) =
            (crate::flex::constant(&reference_hidden), crate::flex::constant(reference_weight))
        && let Some(output) = crate::flex::apply(
            fast::LinearKl {
                reference: [reference_hidden, reference_weight],
                softcap: softcap.map(|cap| cap as f32),
            },
            [crate::flex::operand(&hidden), crate::flex::operand(weight)],
        )
    {
        return Tensor::from_dispatch(output);
    }
    let reference = Head::new(
        reference_hidden.clone().without_autodiff(),
        reference_weight.clone().without_autodiff(),
        softcap,
        BLOCKS,
    );
    match rows::apply(blocked::LinearKl { reference }, &hidden, &weight) {
        Some(output) => Tensor::from_dispatch(output),
        None => {
            let (reference_weight, weight) = (reference_weight.joined(), weight.joined());
            definition(reference_hidden, reference_weight, hidden, weight, softcap)
        }
    }
}

/// [`linear_kl`] in plain tensor operations.
pub fn definition(
    reference_hidden: Tensor<2>,
    reference_weight: Tensor<2>,
    hidden: Tensor<2>,
    weight: Tensor<2>,
    softcap: Option<f64>,
) -> Tensor<1> {
    let log_r = log_distribution(
        reference_hidden.without_autodiff(),
        reference_weight.without_autodiff(),
        softcap,
    );
    let log_p = log_distribution(hidden, weight, softcap);
    (log_r.clone().exp() * (log_r - log_p)).sum_dim(1).squeeze_dim(1)
}

/// The same in blocks, for backends without a fast path.
mod blocked {
    use burn::tensor::Tensor;

    #[cfg(feature = "cube")]
    use crate::cube::divergence::{Blocks, summaries};
    use crate::{
        blocked::{Head, LogSumExp},
        graph::{Operation, Plain},
        joined,
    };

    #[derive(Clone, Debug)]
    pub(super) struct LinearKl {
        pub reference: Head,
    }

    impl LinearKl {
        fn policy<const N: usize>(&self, inputs: [Plain; N]) -> Head {
            Head::of(inputs, self.reference.softcap, self.reference.blocks)
        }
    }

    /// The same with kernels for everything after the products.
    #[cfg(feature = "cube")]
    impl LinearKl {
        fn has_kernels(&self, policy: &Head) -> bool {
            [&policy.hidden, &self.reference.hidden].into_iter().all(crate::cube::takes)
        }

        fn by_kernels(&self, policy: &Head) -> (Plain, [Tensor<2>; 2]) {
            let (mut kl, mut sums) = (Vec::new(), [Vec::new(), Vec::new()]);
            for summary in summaries(&self.reference, policy) {
                let [log_r, log_p] = summary.log_sums();
                kl.push(summary.difference() - log_r.clone() + log_p.clone());
                sums[0].push(log_r);
                sums[1].push(log_p);
            }
            (joined(kl, 0).into(), sums.map(|sums| joined(sums, 0).unsqueeze_dim(1)))
        }
    }

    impl<const N: usize> Operation<N> for LinearKl {
        /// log Σ exp of each row's logits, `[n, 1]`: the reference's, the policy's.
        type Saved = [Tensor<2>; 2];

        /// `KL = Σ r·(a − b) − log Σ eᵃ + log Σ eᵇ` with a and b the logits of reference and policy.
        fn forward(&self, inputs: [Plain; N]) -> (Plain, Self::Saved) {
            let policy = self.policy(inputs);
            #[cfg(feature = "cube")]
            if self.has_kernels(&policy) {
                return self.by_kernels(&policy);
            }
            let (mut kl, mut sums) = (Vec::new(), [Vec::new(), Vec::new()]);
            for rows in policy.row_blocks() {
                let (mut r, mut p): (Option<LogSumExp>, Option<LogSumExp>) = (None, None);
                let mut difference: Option<Tensor<2>> = None;
                for tokens in policy.token_blocks() {
                    let a = self.reference.logits(&rows, &tokens).values;
                    let b = policy.logits(&rows, &tokens).values;
                    LogSumExp::update(&mut p, &b);
                    let (weights, rescale) = LogSumExp::update(&mut r, &a);
                    let more = (weights * (a - b)).sum_dim(1);
                    difference = Some(match (difference, rescale) {
                        (Some(before), Some(rescale)) => before * rescale + more,
                        _ => more,
                    });
                }
                if let (Some(r), Some(p), Some(difference)) = (r, p, difference) {
                    kl.push(difference / r.sum.clone() - r.value() + p.value());
                    sums[0].push(r.value());
                    sums[1].push(p.value());
                }
            }
            let output = joined(kl, 0).squeeze_dim::<1>(1);
            (output.into(), sums.map(|sums| joined(sums, 0)))
        }

        /// With g the gradient of the row: `g·(p_v − r_v)` per logit of the policy.
        fn backward(
            &self,
            inputs: [Plain; N],
            [r_sums, p_sums]: Self::Saved,
            gradient: Plain,
            wanted: [bool; N],
        ) -> [Option<Plain>; N] {
            let (policy, gradient) = (self.policy(inputs), Tensor::<1>::from(gradient));
            #[cfg(feature = "cube")]
            if self.has_kernels(&policy) {
                let sums = [r_sums, p_sums].map(|sums| sums.squeeze_dim::<1>(1));
                return policy.backward_of_products(wanted, |rows, tokens, products| {
                    let of = |x: &Tensor<1>| x.clone().narrow(0, rows.start, rows.len());
                    let reference = self.reference.products(rows, tokens);
                    let blocks = Blocks::new([reference, products], policy.softcap);
                    blocks.backward(sums.each_ref().map(of), of(&gradient))
                });
            }
            let gradient = gradient.unsqueeze_dim::<2>(1);
            policy.backward(wanted, |logits| {
                let of = |x: &Tensor<2>| x.clone().narrow(0, logits.rows.start, logits.rows.len());
                let reference = self.reference.logits(&logits.rows, &logits.tokens).values;
                let r = (reference - of(&r_sums)).exp();
                let p = (logits.values.clone() - of(&p_sums)).exp();
                (p - r) * of(&gradient)
            })
        }
    }
}

/// Both models' logits in the same blocks, recomputed in the backward pass.
#[cfg(feature = "flex")]
mod fast {
    use burn::backend::flex::FlexTensor;

    use crate::flex::{
        Operation,
        elementary::{exp, sum, tanh},
        logits::{Head, LogSumExp, backward, scan},
        tensor, tensors_like, values,
    };

    #[derive(Clone, Debug)]
    pub(super) struct LinearKl {
        pub reference: [FlexTensor; 2],
        pub softcap: Option<f32>,
    }

    impl LinearKl {
        fn head<'a>(&self, [hidden, weight]: &'a [FlexTensor; 2]) -> Head<'a> {
            Head::new(hidden, weight, self.softcap)
        }
    }

    #[derive(Clone, Default)]
    struct State {
        reference: LogSumExp,
        policy: LogSumExp,
        /// Σ eᶻ·(a − b) with a and b the logits of reference and policy, and z = a − max a.
        difference: f32,
    }

    impl Operation<2> for LinearKl {
        /// The inputs, and log Σ exp of each row's logits: the reference's, the policy's.
        type Saved = ([FlexTensor; 2], [FlexTensor; 2]);

        /// `KL = Σ r·(a − b) − log Σ eᵃ + log Σ eᵇ`.
        fn forward(&self, inputs: [FlexTensor; 2]) -> (FlexTensor, Self::Saved) {
            let states: Vec<State> = scan(
                [self.head(&self.reference), self.head(&inputs)],
                #[inline(always)]
                |state: &mut State, _, _, [a, b]| {
                    let rescale = state.reference.update(a);
                    state.policy.update(b);
                    let largest = state.reference.largest;
                    let more = sum(
                        [a, b],
                        #[inline(always)]
                        |[a, b]| exp(a - largest) * (a - b),
                    );
                    state.difference = state.difference * rescale + more;
                },
            );
            let n = states.len();
            let column = |f: fn(&State) -> f32| tensor(states.iter().map(f).collect(), [n]);
            let output = column(|state| {
                let mean = state.difference / state.reference.sum;
                mean - (state.reference.value() - state.policy.value())
            });
            let log_sums =
                [column(|state| state.reference.value()), column(|state| state.policy.value())];
            (output, (inputs, log_sums))
        }

        /// With r and p the distributions, t the tanh inside the policy's soft-cap and g the gradient of the row:
        /// `dz_v = g·(p_v − r_v)·(1 − t_v²)`.
        fn backward(
            &self,
            (inputs, log_sums): Self::Saved,
            gradient: FlexTensor,
            wanted: [bool; 2],
        ) -> [Option<FlexTensor>; 2] {
            let ([log_r, log_p], g) = (log_sums.each_ref().map(values), values(&gradient));
            let gradients = backward(
                self.head(&inputs),
                Some(self.head(&self.reference)),
                Vec::new(),
                wanted,
                #[inline(always)]
                |row, _, z, a| {
                    let (g, log_r, log_p) = (g[row], log_r[row], log_p[row]);
                    for (z, &a) in z.iter_mut().zip(a) {
                        let (t, logit) = match self.softcap {
                            Some(cap) => (tanh(*z), cap * tanh(*z)),
                            None => (0.0, *z),
                        };
                        let difference = exp(logit - log_p) - exp(a - log_r);
                        *z = g * difference * (1.0 - t) * (1.0 + t);
                    }
                },
            );
            tensors_like(gradients, &inputs)
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::blocked::LinearKl;
    use crate::{
        Rows,
        blocked::Head,
        testing::{check_parts, heads, partitions, random},
    };

    #[test]
    fn blocks_and_parts_make_no_difference() {
        for (n, d, v, blocks) in heads() {
            for softcap in [None, Some(2.0)] {
                for parts in partitions(v) {
                    // The reference may have another width, and its weight may be split differently.
                    let [hidden, weight] = [random(7, [n, d + 1]), random(8, [v, d + 1])];
                    let rows = Rows::new(weight.clone().split_with_sizes(parts, 0));
                    let reference = Head::new(hidden.clone(), rows, softcap, blocks);
                    check_parts(LinearKl { reference }, [n, d], v, |h, w| {
                        super::definition(hidden.clone(), weight.clone(), h, w, softcap)
                    });
                }
            }
        }
    }
}
