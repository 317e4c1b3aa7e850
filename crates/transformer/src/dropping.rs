//! Dropout of adapters: on the input of A, as in PEFT, and only in a model that was asked for it.

use std::sync::Arc;

use fpo_ops::Dropout;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{LanguageModel, lora::Projection};

/// Which inputs of an adapter are zeroed.
#[derive(Clone, Debug)]
pub(crate) struct Mask {
    rate: f64,
    seed: u64,
    /// Identifies each token of the batch: a number of its row, and its position there.
    tokens: Arc<[(u64, usize)]>,
}

impl Mask {
    pub(crate) fn dropout(&self) -> Dropout<'_> {
        Dropout { rate: self.rate, seed: self.seed, tokens: &self.tokens }
    }
}

impl LanguageModel {
    /// The same model as it is trained: its adapters have the dropout of their configuration, with masks that follow from the run's
    /// seed and the step. It takes no batch before [`Self::for_tokens`] has said which tokens it will see. Without dropout, it stays as
    /// it is.
    #[must_use]
    pub fn dropping(&self, seed: u64, step: usize) -> Self {
        let mut model = self.clone();
        let Some(rate) = self.lora().map(|lora| lora.dropout).filter(|&rate| rate > 0.0) else {
            return model;
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(step as u64);
        for block in &mut model.model.layers {
            for projection in Projection::ALL {
                let seed = rng.random();
                if let Some(lora) = &mut projection.of_mut(block).lora {
                    lora.mask = Some(Mask { rate, seed, tokens: Arc::default() });
                }
            }
        }
        model
    }

    /// The same model for a batch with these tokens, each identified by a number of its row and its position there: its mask depends on
    /// them, and not on the tokens beside it. A model that isn't [dropping](Self::dropping) stays as it is.
    #[must_use]
    pub fn for_tokens(&self, tokens: impl IntoIterator<Item = (u64, usize)>) -> Self {
        let mut model = self.clone();
        let tokens: Arc<[(u64, usize)]> = tokens.into_iter().collect();
        for block in &mut model.model.layers {
            for projection in Projection::ALL {
                let mask = projection.of_mut(block).lora.as_mut().and_then(|l| l.mask.as_mut());
                if let Some(mask) = mask {
                    mask.tokens = Arc::clone(&tokens);
                }
            }
        }
        model
    }
}

#[cfg(test)]
mod tests {
    use burn::{
        module::Param,
        tensor::{Device, Tensor},
    };
    use fpo_ops::dropout;

    use super::*;
    use crate::{Linear, Precision, linear::Lora};

    const SCALE: f64 = 1.5;

    fn values<const D: usize>(seed: f64, shape: [usize; D], device: &Device) -> Tensor<D> {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| (seed + 1.7 * i as f64).sin() as f32).collect();
        Tensor::<1>::from_floats(values.as_slice(), device).reshape(shape)
    }

    /// The tokens of padded rows.
    fn tokens(rows: [u64; 2], width: usize) -> Arc<[(u64, usize)]> {
        rows.into_iter().flat_map(|row| (0..width).map(move |position| (row, position))).collect()
    }

    fn leaf<const D: usize>(x: Tensor<D>) -> Param<Tensor<D>> {
        Param::from_tensor(x)
    }

    fn layer(dora: bool, mask: Option<Mask>, device: &Device) -> Linear {
        let weight = leaf(values(0.1, [5, 6], &Device::flex()));
        let magnitude = dora.then(|| leaf(values(0.7, [5], device) + 2.0));
        let [a, b] = [(0.3, [2, 6]), (0.5, [5, 2])].map(|(seed, s)| leaf(values(seed, s, device)));
        let bias = leaf(values(0.9, [5], &Device::flex()));
        let mut linear = Linear::new(weight, Some(bias), Precision::Float32);
        linear.lora = Some(Lora { a, b, magnitude, scale: SCALE, mask });
        linear
    }

    /// Oracle: PEFT's formulas, `Linear.forward` and `DoraLinearVariant.forward`, in plain tensor operations with the same mask; and
    /// autodiff through them.
    #[test]
    fn a_layer_is_pefts_with_the_same_mask() {
        let device = Device::flex().autodiff();
        let mask = Mask { rate: 0.3, seed: 8, tokens: tokens([4, 9], 7) };
        let x = values(0.2, [2, 7, 6], &device);
        let kept = dropout(Tensor::ones([2, 7, 6], &device), mask.dropout());
        for dora in [false, true] {
            let linear = layer(dora, Some(mask.clone()), &device);
            let lora = linear.lora.as_ref().unwrap();
            let found = linear.forward(x.clone());

            let weight = linear.weight.val().autodiff();
            let by = |x: Tensor<3>, w: Tensor<2>| x.matmul(w.transpose().unsqueeze());
            let base = by(x.clone(), weight.clone());
            let dropped = x.clone() * kept.clone();
            let added = by(by(dropped.clone(), lora.a.val()), lora.b.val()) * SCALE;
            let expected = match &lora.magnitude {
                None => base + added,
                Some(magnitude) => {
                    let whole = weight.clone() + lora.b.val().matmul(lora.a.val()) * SCALE;
                    let norm = whole.powf_scalar(2.0).sum_dim(1).sqrt().squeeze_dim::<1>(1);
                    let gain = (magnitude.val() / norm.detach()).unsqueeze::<3>();
                    base + (gain.clone() - 1.0) * by(dropped, weight) + gain * added
                }
            };
            let bias = linear.bias.as_ref().unwrap().val().autodiff();
            let expected = expected + bias.unsqueeze();
            let weights = values(0.4, [2, 7, 5], &device);
            let [found_gradients, gradients] =
                [&found, &expected].map(|y| (y.clone() * weights.clone()).sum().backward());
            let close = |found: Vec<f32>, expected: Vec<f32>, what: &str| {
                let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
                let worst = differences.fold(0.0, f32::max);
                assert!(worst < 2e-5 && found.len() == expected.len(), "{what}: {worst}");
            };
            let list = |x: Tensor<1>| -> Vec<f32> { x.into_data().iter().collect() };
            close(list(found.reshape([-1])), list(expected.reshape([-1])), "output");
            for (name, parameter) in [("A", &lora.a), ("B", &lora.b)] {
                let of = |g| list(parameter.val().grad(g).unwrap().reshape([-1]));
                close(of(&found_gradients), of(&gradients), name);
            }
            if let Some(magnitude) = &lora.magnitude {
                let of = |g| list(magnitude.val().grad(g).unwrap());
                close(of(&found_gradients), of(&gradients), "magnitude");
            }
        }
    }

    /// Oracle: the layer without dropout, which is the mean over all masks.
    #[test]
    fn the_mean_over_masks_is_the_layer_without() {
        let device = Device::flex();
        let x = values(0.2, [2, 3, 6], &device);
        for dora in [false, true] {
            let list = |y: Tensor<3>| -> Vec<f64> { y.into_data().iter::<f64>().collect() };
            let expected = list(layer(dora, None, &device).forward(x.clone()));
            let draws = 4000;
            let (mut sum, mut squares) = (vec![0.0; 30], vec![0.0; 30]);
            for seed in 0..draws {
                let mask = Mask { rate: 0.25, seed, tokens: tokens([0, 1], 3) };
                let found = list(layer(dora, Some(mask), &device).forward(x.clone()));
                for (i, y) in found.into_iter().enumerate() {
                    sum[i] += y;
                    squares[i] += y * y;
                }
            }
            let n = draws as f64;
            for i in 0..30 {
                let mean = sum[i] / n;
                let deviation = ((squares[i] / n - mean * mean) / n).sqrt();
                assert!(deviation > 1e-4, "nothing is dropped");
                assert!((mean - expected[i]).abs() < 4.5 * deviation, "{mean}, {}", expected[i]);
            }
        }
    }
}
