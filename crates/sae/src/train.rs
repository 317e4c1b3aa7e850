//! Training by Gemma Scope's recipe (arXiv 2408.05147, section 3) with a target L0.

use burn::tensor::{Device, Gradients, Tensor, TensorData};
use fpo_ops::{AdamW, adamw_step, heaviside, jump_relu};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Error, JumpReluSae, Provenance};

/// The settings of a training.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaeTraining {
    /// Number of features.
    pub d_sae: usize,
    /// L0*: the mean number of active features per token to arrive at.
    pub target_l0: f64,
    /// λ of the sparsity term λ · (L0 / L0* − 1)².
    pub sparsity: f64,
    /// Steps over which λ rises to its value.
    pub sparsity_warmup: usize,
    /// Adam's learning rate.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises; over the last fifth of all steps it falls to 0.
    pub warmup: usize,
    /// ε, the width of the straight-through kernel, in units of inputs with E‖x‖² = 1.
    pub bandwidth: f64,
    /// θ at the start, in the same units.
    pub initial_threshold: f64,
    /// Tokens a step.
    pub batch_tokens: usize,
    /// Steps.
    pub steps: usize,
}

impl SaeTraining {
    /// Settings from which nothing can be trained are refused by name.
    pub fn check(&self) -> Result<(), Error> {
        let s = self;
        let positive = [
            ("d_sae", s.d_sae as f64),
            ("target_l0", s.target_l0),
            ("sparsity", s.sparsity),
            ("learning_rate", s.learning_rate),
            ("bandwidth", s.bandwidth),
            ("initial_threshold", s.initial_threshold),
            ("batch_tokens", s.batch_tokens as f64),
            ("steps", s.steps as f64),
        ];
        match positive.iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            Some((name, value)) => {
                Err(Error::Training(format!("{name} = {value} must be positive")))
            }
            None if s.target_l0 > s.d_sae as f64 => Err(Error::Training(format!(
                "target_l0 = {} is more than the d_sae = {} features there are",
                s.target_l0, s.d_sae
            ))),
            None => Ok(()),
        }
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct SaeStep {
    /// Reconstruction error ‖x − x̂‖² plus sparsity term, inputs scaled to E‖x‖² = 1.
    pub loss: f64,
    /// The reconstruction error alone: the unexplained share of E‖x‖².
    pub mse: f64,
    /// Mean number of active features per token.
    pub l0: f64,
    /// The learning rate of the step.
    pub learning_rate: f64,
}

/// The parameters, in the order of their gradients. W_enc, b_enc, W_dec, b_dec, θ.
#[derive(Clone)]
struct Parameters {
    w_enc: Tensor<2>,
    b_enc: Tensor<1>,
    w_dec: Tensor<2>,
    b_dec: Tensor<1>,
    threshold: Tensor<1>,
}

impl Parameters {
    fn map(
        self,
        mut matrix: impl FnMut(usize, Tensor<2>) -> Tensor<2>,
        mut vector: impl FnMut(usize, Tensor<1>) -> Tensor<1>,
    ) -> Self {
        Self {
            w_enc: matrix(0, self.w_enc),
            b_enc: vector(0, self.b_enc),
            w_dec: matrix(1, self.w_dec),
            b_dec: vector(1, self.b_dec),
            threshold: vector(2, self.threshold),
        }
    }
}

/// A training in progress.
pub struct SaeTrainer {
    settings: SaeTraining,
    parameters: Parameters,
    /// Adam's first and second moments.
    moments: (Parameters, Parameters),
    /// Inputs are multiplied by this, so that E‖x‖² = 1.
    scale: f64,
    step: usize,
}

impl SaeTrainer {
    /// Starts from random decoder directions of unit norm, W_enc = W_decᵀ and b_dec at the mean of
    /// `sample` `[tokens, d_in]`, whose mean squared norm also sets the input scale.
    ///
    /// # Errors
    /// Settings out of range, or a sample that is empty, constant or not finite.
    pub fn new(
        settings: &SaeTraining,
        sample: Tensor<2>,
        seed: u64,
        device: &Device,
    ) -> Result<Self, Error> {
        settings.check()?;
        let plain = device.clone().without_autodiff();
        let sample = sample.to_device(&plain);
        let [tokens, d_in] = sample.dims();
        if tokens == 0 {
            return Err(Error::Training("there are no activations to train on".into()));
        }
        let norm = sample.clone().square().sum_dim(1).mean().into_scalar::<f32>();
        if !(norm.is_finite() && norm > 0.0) {
            return Err(Error::Training(format!(
                "the activations' mean squared norm is {norm}, which cannot be scaled to 1"
            )));
        }
        let scale = 1.0 / f64::from(norm).sqrt();
        let d_sae = settings.d_sae;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let directions: Vec<f32> = (0..d_sae).flat_map(|_| unit_vector(&mut rng, d_in)).collect();
        let w_dec = Tensor::<2>::from_data(TensorData::new(directions, [d_sae, d_in]), &plain);
        let parameters = Parameters {
            w_enc: w_dec.clone().transpose(),
            b_enc: Tensor::zeros([d_sae], &plain),
            w_dec,
            b_dec: sample.mean_dim(0).squeeze_dim::<1>(0) * scale,
            threshold: Tensor::full([d_sae], settings.initial_threshold, &plain),
        };
        let zeros = parameters.clone().map(|_, x| x.zeros_like(), |_, x| x.zeros_like());
        let moments = (zeros.clone(), zeros);
        Ok(Self { settings: settings.clone(), parameters, moments, scale, step: 0 })
    }

    /// One step on activations `[tokens, d_in]`.
    pub fn step(&mut self, x: Tensor<2>) -> SaeStep {
        let s = self.settings.clone();
        let learning_rate = s.learning_rate * self.schedule();
        let sparsity = s.sparsity * warmup(self.step, s.sparsity_warmup);
        self.step += 1;

        let leaf = self
            .parameters
            .clone()
            .map(|_, x| x.autodiff().require_grad(), |_, x| x.autodiff().require_grad());
        let x = x.without_autodiff().autodiff() * self.scale;
        let b_dec = leaf.b_dec.clone().unsqueeze::<2>();
        let z = (x.clone() - b_dec.clone()).matmul(leaf.w_enc.clone())
            + leaf.b_enc.clone().unsqueeze::<2>();
        let features = jump_relu(z.clone(), leaf.threshold.clone(), s.bandwidth);
        let reconstruction = features.matmul(leaf.w_dec.clone()) + b_dec;
        let mse = (x - reconstruction).square().sum_dim(1).mean();
        let l0 = heaviside(z.detach(), leaf.threshold.clone(), s.bandwidth).sum_dim(1).mean();
        let penalty = (l0.clone() / s.target_l0 - 1.0).square() * sparsity;
        let loss = mse.clone() + penalty;
        let gradients = loss.backward();

        self.update(&leaf, &gradients, learning_rate);
        SaeStep {
            loss: loss.into_scalar::<f64>(),
            mse: mse.into_scalar::<f64>(),
            l0: l0.into_scalar::<f64>(),
            learning_rate,
        }
    }

    /// Adam with β (0, 0.999) on every parameter; decoder rows keep unit norm, and the part of
    /// their gradient along themselves is taken out first; thresholds stay above 0.
    fn update(&mut self, leaf: &Parameters, gradients: &Gradients, learning_rate: f64) {
        let options =
            AdamW { lr: learning_rate, beta1: 0.0, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
        let step = self.step;
        fn gradient<const D: usize>(x: &Tensor<D>, gradients: &Gradients) -> Tensor<D> {
            x.grad(gradients).unwrap_or_else(|| x.clone().without_autodiff().zeros_like())
        }
        let p = self.parameters.clone();
        let (m, v) = self.moments.clone();
        let g_dec = gradient(&leaf.w_dec, gradients);
        let along = (g_dec.clone() * p.w_dec.clone()).sum_dim(1);
        let g_dec = g_dec - p.w_dec.clone() * along;

        let w_enc =
            adamw_step(p.w_enc, gradient(&leaf.w_enc, gradients), m.w_enc, v.w_enc, step, &options);
        let b_enc =
            adamw_step(p.b_enc, gradient(&leaf.b_enc, gradients), m.b_enc, v.b_enc, step, &options);
        let w_dec = adamw_step(p.w_dec, g_dec, m.w_dec, v.w_dec, step, &options);
        let b_dec =
            adamw_step(p.b_dec, gradient(&leaf.b_dec, gradients), m.b_dec, v.b_dec, step, &options);
        let theta = adamw_step(
            p.threshold,
            gradient(&leaf.threshold, gradients),
            m.threshold,
            v.threshold,
            step,
            &options,
        );
        let norms = w_dec.0.clone().square().sum_dim(1).sqrt().clamp_min(1e-8);
        self.parameters = Parameters {
            w_enc: w_enc.0,
            b_enc: b_enc.0,
            w_dec: w_dec.0 / norms,
            b_dec: b_dec.0,
            threshold: theta.0.clamp_min(0.0),
        };
        self.moments = (
            Parameters {
                w_enc: w_enc.1,
                b_enc: b_enc.1,
                w_dec: w_dec.1,
                b_dec: b_dec.1,
                threshold: theta.1,
            },
            Parameters {
                w_enc: w_enc.2,
                b_enc: b_enc.2,
                w_dec: w_dec.2,
                b_dec: b_dec.2,
                threshold: theta.2,
            },
        );
    }

    /// Warm-up, then constant, then a fall to zero over the last fifth.
    fn schedule(&self) -> f64 {
        let (step, steps) = (self.step as f64, self.settings.steps as f64);
        let fall = ((steps - step) / (0.2 * steps)).min(1.0);
        warmup(self.step, self.settings.warmup) * fall
    }

    /// The autoencoder for unscaled inputs, with b_dec's subtraction and the scale folded away:
    /// with s the scale, b_enc ← (b_enc − b_dec · W_enc) / s, θ ← θ / s, b_dec ← b_dec / s.
    pub fn finish(self, provenance: Provenance) -> JumpReluSae {
        let p = self.parameters;
        let shift = p.b_dec.clone().unsqueeze::<2>().matmul(p.w_enc.clone()).squeeze_dim::<1>(0);
        JumpReluSae {
            encoder: fpo_ops::Encoder {
                b_enc: (p.b_enc - shift) / self.scale,
                threshold: p.threshold / self.scale,
                w_enc: p.w_enc,
            },
            w_dec: p.w_dec,
            b_dec: p.b_dec / self.scale,
            provenance,
        }
    }
}

/// Rises linearly from 1 / steps to 1.
fn warmup(step: usize, steps: usize) -> f64 {
    ((step + 1) as f64 / steps.max(1) as f64).min(1.0)
}

fn unit_vector(rng: &mut ChaCha8Rng, width: usize) -> Vec<f32> {
    // Twelve uniform numbers minus six are normal enough for a direction.
    let normal: Vec<f32> =
        (0..width).map(|_| (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0).collect();
    let norm = normal.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    normal.into_iter().map(|x| x / norm).collect()
}
