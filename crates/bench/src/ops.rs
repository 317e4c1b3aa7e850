//! Benchmarks of every operation in `fpo-ops` at the sizes of a small model: the fast path against the plain definition, and
//! against the matmul rate measured in the same run.

use std::time::Instant;

use anyhow::Result;
use burn::tensor::{Device, Distribution, Int, Tensor};
use fpo_device::sync;
use fpo_ops::{Activation, AdamW, AttentionOptions, Encoder, Gain, Normalization, definition};
use serde::Serialize;

use crate::median;

const TEXTS: usize = 16;
const TOKENS: usize = 128;
const POSITIONS: usize = TEXTS * TOKENS;
const D_MODEL: usize = 256;
const FFN: usize = 1024;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const VOCABULARY: usize = 4096;
const D_SAE: usize = 2048;

/// Times of one operation in milliseconds, medians over the repeats.
#[derive(Clone, Debug, Serialize)]
pub struct OpReport {
    /// The operation, with the variant if it has several.
    pub name: String,
    /// Forward pass.
    pub forward_ms: f64,
    /// Forward and backward pass; `None` for operations without a gradient.
    pub both_ms: Option<f64>,
    /// Forward pass of the plain definition.
    pub definition_forward_ms: f64,
    /// Forward and backward pass of the plain definition.
    pub definition_both_ms: Option<f64>,
    /// Share of the matmul rate, from 0 to 1, that forward and backward pass reach together. Recomputed products don't count;
    /// `None` for operations without matrix products.
    pub matmul_share: Option<f64>,
}

/// The result of [`measure`].
#[derive(Clone, Debug, Serialize)]
pub struct OpsReport {
    /// GFLOP/s of Burn's float32 product of a 2048 × 1024 and a 1024 × 1024 matrix.
    pub matmul_gflops: f64,
    /// One entry per operation.
    pub operations: Vec<OpReport>,
}

struct Bench {
    device: Device,
    repeats: usize,
    gflops: f64,
    operations: Vec<OpReport>,
}

/// Measures every operation; times are medians over `repeats` calls after a warm-up.
///
/// # Errors
/// A device failure.
pub fn measure(device: &Device, repeats: usize) -> Result<OpsReport> {
    let mut bench = Bench { device: device.clone(), repeats, gflops: 0.0, operations: Vec::new() };
    let [a, b] = [[2048, 1024], [1024, 1024]].map(|shape| bench.random(shape).inner());
    let seconds = bench.time(|| drop(a.clone().matmul(b.clone())))? / 1e3;
    bench.gflops = 2.0 * 2048.0 * 1024.0 * 1024.0 / seconds / 1e9;
    bench.blocks()?;
    bench.vocabulary()?;
    bench.features()?;
    bench.optimizer()?;
    Ok(OpsReport { matmul_gflops: bench.gflops, operations: bench.operations })
}

impl Bench {
    fn random(&self, shape: [usize; 2]) -> Tensor<2> {
        let device = self.device.clone().autodiff();
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device).require_grad()
    }

    /// Median time in milliseconds after one warm-up call.
    fn time(&self, mut work: impl FnMut()) -> Result<f64> {
        let mut times = Vec::with_capacity(self.repeats);
        for run in 0..=self.repeats {
            let begun = Instant::now();
            work();
            sync(&self.device)?;
            if run > 0 {
                times.push(begun.elapsed().as_secs_f64() * 1e3);
            }
        }
        Ok(median(times))
    }

    /// Times the fast path and the definition of an operation, for an upstream gradient of ones. `flops` are those of the forward
    /// pass's products; the backward pass takes twice as many.
    fn compare<const N: usize>(
        &mut self,
        name: &str,
        flops: Option<usize>,
        inputs: [Tensor<2>; N],
        fused: impl Fn([Tensor<2>; N]) -> Tensor<2>,
        plain: impl Fn([Tensor<2>; N]) -> Tensor<2>,
    ) -> Result<()> {
        let constants = inputs.clone().map(Tensor::inner);
        let both = |f: &dyn Fn([Tensor<2>; N]) -> Tensor<2>| -> Result<Option<f64>> {
            match f(inputs.clone()).is_tracked() {
                true => Ok(Some(self.time(|| drop(f(inputs.clone()).backward()))?)),
                false => Ok(None),
            }
        };
        let report = OpReport {
            name: name.to_owned(),
            forward_ms: self.time(|| drop(fused(constants.clone())))?,
            both_ms: both(&fused)?,
            definition_forward_ms: self.time(|| drop(plain(constants.clone())))?,
            definition_both_ms: both(&plain)?,
            matmul_share: None,
        };
        let share = flops.map(|flops| {
            let (times, ms) = report.both_ms.map_or((1.0, report.forward_ms), |ms| (3.0, ms));
            times * flops as f64 / (ms * 1e-3) / 1e9 / self.gflops
        });
        self.operations.push(OpReport { matmul_share: share, ..report });
        Ok(())
    }

    /// Operations of a transformer block.
    fn blocks(&mut self) -> Result<()> {
        for (name, inner, outer) in [("linear, up", D_MODEL, FFN), ("linear, down", FFN, D_MODEL)] {
            self.compare(
                name,
                Some(2 * POSITIONS * inner * outer),
                [self.random([POSITIONS, inner]), self.random([outer, inner])],
                |[x, w]| fpo_ops::linear(x, w),
                |[x, w]| definition::linear(x, w),
            )?;
        }
        for window in [None, Some(32)] {
            let options = AttentionOptions { scale: 0.125, softcap: Some(50.0), window };
            let heads = |x: Tensor<2>| {
                let width = x.dims()[1];
                x.reshape([TEXTS, TOKENS, width / HEAD_DIM, HEAD_DIM])
            };
            let seen = window.unwrap_or(TOKENS);
            let scores = HEADS * TEXTS * (TOKENS * seen - seen * (seen - 1) / 2);
            let narrow = |heads: usize| self.random([POSITIONS, heads * HEAD_DIM]);
            self.compare(
                if window.is_some() { "causal_attention, window 32" } else { "causal_attention" },
                Some(2 * 2 * scores * HEAD_DIM),
                [narrow(HEADS), narrow(KV_HEADS), narrow(KV_HEADS)],
                |qkv| {
                    let [q, k, v] = qkv.map(heads);
                    fpo_ops::causal_attention(q, k, v, &options)
                        .reshape([POSITIONS, HEADS * HEAD_DIM])
                },
                |qkv| {
                    let [q, k, v] = qkv.map(heads);
                    definition::causal_attention(q, k, v, &options)
                        .reshape([POSITIONS, HEADS * HEAD_DIM])
                },
            )?;
        }
        self.compare(
            "geglu",
            None,
            [self.random([POSITIONS, FFN]), self.random([POSITIONS, FFN])],
            |[gate, up]| fpo_ops::geglu(gate, up),
            |[gate, up]| definition::geglu(gate, up),
        )?;
        self.compare(
            "swiglu",
            None,
            [self.random([POSITIONS, FFN]), self.random([POSITIONS, FFN])],
            |[gate, up]| fpo_ops::swiglu(gate, up),
            |[gate, up]| definition::swiglu(gate, up),
        )?;
        self.compare(
            "softcap",
            None,
            [self.random([POSITIONS, FFN])],
            |[x]| fpo_ops::softcap(x, 30.0),
            |[x]| definition::softcap(x, 30.0),
        )?;
        self.compare(
            "rms_norm",
            None,
            [self.random([POSITIONS, D_MODEL]), self.random([1, D_MODEL])],
            |[x, w]| fpo_ops::rms_norm(x, w.squeeze_dim(0), Gain::OnePlusWeight, 1e-6),
            |[x, w]| definition::rms_norm(x, w.squeeze_dim(0), Gain::OnePlusWeight, 1e-6),
        )?;
        let [cos, sin] = [(); 2].map(|()| self.random([TOKENS, HEAD_DIM / 2]).inner());
        let heads = |x: Tensor<2>| x.reshape([TEXTS, TOKENS, HEADS, HEAD_DIM]);
        let flat = |x: Tensor<4>| x.reshape([POSITIONS, HEADS * HEAD_DIM]);
        self.compare(
            "rotary",
            None,
            [self.random([POSITIONS, HEADS * HEAD_DIM])],
            |[x]| flat(fpo_ops::rotary(heads(x), cos.clone(), sin.clone())),
            |[x]| flat(definition::rotary(heads(x), cos.clone(), sin.clone())),
        )
    }

    /// Operations over the vocabulary.
    fn vocabulary(&mut self) -> Result<()> {
        let inputs = |b: &Self| [b.random([POSITIONS, D_MODEL]), b.random([VOCABULARY, D_MODEL])];
        let flops = 2 * POSITIONS * D_MODEL * VOCABULARY;
        let cap = Some(30.0);
        let indices =
            Tensor::<1, Int>::arange(0..POSITIONS as i64, &self.device.clone().autodiff());
        let targets = || indices.clone();
        self.compare(
            "linear_log_probs",
            Some(flops),
            inputs(self),
            |[h, w]| fpo_ops::linear_log_probs(h, w, targets(), cap).unsqueeze(),
            |[h, w]| definition::linear_log_probs(h, w, targets(), cap).unsqueeze(),
        )?;
        let [r_h, r_w] = inputs(self).map(Tensor::inner);
        let reference = || (r_h.clone(), r_w.clone());
        self.compare(
            // Without a share: the reference's product has no backward pass, so the factor of 3 doesn't hold.
            "linear_kl",
            None,
            inputs(self),
            |[h, w]| {
                let (r_h, r_w) = reference();
                fpo_ops::linear_kl(r_h, r_w, h, w, cap).unsqueeze()
            },
            |[h, w]| {
                let (r_h, r_w) = reference();
                definition::linear_kl(r_h, r_w, h, w, cap).unsqueeze()
            },
        )?;
        self.compare(
            "linear_token_statistics",
            Some(flops),
            inputs(self).map(Tensor::inner),
            |[h, w]| fpo_ops::linear_token_statistics(h, w, targets(), cap).entropy.unsqueeze(),
            |[h, w]| definition::linear_token_statistics(h, w, targets(), cap).entropy.unsqueeze(),
        )
    }

    /// Operations of sparse autoencoders. For pooled features, gradients flow into the 100 largest of each text only.
    fn features(&mut self) -> Result<()> {
        let vector = |shift: f64| self.random([1, D_SAE]).inner().squeeze_dim(0) + shift;
        let encoder = Encoder {
            normalization: Normalization::None,
            w_enc: self.random([D_MODEL, D_SAE]).inner(),
            b_enc: vector(0.0),
            activation: Activation::JumpRelu { threshold: vector(32.0) },
        };
        let segments = [TOKENS; TEXTS];
        self.compare(
            "pooled_features",
            None,
            [self.random([POSITIONS, D_MODEL])],
            |[h]| fpo_ops::pooled_features(h, &encoder, &segments).topk(100, 1),
            |[h]| definition::pooled_features(h, &encoder, &segments).topk(100, 1),
        )?;
        let inputs = |b: &Self| [b.random([POSITIONS, D_SAE]), b.random([1, D_SAE])];
        self.compare(
            "jump_relu",
            None,
            inputs(self),
            |[z, theta]| fpo_ops::jump_relu(z, theta.squeeze_dim(0), 0.1),
            |[z, theta]| definition::jump_relu(z, theta.squeeze_dim(0), 0.1),
        )?;
        self.compare(
            "heaviside",
            None,
            inputs(self),
            |[z, theta]| fpo_ops::heaviside(z, theta.squeeze_dim(0), 0.1),
            |[z, theta]| definition::heaviside(z, theta.squeeze_dim(0), 0.1),
        )
    }

    /// AdamW on four million parameters.
    fn optimizer(&mut self) -> Result<()> {
        let options = AdamW {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            grad_scale: 1.0,
        };
        let new = || self.random([4 * FFN, FFN]).inner().abs();
        let gradient = new();
        let time = |fused: bool| {
            // Moved in and out, so that the step can update its state in place as in training.
            let mut state = Some([new(), new(), new()]);
            self.time(|| {
                let Some([p, m, v]) = state.take() else { return };
                let g = gradient.clone();
                let (p, m, v) = match fused {
                    true => fpo_ops::adamw_step(p, g, m, v, 10, &options),
                    false => definition::adamw_step(p, g, m, v, 10, &options),
                };
                state = Some([p, m, v]);
            })
        };
        let (fused, plain) = (time(true)?, time(false)?);
        self.operations.push(OpReport {
            name: "adamw_step".into(),
            forward_ms: fused,
            both_ms: None,
            definition_forward_ms: plain,
            definition_both_ms: None,
            matmul_share: None,
        });
        Ok(())
    }
}
