//! A language model's predictions at given tokens: log-probability, entropy, most probable token.

use burn::tensor::{Int, Tensor};

use crate::{
    Rows,
    blocked::{BLOCKS, Head, LogSumExp},
    log_probs::{check_shapes, log_distribution, products},
    profile,
};

/// Statistics per row of hidden states.
#[derive(Clone, Debug)]
pub struct TokenStatistics {
    /// Log-probability of the target in nats, `[n]`.
    pub log_probs: Tensor<1>,
    /// Entropy of the distribution in nats, `[n]`.
    pub entropy: Tensor<1>,
    /// Most probable token (the first on ties), `[n]`.
    pub argmax: Tensor<1, Int>,
}

/// The statistics of `softmax(softcap(h·Wᵀ))` per row, outside any graph.
///
/// # Shapes
/// * `hidden`: `[n, d]`
/// * `weight`: `[vocabulary, d]`, whole or in parts
/// * `targets`: `[n]`, each in `0..vocabulary`
pub fn linear_token_statistics(
    hidden: Tensor<2>,
    weight: impl Into<Rows>,
    targets: Tensor<1, Int>,
    softcap: Option<f64>,
) -> TokenStatistics {
    let weight = weight.into();
    check_shapes("linear_token_statistics", &hidden, &weight, &targets);
    let _within = profile::operation("linear_token_statistics", || products(&hidden, &weight));
    #[cfg(feature = "flex")]
    if let Some(weight) = weight.whole()
        && let Some(statistics) = fast(&hidden, weight, &targets, softcap)
    {
        return statistics;
    }
    let head = Head::new(hidden.without_autodiff(), weight.without_autodiff(), softcap, BLOCKS);
    blocked(&head, targets.without_autodiff())
}

/// The same in blocks, for backends without a fast path.
fn blocked(head: &Head, targets: Tensor<1, Int>) -> TokenStatistics {
    #[cfg(feature = "cube")]
    if crate::cube::takes(&head.hidden) {
        return by_kernels(head, &targets);
    }
    let (mut log_probs, mut entropy, mut argmax) = (Vec::new(), Vec::new(), Vec::new());
    for rows in head.row_blocks() {
        let targets = targets.clone().narrow(0, rows.start, rows.len());
        let mut state: Option<LogSumExp> = None;
        // The target's logit, Σ eᶻ·logit with z relative to the largest logit, and the token of the largest; `[rows, 1]` each.
        let mut found: Option<(Tensor<2>, Tensor<2>, Tensor<2, Int>)> = None;
        for tokens in head.token_blocks() {
            let logits = head.logits(&rows, &tokens);
            let before = state.as_ref().map(|state| state.largest.clone());
            let (weights, rescale) = LogSumExp::update(&mut state, &logits.values);
            let here = (logits.one_hot(targets.clone()) * logits.values.clone()).sum_dim(1);
            let mean = (weights * logits.values.clone()).sum_dim(1);
            let place = logits.values.clone().argmax(1) + tokens.start as i64;
            found = Some(match (found, before, rescale) {
                (Some((target, sum, best)), Some(before), Some(rescale)) => {
                    // The first on ties stays.
                    let better = logits.values.max_dim(1).greater(before);
                    (target + here, sum * rescale + mean, best.mask_where(better, place))
                }
                _ => (here, mean, place),
            });
        }
        if let (Some(state), Some((target, sum, best))) = (state, found) {
            log_probs.push(target - state.value());
            entropy.push(state.value() - sum / state.sum);
            argmax.push(best);
        }
    }
    TokenStatistics {
        log_probs: Tensor::cat(log_probs, 0).squeeze_dim(1),
        entropy: Tensor::cat(entropy, 0).squeeze_dim(1),
        argmax: Tensor::cat(argmax, 0).squeeze_dim(1),
    }
}

/// The same with one kernel for everything after the products of a block.
#[cfg(feature = "cube")]
fn by_kernels(head: &Head, targets: &Tensor<1, Int>) -> TokenStatistics {
    let (mut log_probs, mut entropy, mut argmax) = (Vec::new(), Vec::new(), Vec::new());
    for summary in crate::cube::head::summaries(head, targets) {
        let log_sum = summary.log_sum();
        log_probs.push(summary.target() - log_sum.clone());
        entropy.push(log_sum - summary.mean());
        argmax.push(summary.largest_token());
    }
    TokenStatistics {
        log_probs: crate::joined(log_probs, 0),
        entropy: crate::joined(entropy, 0),
        argmax: Tensor::cat(argmax, 0),
    }
}

/// [`linear_token_statistics`] in plain tensor operations.
pub fn definition(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: Tensor<1, Int>,
    softcap: Option<f64>,
) -> TokenStatistics {
    let log_p = log_distribution(hidden.without_autodiff(), weight.without_autodiff(), softcap);
    let targets = targets.without_autodiff().unsqueeze_dim(1);
    TokenStatistics {
        log_probs: log_p.clone().gather(1, targets).squeeze_dim(1),
        entropy: -(log_p.clone().exp() * log_p.clone()).sum_dim(1).squeeze_dim(1),
        argmax: log_p.argmax(1).squeeze_dim(1),
    }
}

/// One pass over blocks of logits on Flex, with running sums for all three statistics.
#[cfg(feature = "flex")]
fn fast(
    hidden: &Tensor<2>,
    weight: &Tensor<2>,
    targets: &Tensor<1, Int>,
    softcap: Option<f64>,
) -> Option<TokenStatistics> {
    use crate::flex::{
        constant,
        elementary::{exp, sum},
        indices,
        logits::{Head, LogSumExp, scan},
        plain, tensor,
    };

    #[derive(Clone, Default)]
    struct State {
        total: LogSumExp,
        /// Σ eᶻ·z with z = logit − largest
        weighted: f32,
        target: f32,
        argmax: usize,
    }

    let device = targets.device().without_autodiff();
    let targets = indices(targets, weight.dims()[0], "linear_token_statistics")?;
    let n = hidden.dims()[0];
    let (hidden, weight) = (constant(hidden)?, constant(weight)?);
    let head = Head::new(&hidden, &weight, softcap.map(|cap| cap as f32));
    let states: Vec<State> = scan(
        [head],
        #[inline(always)]
        |state: &mut State, row, first, [logits]| {
            let before = state.total;
            let rescale = state.total.update(logits);
            let largest = state.total.largest;
            if largest > before.largest {
                // Moving the origin by s turns Σ eᶻ·z into e⁻ˢ·(Σ eᶻ·z − s·Σ eᶻ).
                if before.sum > 0.0 {
                    let shift = largest - before.largest;
                    state.weighted = rescale * (state.weighted - shift * before.sum);
                }
                let position = logits.iter().position(|&logit| logit == largest);
                state.argmax = first + position.expect("the largest logit is one of these");
            }
            state.weighted += sum(
                [logits],
                #[inline(always)]
                |[logit]| exp(logit - largest) * (logit - largest),
            );
            let distance = targets[row].wrapping_sub(first);
            if let Some(&logit) = logits.get(distance) {
                state.target = logit;
            }
        },
    );
    let column = |f: fn(&State) -> f32| {
        Tensor::from_dispatch(plain(tensor(states.iter().map(f).collect(), [n])))
    };
    let argmax: Vec<i64> = states.iter().map(|state| state.argmax as i64).collect();
    Some(TokenStatistics {
        log_probs: column(|state| state.target - state.total.value()),
        entropy: column(|state| state.total.sum.ln() - state.weighted / state.total.sum),
        argmax: Tensor::from_data(burn::tensor::TensorData::new(argmax, [n]), &device),
    })
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::{Head, blocked, definition};
    use crate::{
        Rows,
        testing::{close, heads, partitions, random, targets},
    };

    #[test]
    fn blocks_and_parts_make_no_difference() {
        for (n, d, v, blocks) in heads() {
            for softcap in [None, Some(2.0)] {
                for parts in partitions(v) {
                    let (hidden, weight) = (random(1, [n, d]), random(2, [v, d]));
                    let rows = Rows::new(weight.clone().split_with_sizes(parts, 0));
                    let head = Head::new(hidden.clone(), rows, softcap, blocks);
                    let found = blocked(&head, targets(n, v));
                    let expected = definition(hidden, weight, targets(n, v), softcap);
                    close("log_probs", &found.log_probs, &expected.log_probs);
                    close("entropy", &found.entropy, &expected.entropy);
                    assert_eq!(found.argmax.to_data(), expected.argmax.to_data());
                }
            }
        }
    }
}
