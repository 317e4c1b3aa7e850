//! The optimiser: gradients by name, clipping by their global norm, AdamW and RMSprop.
//!
//! # Invariants
//! * Knows a model's parameters by their paths alone, and no data, loss or stage.
//! * Its state is the number of steps done and the moments; saved and restored, it goes on bit for bit.

mod gradients;

use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, anyhow, bail};
use burn::{
    backend::DispatchTensor,
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Shape, Tensor, TensorData},
};
use fpo_ops::{AdamW, Clip, adamw_steps, profile, sums_of_squares};
use fpo_transformer::{
    BackwardPass, LanguageModel,
    tensor_file::{self, Files, Stored},
    weights::stored_name,
};

use fpo_config::{OptimizerKind, OptimizerSettings, Schedule};

pub use gradients::StepGradients;
use gradients::{add_embedded, flat, next_part};

/// The first (AdamW alone) and second moments of a parameter, flattened.
struct Moments {
    first: Option<Tensor<1>>,
    second: Tensor<1>,
}

/// Their sums of squares, for the norm.
fn squares(gradients: &BTreeMap<String, Tensor<1>>) -> Option<Tensor<1>> {
    let _clipping = profile::part("clipping");
    let gradients: Vec<_> = gradients.values().cloned().collect();
    (!gradients.is_empty()).then(|| sums_of_squares(gradients))
}

/// Moves a model's weights; its state is the moments and the number of steps done.
pub struct Optimizer {
    settings: OptimizerSettings,
    total_steps: usize,
    step: usize,
    moments: BTreeMap<String, Moments>,
}

/// A parameter with its gradient, taken out of the model: in place, only the only owner can move it.
struct Taken {
    name: String,
    shape: Shape,
    /// Flattened.
    weights: Tensor<1>,
    /// Flattened.
    gradient: Tensor<1>,
}

/// Takes the parameters that have a gradient out of a model and leaves one element in their place.
#[derive(Default)]
struct Take {
    path: Vec<String>,
    gradients: BTreeMap<String, Tensor<1>>,
    taken: Vec<Taken>,
    /// One for each number of dimensions.
    placeholders: BTreeMap<usize, DispatchTensor>,
}

impl ModuleMapper for Take {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.join(".");
        let Some(gradient) = self.gradients.remove(&name) else { return param };
        param.map(|weights| {
            let (shape, device) = (weights.shape(), weights.device());
            let weights = flat(weights.without_autodiff());
            self.taken.push(Taken { name, shape, weights, gradient });
            let empty = || Tensor::<D>::empty([1; D], &device).into_dispatch();
            Tensor::from_dispatch(self.placeholders.entry(D).or_insert_with(empty).clone())
        })
    }
}

/// A parameter after a step.
struct Moved {
    shape: Shape,
    /// Flattened.
    weights: Tensor<1>,
}

/// Puts parameters back into their places in a model.
struct Put {
    path: Vec<String>,
    moved: BTreeMap<String, Moved>,
}

impl ModuleMapper for Put {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.moved.remove(&self.path.join(".")) {
            Some(Moved { shape, weights }) => {
                param.map(|_| weights.reshape::<D, _>(shape).autodiff().require_grad())
            }
            None => param,
        }
    }
}

/// What one step of the optimiser used.
#[derive(Clone, Debug)]
pub struct StepInfo {
    clip: Clip,
    /// The learning rate that was used.
    pub learning_rate: f64,
}

impl StepInfo {
    /// Global norm of the gradients, before clipping. On a GPU this waits for the device.
    pub fn grad_norm(&self) -> f64 {
        self.clip.norm()
    }
}

impl Optimizer {
    /// For a training of `total_steps` steps, over which the learning rate follows its schedule.
    pub fn new(settings: &OptimizerSettings, total_steps: usize) -> Self {
        Self { settings: settings.clone(), total_steps, step: 0, moments: BTreeMap::new() }
    }

    /// The learning rate of a step, counted from 0.
    fn learning_rate(&self, step: usize) -> f64 {
        let s = &self.settings;
        let warmup = s.warmup(self.total_steps);
        let warm = ((step + 1) as f64 / warmup.max(1) as f64).min(1.0);
        let after = self.total_steps.saturating_sub(warmup).max(1) as f64;
        let done = (step.saturating_sub(warmup) as f64 / after).min(1.0);
        let fall = match s.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - done,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        };
        s.learning_rate * warm * fall
    }

    /// One step: clips the gradients by their global norm and moves the weights. With AdamW nothing waits for a GPU.
    ///
    /// Backward passes that wait are taken through the model here, and each part of it is updated as soon as its gradients are known. The
    /// norm is that of all gradients, so if they are clipped, a pass before that finds it, and the passes go through the model twice.
    pub fn step(
        &mut self,
        model: LanguageModel,
        gradients: StepGradients,
    ) -> (LanguageModel, StepInfo) {
        let learning_rate = self.learning_rate(self.step);
        self.step += 1;
        let (model, clip) = match gradients.waiting {
            None => {
                let clip = self.clip(squares(&gradients.found));
                (self.move_by(model, gradients.found, &clip, learning_rate), clip)
            }
            Some(passes) => self.step_by_parts(model, gradients.found, passes, learning_rate),
        };
        (model, StepInfo { clip, learning_rate })
    }

    /// The norm to which gradients are clipped, if they are.
    fn largest_norm(&self) -> Option<f64> {
        Some(self.settings.max_grad_norm).filter(|&norm| norm > 0.0)
    }

    /// Of the gradients with these sums of squares.
    fn clip(&self, sums: impl IntoIterator<Item = Tensor<1>>) -> Clip {
        let _clipping = profile::part("clipping");
        Clip::of(sums.into_iter().collect(), self.largest_norm())
    }

    /// A step in which the gradients of the final norm and of each block exist one after the other. Those `found` at the head are
    /// there from the beginning, with a tied embedding's, which the end of the passes adds to.
    fn step_by_parts(
        &mut self,
        mut model: LanguageModel,
        mut found: BTreeMap<String, Tensor<1>>,
        mut passes: Vec<BackwardPass>,
        learning_rate: f64,
    ) -> (LanguageModel, Clip) {
        let mut sums = Vec::new();
        if self.largest_norm().is_none() {
            while let Some(part) = next_part(&mut passes, &model) {
                sums.extend(squares(&part));
                model = self.move_by(model, part, &Clip::NONE, learning_rate);
            }
            add_embedded(&mut found, &model, passes);
            sums.extend(squares(&found));
            model = self.move_by(model, found, &Clip::NONE, learning_rate);
            return (model, self.clip(sums));
        }
        let mut ahead = passes.clone();
        while let Some(part) = next_part(&mut ahead, &model) {
            sums.extend(squares(&part));
        }
        add_embedded(&mut found, &model, ahead);
        sums.extend(squares(&found));
        let clip = self.clip(sums);
        // The passes need the weights of the parts that they haven't come to, and no others.
        model = self.move_by(model, found, &clip, learning_rate);
        while let Some(part) = next_part(&mut passes, &model) {
            model = self.move_by(model, part, &clip, learning_rate);
        }
        (model, clip)
    }

    /// Moves the parameters that have a gradient here.
    fn move_by(
        &mut self,
        model: LanguageModel,
        gradients: BTreeMap<String, Tensor<1>>,
        clip: &Clip,
        learning_rate: f64,
    ) -> LanguageModel {
        let mut take = Take { gradients, ..Take::default() };
        let model = model.map(&mut take);
        let moved = self.update(take.taken, clip, learning_rate);
        model.map(&mut Put { path: Vec::new(), moved })
    }

    /// Moves parameters by their clipped gradients. Returns them by their names.
    fn update(&mut self, parameters: Vec<Taken>, clip: &Clip, lr: f64) -> BTreeMap<String, Moved> {
        let weight_decay = self.settings.weight_decay;
        let (mut names, mut tensors) = (Vec::new(), Vec::new());
        for Taken { name, shape, weights, gradient } in parameters {
            let moments = self.moments.remove(&name);
            tensors.push((weights, gradient, moments));
            names.push((name, shape));
        }
        let moved: Vec<(Tensor<1>, Moments)> = match self.settings.kind {
            OptimizerKind::Adamw => {
                let states = tensors.into_iter().map(|(w, g, moments)| {
                    let (m, v) = match moments {
                        Some(Moments { first: Some(m), second: v }) => (m, v),
                        _ => (g.zeros_like(), g.zeros_like()),
                    };
                    [w, g, m, v]
                });
                let [beta1, beta2] = self.settings.betas;
                let options = AdamW { lr, beta1, beta2, eps: 1e-8, weight_decay, grad_scale: 1.0 };
                let moved = adamw_steps(states.collect(), self.step, &options, clip).into_iter();
                moved.map(|[w, m, v]| (w, Moments { first: Some(m), second: v })).collect()
            }
            OptimizerKind::Rmsprop => {
                let factor = clip.factor();
                let moved = tensors.into_iter().map(|(w, g, moments)| {
                    // v ← 0.99 v + 0.01 g², w ← w − lr · g / (√v + 1e-8): torch.optim.RMSprop's defaults.
                    let g = g * factor;
                    let v = moments.map_or_else(|| g.zeros_like(), |m| m.second);
                    let v = v * 0.99 + g.clone().square() * 0.01;
                    let w = w * (1.0 - lr * weight_decay) - g / (v.clone().sqrt() + 1e-8) * lr;
                    (w, Moments { first: None, second: v })
                });
                moved.collect()
            }
        };
        let mut result = BTreeMap::new();
        for ((name, shape), (weights, moments)) in names.into_iter().zip(moved) {
            self.moments.insert(name.clone(), moments);
            result.insert(name, Moved { shape, weights });
        }
        result
    }

    /// Writes the moments as safetensors, those of a tensor held in parts as one. The number of the step is the caller's to keep.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut stored: BTreeMap<String, Stored> = BTreeMap::new();
        // By their paths, the parts of a table come in the order of its rows.
        for (path, moments) in &self.moments {
            let moments = [("first", moments.first.as_ref()), ("second", Some(&moments.second))];
            for (moment, values) in moments {
                let Some(values) = values else { continue };
                let name = format!("{moment}.{}", stored_name(path));
                let tensor = Stored::new(name.clone(), values.clone());
                match stored.get_mut(&name) {
                    Some(before) => before.append(tensor),
                    None => drop(stored.insert(name, tensor)),
                }
            }
        }
        Ok(tensor_file::write(path, stored.into_values().collect())?)
    }

    /// Resumes from step `step` with the moments that [`Self::save`] wrote for `model`, whose tensors may be held in other parts now.
    ///
    /// # Errors
    /// A file that can't be read, or moments that don't fit the model.
    pub fn restore(&mut self, path: &Path, step: usize, model: &LanguageModel) -> Result<()> {
        let device = model.device().without_autodiff();
        let files = Files::open([path.to_owned()])?;
        let views = files.views()?;
        // Elements of each stored tensor that were read so far.
        let mut read: BTreeMap<&str, usize> = BTreeMap::new();
        let mut moments = BTreeMap::new();
        for (parameter, count) in sizes(model) {
            let mut next = |moment: &str| -> Result<Option<Tensor<1>>> {
                let name = format!("{moment}.{}", stored_name(&parameter));
                let Some((name, view)) = views.get_key_value(&name) else { return Ok(None) };
                let start = read.entry(name).or_default();
                let values = files.read(view, *start..*start + count);
                let values = values.map_err(|e| anyhow!("{}: `{name}`: {e}", path.display()))?;
                *start += count;
                Ok(Some(Tensor::from_data(TensorData::new(values, [count]), &device)))
            };
            match (next("first")?, next("second")?) {
                (None, None) => {}
                (first, Some(second)) => drop(moments.insert(parameter, Moments { first, second })),
                (Some(_), None) => {
                    bail!("{}: `{parameter}` has no second moment", path.display())
                }
            }
        }
        for (name, view) in &views {
            if read.get(name.as_str()) != Some(&view.shape().iter().product()) {
                bail!("{}: `{name}` {:?} does not fit the model", path.display(), view.shape());
            }
        }
        self.step = step;
        self.moments = moments;
        Ok(())
    }
}

/// The path of every parameter and its number of elements, in the model's order.
fn sizes(model: &LanguageModel) -> Vec<(String, usize)> {
    #[derive(Default)]
    struct Sizes(Vec<String>, Vec<(String, usize)>);
    impl ModuleVisitor for Sizes {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.push((self.0.join("."), param.val().shape().num_elements()));
        }
    }
    let mut sizes = Sizes::default();
    model.visit(&mut sizes);
    sizes.1
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
            warmup_ratio: None,
            schedule,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            betas: [0.9, 0.999],
        };
        let rates_of = |settings: &OptimizerSettings| {
            let optimizer = Optimizer::new(settings, 12);
            [0, 3, 4, 8, 12].map(|step| (optimizer.learning_rate(step) * 1e6).round() / 1e6)
        };
        let rates = |schedule| rates_of(&settings(schedule));
        let share = OptimizerSettings {
            warmup_steps: 0,
            warmup_ratio: Some(0.3),
            ..settings(Schedule::Cosine)
        };
        // 0.3 · 12, rounded up as transformers does.
        assert_eq!(rates_of(&share), rates(Schedule::Cosine));
        assert_eq!(rates(Schedule::Constant), [0.5, 2.0, 2.0, 2.0, 2.0]);
        assert_eq!(rates(Schedule::Linear), [0.5, 2.0, 2.0, 1.0, 0.0]);
        assert_eq!(rates(Schedule::Cosine), [0.5, 2.0, 2.0, 1.0, 0.0]);
    }
}
