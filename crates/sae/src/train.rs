//! Training autoencoders by Gemma Scope's recipe (arXiv 2408.05147, section 3), with a choice of activation functions and sparsity
//! terms.

use burn::tensor::{Device, Gradients, Tensor, TensorData};
use fpo_ops::{Activation, AdamW, Encoder, Normalization, adamw_step};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Compute, Error, Kind, Objective, Parameters, Penalty, Provenance, Sae};

/// The weight of a step's smallest activation in the estimate of BatchTopK's threshold.
const THRESHOLD_RATE: f64 = 0.01;
/// L0 at the start of training, in multiples of its target, by the automatic threshold. From several times the target, the features
/// that the others make superfluous close while all of them learn: with far more, they learn late to do with few, and with fewer,
/// some never open again.
const DENSER: f64 = 3.0;
/// Pre-activations that the initial threshold is chosen by, at most (but those of one token).
const PRE_ACTIVATIONS: usize = 1 << 22;
/// The most features: sixteen times as many as published autoencoders have.
const MOST_FEATURES: usize = 1 << 24;

/// Training settings. Lengths are in units of inputs scaled to E‖x‖² = 1.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaeTraining {
    /// Number of features.
    pub d_sae: usize,
    /// The activation function: jumprelu (the default), topk, batch-topk or relu.
    #[serde(default)]
    pub activation: Kind,
    /// The sparsity term: target-l0 (the default), step, tanh or l1. topk and batch-topk have none.
    #[serde(default)]
    pub penalty: Penalty,
    /// L0*, the target for the mean number of active features per token; used by target-l0, topk and batch-topk, which reach it.
    pub target_l0: f64,
    /// c of the tanh penalty; defaults to 4.
    #[serde(default = "four")]
    pub tanh_scale: f64,
    /// λ, the weight of the sparsity term.
    pub sparsity: f64,
    /// Steps over which λ rises linearly to its value.
    pub sparsity_warmup: usize,
    /// Adam's peak learning rate.
    pub learning_rate: f64,
    /// Factor on the learning rate of biases and thresholds; defaults to 1. They differ in scale from the weights, and a single
    /// value of theirs acts on all tokens: at a high rate they jitter.
    #[serde(default = "one")]
    pub bias_rate: f64,
    /// Steps over which the learning rate rises linearly. Over the last fifth of all steps it falls to 0.
    pub warmup: usize,
    /// ε, the width of the straight-through estimator's kernel.
    pub bandwidth: f64,
    /// θ at the start; defaults to auto.
    #[serde(default)]
    pub initial_threshold: InitialThreshold,
    /// Weight of what brings dead features back; defaults to 0, which leaves them dead. For topk and batch-topk it is the auxiliary
    /// loss of arXiv 2406.04093, there 1/32.
    #[serde(default)]
    pub revive: f64,
    /// Steps without being active after which a feature is dead; defaults to 100.
    #[serde(default = "hundred")]
    pub dead_after: usize,
    /// The precision of the matrix products; defaults to float32.
    #[serde(default)]
    pub compute: Compute,
    /// Tokens per step.
    pub batch_tokens: usize,
    /// Number of steps.
    pub steps: usize,
}

/// θ at the start of a JumpReLU's training: a number, or "auto".
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(from = "Written", into = "Written")]
pub enum InitialThreshold {
    /// That above which 3 L0* features of a token are at the start, by a sample of the inputs. It depends on the inputs' width: the
    /// wider they are, the less they have in common with a random direction.
    #[default]
    Auto,
    /// This one.
    At(f64),
}

/// As it stands in settings.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(untagged, expecting = "expected a number or \"auto\"")]
enum Written {
    Number(f64),
    Word(Word),
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    Auto,
}

impl From<Written> for InitialThreshold {
    fn from(written: Written) -> Self {
        match written {
            Written::Number(threshold) => Self::At(threshold),
            Written::Word(Word::Auto) => Self::Auto,
        }
    }
}

impl From<InitialThreshold> for Written {
    fn from(threshold: InitialThreshold) -> Self {
        match threshold {
            InitialThreshold::Auto => Self::Word(Word::Auto),
            InitialThreshold::At(threshold) => Self::Number(threshold),
        }
    }
}

fn one() -> f64 {
    1.0
}

fn four() -> f64 {
    4.0
}

fn hundred() -> usize {
    100
}

impl SaeTraining {
    fn objective(&self, step: usize) -> Objective {
        Objective {
            kind: self.activation,
            penalty: self.penalty,
            sparsity: self.sparsity * warmup(step, self.sparsity_warmup),
            target_l0: self.target_l0,
            tanh_scale: self.tanh_scale,
            bandwidth: self.bandwidth,
            revive: self.revive,
            compute: self.compute,
        }
    }

    /// Linear warm-up, constant, and linear decay to 0 over the last fifth of the steps.
    fn learning_rate(&self, step: usize) -> f64 {
        let fall = (self.steps as f64 - step as f64) / (0.2 * self.steps as f64);
        self.learning_rate * warmup(step, self.warmup) * fall.min(1.0)
    }

    /// Checks that every setting is in range.
    ///
    /// # Errors
    /// The message names the first setting that isn't.
    pub fn check(&self) -> Result<(), Error> {
        let s = self;
        let positive = [
            ("d_sae", s.d_sae as f64),
            ("target_l0", s.target_l0),
            ("sparsity", s.sparsity),
            ("learning_rate", s.learning_rate),
            ("bias_rate", s.bias_rate),
            ("tanh_scale", s.tanh_scale),
            ("bandwidth", s.bandwidth),
            (
                "initial_threshold",
                match s.initial_threshold {
                    InitialThreshold::Auto => 1.0,
                    InitialThreshold::At(threshold) => threshold,
                },
            ),
            ("batch_tokens", s.batch_tokens as f64),
            ("steps", s.steps as f64),
        ];
        match positive.iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            Some((name, value)) => {
                Err(Error::Training(format!("{name} = {value} must be positive")))
            }
            None if !(s.revive.is_finite() && s.revive >= 0.0) => {
                Err(Error::Training(format!("revive = {} must not be negative", s.revive)))
            }
            None if s.d_sae > MOST_FEATURES => {
                Err(Error::Training(format!("d_sae = {} exceeds {MOST_FEATURES}", s.d_sae)))
            }
            None if s.target_l0 > s.d_sae as f64 => Err(Error::Training(format!(
                "target_l0 = {} exceeds the number of features, d_sae = {}",
                s.target_l0, s.d_sae
            ))),
            None if s.activation == Kind::TopK && s.target_l0.fract() != 0.0 => {
                Err(Error::Training(format!(
                    "target_l0 = {} must be a whole number with activation \"topk\": it is k",
                    s.target_l0
                )))
            }
            None if s.activation == Kind::Relu
                && matches!(s.penalty, Penalty::TargetL0 | Penalty::Step) =>
            {
                Err(Error::Training(
                    "activation \"relu\" has no threshold that penalty \"target-l0\" or \"step\" could move: set penalty to \"l1\" or \"tanh\"".into(),
                ))
            }
            None => Ok(()),
        }
    }
}

/// Metrics of one training step.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct SaeStep {
    /// The training loss: reconstruction error, sparsity term and pull on dead features.
    pub loss: f64,
    /// The reconstruction error E‖x − x̂‖² of inputs scaled to E‖x‖² = 1.
    pub mse: f64,
    /// Mean number of active features per token.
    pub l0: f64,
    /// Share of features that were dead before the step.
    pub dead: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
}

impl Parameters {
    fn map(
        self,
        matrix: impl Fn(Tensor<2>) -> Tensor<2>,
        vector: impl Fn(Tensor<1>) -> Tensor<1>,
    ) -> Self {
        Self {
            w_enc: matrix(self.w_enc),
            b_enc: vector(self.b_enc),
            w_dec: matrix(self.w_dec),
            b_dec: vector(self.b_dec),
            threshold: vector(self.threshold),
        }
    }

    /// The same values as leaves of a new graph.
    fn leaves(self) -> Self {
        self.map(|x| x.autodiff().require_grad(), |x| x.autodiff().require_grad())
    }
}

/// Trains an autoencoder step by step.
pub struct SaeTrainer {
    pub(crate) settings: SaeTraining,
    pub(crate) parameters: Parameters,
    /// Adam's second moments. With β₁ = 0 the first moments are the gradients.
    pub(crate) moments: Parameters,
    /// Steps since each feature was last active, `[d_sae]`.
    pub(crate) silent: Tensor<1>,
    /// The factor on inputs that makes E‖x‖² = 1.
    pub(crate) scale: f64,
    /// Number of steps taken.
    pub(crate) step: usize,
}

impl SaeTrainer {
    /// Starts from random decoder directions of unit norm and W_enc = W_decᵀ. The mean of `sample` `[tokens, d_in]` becomes b_dec,
    /// and its mean squared norm sets the scale of inputs.
    ///
    /// # Errors
    /// Settings out of range, or a sample that is empty, all zeros or not finite.
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
            return Err(Error::Training("the sample of activations is empty".into()));
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
        let mean = sample.clone().mean_dim(0);
        let threshold = match (settings.activation, settings.initial_threshold) {
            (Kind::TopK | Kind::BatchTopK | Kind::Relu, _) => 0.0,
            (Kind::JumpRelu, InitialThreshold::At(threshold)) => threshold,
            (Kind::JumpRelu, InitialThreshold::Auto) => {
                let x = (sample - mean.clone()) * scale;
                threshold_for(DENSER * settings.target_l0, x, w_dec.clone().transpose())
            }
        };
        let parameters = Parameters {
            w_enc: w_dec.clone().transpose(),
            b_enc: Tensor::zeros([d_sae], &plain),
            w_dec,
            b_dec: mean.squeeze_dim::<1>(0) * scale,
            threshold: Tensor::full([d_sae], threshold, &plain),
        };
        let moments = parameters.clone().map(|x| x.zeros_like(), |x| x.zeros_like());
        let silent = Tensor::zeros([d_sae], &plain);
        Ok(Self { settings: settings.clone(), parameters, moments, silent, scale, step: 0 })
    }

    /// Number of steps taken.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    /// Takes one step on activations `[tokens, d_in]`.
    pub fn step(&mut self, x: Tensor<2>) -> SaeStep {
        let objective = self.settings.objective(self.step);
        let learning_rate = self.settings.learning_rate(self.step);
        self.step += 1;

        let leaf = self.parameters.clone().leaves();
        let x = x.without_autodiff().autodiff() * self.scale;
        let dead = self.silent.clone().greater_scalar(self.settings.dead_after as f64).float();
        let losses = objective.losses(&leaf, x, Some(dead.clone()));
        let gradients = losses.total.backward();

        self.update(&leaf, &gradients, learning_rate);
        if self.settings.activation == Kind::BatchTopK {
            self.estimate_threshold(losses.features);
        }
        let fired = losses.firing.greater_scalar(0.0);
        self.silent = (self.silent.clone() + 1.0).mask_fill(fired, 0.0);
        // In one transfer: each waits for the device.
        let parts = [losses.total, losses.mse, losses.l0, dead.mean()];
        let parts = Tensor::cat(parts.map(Tensor::without_autodiff).to_vec(), 0).into_data();
        let mut parts = parts.iter::<f64>();
        let mut next = || parts.next().expect("as many as there were");
        let [loss, mse, l0, dead] = [(); 4].map(|()| next());
        SaeStep { loss, mse, l0, dead, learning_rate }
    }

    /// Adam with β (0, 0.999) on every parameter. The gradient of a decoder row loses its part parallel to the row, which keeps
    /// unit norm; thresholds are clamped at 0. As in Adafactor (arXiv 1804.04235, section 5), the change of a tensor in units of
    /// the learning rate has a root mean square of at most 1: the second moments lag behind gradients that grow within a few
    /// steps, and without a bound a batch that is explained badly leads to a step that explains the next one worse.
    fn update(&mut self, leaf: &Parameters, gradients: &Gradients, learning_rate: f64) {
        let options = AdamW {
            lr: learning_rate,
            beta1: 0.0,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            grad_scale: 1.0,
        };
        fn gradient<const D: usize>(x: &Tensor<D>, gradients: &Gradients) -> Tensor<D> {
            x.grad(gradients).unwrap_or_else(|| x.clone().without_autodiff().zeros_like())
        }
        fn adam<const D: usize>(
            (x, second): (&mut Tensor<D>, &mut Tensor<D>),
            gradient: Tensor<D>,
            step: usize,
            options: &AdamW,
        ) {
            let first = gradient.zeros_like();
            let (moved, _, moment) =
                adamw_step(x.clone(), gradient, first, second.clone(), step, options);
            let back = x.clone() - moved.clone();
            let rms = back.clone().square().mean().sqrt() / options.lr;
            let excess = rms.clamp_min(1.0).recip().neg() + 1.0;
            (*x, *second) = (moved + back * excess.reshape([1; D]), moment);
        }
        let slow = AdamW { lr: learning_rate * self.settings.bias_rate, ..options };
        let (p, v, step) = (&mut self.parameters, &mut self.moments, self.step);
        let g_dec = gradient(&leaf.w_dec, gradients);
        let along = (g_dec.clone() * p.w_dec.clone()).sum_dim(1);
        let g_dec = g_dec - p.w_dec.clone() * along;

        adam((&mut p.w_enc, &mut v.w_enc), gradient(&leaf.w_enc, gradients), step, &options);
        adam((&mut p.b_enc, &mut v.b_enc), gradient(&leaf.b_enc, gradients), step, &slow);
        adam((&mut p.w_dec, &mut v.w_dec), g_dec, step, &options);
        adam((&mut p.b_dec, &mut v.b_dec), gradient(&leaf.b_dec, gradients), step, &slow);
        if self.settings.activation == Kind::JumpRelu {
            let g_threshold = gradient(&leaf.threshold, gradients);
            adam((&mut p.threshold, &mut v.threshold), g_threshold, step, &slow);
        }
        let norms = p.w_dec.clone().square().sum_dim(1).sqrt().clamp_min(1e-8);
        p.w_dec = p.w_dec.clone() / norms;
        p.threshold = p.threshold.clone().clamp_min(0.0);
    }

    /// Moves the threshold towards the smallest activation of a batch; the first batch sets it.
    fn estimate_threshold(&mut self, features: Tensor<2>) {
        let closed = features.clone().lower_equal_elem(0.0);
        let least = features.mask_fill(closed, f64::INFINITY).min().into_scalar::<f64>();
        if !least.is_finite() {
            return;
        }
        let rate = if self.step == 1 { 1.0 } else { THRESHOLD_RATE };
        let threshold = self.parameters.threshold.clone();
        self.parameters.threshold = threshold * (1.0 - rate) + rate * least;
    }

    /// The autoencoder for unscaled inputs, with the scale s and the subtraction of b_dec folded into the parameters:
    /// b_enc ← (b_enc − b_dec · W_enc) / s, θ ← θ / s, b_dec ← b_dec / s.
    pub fn finish(self, provenance: Provenance) -> Sae {
        let p = self.parameters;
        let activation = match self.settings.activation {
            Kind::JumpRelu | Kind::BatchTopK => {
                Activation::JumpRelu { threshold: p.threshold / self.scale }
            }
            Kind::TopK => Activation::TopK { k: self.settings.target_l0 as usize },
            Kind::Relu => Activation::Relu,
        };
        let shift = p.b_dec.clone().unsqueeze::<2>().matmul(p.w_enc.clone()).squeeze_dim::<1>(0);
        Sae {
            encoder: Encoder {
                normalization: Normalization::None,
                w_enc: p.w_enc,
                b_enc: (p.b_enc - shift) / self.scale,
                activation,
            },
            w_dec: p.w_dec,
            b_dec: p.b_dec / self.scale,
            provenance,
        }
    }
}

/// The threshold above which `l0` of the pre-activations `x · W_enc` of a token are, on average over the first tokens.
fn threshold_for(l0: f64, x: Tensor<2>, w_enc: Tensor<2>) -> f64 {
    let rows = (PRE_ACTIVATIONS / w_enc.dims()[1]).clamp(1, x.dims()[0]);
    let z = x.narrow(0, 0, rows).matmul(w_enc);
    let mut z: Vec<f32> = z.into_data().iter::<f32>().collect();
    let place = ((l0 * rows as f64) as usize).min(z.len() - 1);
    let (_, threshold, _) = z.select_nth_unstable_by(place, |a, b| b.total_cmp(a));
    f64::from(*threshold).max(0.0)
}

/// Rises linearly from 1 / steps to 1.
fn warmup(step: usize, steps: usize) -> f64 {
    ((step + 1) as f64 / steps.max(1) as f64).min(1.0)
}

fn unit_vector(rng: &mut ChaCha8Rng, width: usize) -> Vec<f32> {
    // The sum of twelve uniform values minus six is close enough to a normal value for a direction.
    let normal: Vec<f32> =
        (0..width).map(|_| (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0).collect();
    let norm = normal.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    normal.into_iter().map(|x| x / norm).collect()
}
