//! The optimiser: gradients by name, clipping by their global norm, AdamW and RMSprop.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use anyhow::{Context, Result, bail};
use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Device, Gradients, Tensor, TensorData},
};
use fpo_ops::{AdamW, adamw_step};
use fpo_transformer::{Gemma2, Tape};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::settings::{OptimizerKind, OptimizerSettings, Schedule};

/// Numbers of a gradient that are squared at once.
const NORM_PIECE: usize = 1 << 22;

/// The gradients of a model's parameters by name, flattened.
#[derive(Default)]
pub struct GradientMap(BTreeMap<String, Tensor<1>>);

impl GradientMap {
    /// Goes back from a loss, and on through the blocks of a tape where the forward pass has left one.
    pub fn of(loss: &Tensor<1>, model: &Gemma2, tape: Option<Tape>) -> Self {
        let mut gradients = Self::default();
        gradients.add_of(loss, model, tape);
        gradients
    }

    /// Adds the gradients of [`Self::of`], of a tape block by block, so that they are never there twice.
    pub fn add_of(&mut self, loss: &Tensor<1>, model: &Gemma2, tape: Option<Tape>) {
        let mut gradients = loss.backward();
        self.add(Self::collect(model, &mut gradients));
        if let Some(tape) = tape {
            tape.backward(model, &mut gradients, |mut part| {
                self.add(Self::collect(model, &mut part));
            });
        }
    }

    /// Takes the gradients of every parameter that has one.
    fn collect(model: &Gemma2, gradients: &mut Gradients) -> Self {
        struct Collect<'a> {
            path: Vec<String>,
            gradients: &'a mut Gradients,
            found: BTreeMap<String, Tensor<1>>,
        }
        impl ModuleVisitor for Collect<'_> {
            fn enter_module(&mut self, name: &str, _container: &str) {
                self.path.push(name.to_owned());
            }
            fn exit_module(&mut self, _name: &str, _container: &str) {
                self.path.pop();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if let Some(gradient) = param.val().grad_remove(self.gradients) {
                    self.found.insert(self.path.join("."), flat(gradient));
                }
            }
        }
        let mut collect = Collect { path: Vec::new(), gradients, found: BTreeMap::new() };
        model.visit(&mut collect);
        Self(collect.found)
    }

    /// Names and gradients.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor<1>)> {
        self.0.iter().map(|(name, gradient)| (name.as_str(), gradient))
    }

    /// Adds gradients of the same step.
    fn add(&mut self, other: Self) {
        for (name, gradient) in other.0 {
            let sum = match self.0.remove(&name) {
                Some(sum) => sum + gradient,
                None => gradient,
            };
            self.0.insert(name, sum);
        }
    }

    /// The Euclidean norm of all gradients together.
    pub fn norm(&self) -> f64 {
        // In pieces, so that no second copy of a large gradient is formed.
        let pieces = self.0.values().flat_map(|g| g.clone().split(NORM_PIECE, 0));
        let squares: Vec<Tensor<1>> = pieces.map(|piece| piece.square().sum()).collect();
        if squares.is_empty() {
            return 0.0;
        }
        // One read from the device for all of them.
        let squares: Vec<f64> = Tensor::cat(squares, 0).into_data().iter::<f64>().collect();
        squares.iter().sum::<f64>().sqrt()
    }
}

fn flat<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let count = x.dims().iter().product::<usize>();
    x.reshape([count])
}

/// The first (AdamW alone) and second moments of a parameter, flattened.
struct Moments {
    first: Option<Tensor<1>>,
    second: Tensor<1>,
}

/// Moves a model's weights.
pub struct Optimizer {
    settings: OptimizerSettings,
    total_steps: usize,
    step: usize,
    moments: BTreeMap<String, Moments>,
}

/// What a step of the optimiser saw.
#[derive(Clone, Copy, Debug)]
pub struct StepInfo {
    /// Global norm of the gradients, before clipping.
    pub grad_norm: f64,
    /// The learning rate that was used.
    pub learning_rate: f64,
}

impl Optimizer {
    /// For a training of `total_steps`.
    pub fn new(settings: &OptimizerSettings, total_steps: usize) -> Self {
        Self { settings: settings.clone(), total_steps, step: 0, moments: BTreeMap::new() }
    }

    /// The learning rate of a step, counted from 0.
    fn learning_rate(&self, step: usize) -> f64 {
        let s = &self.settings;
        let warm = ((step + 1) as f64 / s.warmup_steps.max(1) as f64).min(1.0);
        let after = self.total_steps.saturating_sub(s.warmup_steps).max(1) as f64;
        let done = (step.saturating_sub(s.warmup_steps) as f64 / after).min(1.0);
        let fall = match s.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - done,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        };
        s.learning_rate * warm * fall
    }

    /// One step: clips the gradients to the largest global norm and moves the weights.
    pub fn step(&mut self, model: Gemma2, gradients: GradientMap) -> (Gemma2, StepInfo) {
        struct Update<'a> {
            path: Vec<String>,
            optimizer: &'a mut Optimizer,
            gradients: GradientMap,
            clip: f64,
            learning_rate: f64,
        }
        impl ModuleMapper for Update<'_> {
            fn enter_module(&mut self, name: &str, _container: &str) {
                self.path.push(name.to_owned());
            }
            fn exit_module(&mut self, _name: &str, _container: &str) {
                self.path.pop();
            }
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let name = self.path.join(".");
                let Some(gradient) = self.gradients.0.remove(&name) else { return param };
                param.map(|weights| {
                    let shape = weights.dims();
                    let weights = flat(weights.without_autodiff());
                    let (clip, learning_rate) = (self.clip, self.learning_rate);
                    let weights =
                        self.optimizer.update(name, weights, gradient, clip, learning_rate);
                    weights.reshape(shape).autodiff().require_grad()
                })
            }
        }
        let grad_norm = gradients.norm();
        let learning_rate = self.learning_rate(self.step);
        self.step += 1;
        let clip = (self.settings.max_grad_norm / (grad_norm + 1e-6)).min(1.0);
        let mut update =
            Update { path: Vec::new(), optimizer: self, gradients, clip, learning_rate };
        let model = model.map(&mut update);
        (model, StepInfo { grad_norm, learning_rate })
    }

    /// Moves a parameter by its gradient times `grad_scale`.
    fn update(
        &mut self,
        name: String,
        w: Tensor<1>,
        g: Tensor<1>,
        grad_scale: f64,
        lr: f64,
    ) -> Tensor<1> {
        let weight_decay = self.settings.weight_decay;
        let moments = self.moments.remove(&name);
        match self.settings.kind {
            OptimizerKind::Adamw => {
                let (m, v) = match moments {
                    Some(Moments { first: Some(m), second: v }) => (m, v),
                    _ => (g.zeros_like(), g.zeros_like()),
                };
                let options =
                    AdamW { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay, grad_scale };
                let (w, m, v) = adamw_step(w, g, m, v, self.step, &options);
                self.moments.insert(name, Moments { first: Some(m), second: v });
                w
            }
            OptimizerKind::Rmsprop => {
                // v ← 0.99 v + 0.01 g², w ← w − lr · g / (√v + 1e-8): torch.optim.RMSprop's defaults.
                let g = g * grad_scale;
                let v = moments.map_or_else(|| g.zeros_like(), |m| m.second);
                let v = v * 0.99 + g.clone().square() * 0.01;
                let w = w * (1.0 - lr * weight_decay) - g / (v.clone().sqrt() + 1e-8) * lr;
                self.moments.insert(name, Moments { first: None, second: v });
                w
            }
        }
    }

    /// Writes the moments as safetensors; the step is the caller's to keep.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut data: Vec<(String, TensorData)> = Vec::new();
        for (name, moments) in &self.moments {
            if let Some(first) = &moments.first {
                data.push((format!("first.{name}"), first.to_data()));
            }
            data.push((format!("second.{name}"), moments.second.to_data()));
        }
        let mut views = Vec::with_capacity(data.len());
        for (name, data) in &data {
            let view = TensorView::new(Dtype::F32, data.shape().to_vec(), data.as_bytes())?;
            views.push((name.as_str(), view));
        }
        safetensors::serialize_to_file(views, None::<HashMap<String, String>>, path)
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Goes on after `step` steps with the moments that [`Self::save`] wrote.
    pub fn restore(&mut self, path: &Path, step: usize, device: &Device) -> Result<()> {
        let device = device.clone().without_autodiff();
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let file = SafeTensors::deserialize(&bytes)
            .with_context(|| format!("{} is no readable checkpoint", path.display()))?;
        let mut firsts = BTreeMap::new();
        let mut seconds = BTreeMap::new();
        for (name, view) in file.tensors() {
            let values: Vec<f32> =
                view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let count = values.len();
            let tensor = Tensor::from_data(TensorData::new(values, [count]), &device);
            match name.split_once('.') {
                Some(("first", name)) => firsts.insert(name.to_owned(), tensor),
                Some(("second", name)) => seconds.insert(name.to_owned(), tensor),
                _ => bail!("{}: unexpected tensor `{name}`", path.display()),
            };
        }
        self.step = step;
        self.moments = seconds
            .into_iter()
            .map(|(name, second)| (name.clone(), Moments { first: firsts.remove(&name), second }))
            .collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_rate_warms_up_and_falls() {
        let settings = |schedule| OptimizerSettings {
            kind: OptimizerKind::Adamw,
            learning_rate: 2.0,
            warmup_steps: 4,
            schedule,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
        };
        let rates = |schedule| {
            let optimizer = Optimizer::new(&settings(schedule), 12);
            [0, 3, 4, 8, 12].map(|step| (optimizer.learning_rate(step) * 1e6).round() / 1e6)
        };
        assert_eq!(rates(Schedule::Constant), [0.5, 2.0, 2.0, 2.0, 2.0]);
        assert_eq!(rates(Schedule::Linear), [0.5, 2.0, 2.0, 1.0, 0.0]);
        assert_eq!(rates(Schedule::Cosine), [0.5, 2.0, 2.0, 1.0, 0.0]);
    }
}
