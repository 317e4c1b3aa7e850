//! The gradients of a step, by the paths of the parameters they are of.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Gradients, Tensor},
};
use fpo_transformer::{BackwardPass, LanguageModel, Tape};

/// The gradients of a step, summed over its micro-batches.
#[derive(Default)]
pub struct StepGradients {
    /// Flattened.
    pub(crate) found: BTreeMap<String, Tensor<1>>,
    /// The micro-batches' backward passes in front of the final norm and the blocks, if they wait there for the optimiser.
    pub(crate) waiting: Option<Vec<BackwardPass>>,
}

impl StepGradients {
    /// None yet. If the backward passes `wait`, those with a tape stop where it begins; [`Optimizer::step`](crate::Optimizer::step)
    /// takes them through the model's parts together, so that the gradients of one part exist at a time.
    pub fn new(wait: bool) -> Self {
        Self { found: BTreeMap::new(), waiting: wait.then(Vec::new) }
    }

    /// The gradients of one loss.
    pub fn of(loss: &Tensor<1>, model: &LanguageModel, tape: Option<Tape>) -> Self {
        let mut gradients = Self::default();
        gradients.add_of(loss, model, tape);
        gradients
    }

    /// Adds the gradients of the loss of a micro-batch: the backward pass from the loss, and through the blocks of a tape if the
    /// forward pass left one. Those of a tape are added block by block, so that no second copy of all of them exists.
    pub fn add_of(&mut self, loss: &Tensor<1>, model: &LanguageModel, tape: Option<Tape>) {
        let mut gradients = loss.backward();
        add(&mut self.found, collect(model, &mut gradients));
        let Some(mut pass) = tape.map(|tape| tape.begin(&mut gradients)) else { return };
        match &mut self.waiting {
            Some(waiting) => waiting.push(pass),
            None => {
                while pass.step(model, |part| add_part(&mut self.found, model, part)) {}
                add_embedded(&mut self.found, model, [pass]);
            }
        }
    }

    /// Paths and gradients, without those for which backward passes wait.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor<1>)> {
        self.found.iter().map(|(path, gradient)| (path.as_str(), gradient))
    }
}

/// Takes all passes through the next part of the model. Its gradients; `None` at the embedding.
pub(crate) fn next_part(
    passes: &mut [BackwardPass],
    model: &LanguageModel,
) -> Option<BTreeMap<String, Tensor<1>>> {
    let mut found = BTreeMap::new();
    let mut is_part = false;
    for pass in passes {
        is_part |= pass.step(model, |part| add_part(&mut found, model, part));
    }
    is_part.then_some(found)
}

/// Adds the gradients of a part of the model.
fn add_part(sum: &mut BTreeMap<String, Tensor<1>>, model: &LanguageModel, mut part: Gradients) {
    add(sum, collect(model, &mut part));
}

/// Adds the gradients of the embedding's rows, where passes end.
pub(crate) fn add_embedded(
    sum: &mut BTreeMap<String, Tensor<1>>,
    model: &LanguageModel,
    passes: impl IntoIterator<Item = BackwardPass>,
) {
    let embedded = passes.into_iter().filter_map(|pass| pass.embedded(model));
    embedded.for_each(|rows| rows.add_to(sum));
}

fn add(sum: &mut BTreeMap<String, Tensor<1>>, more: BTreeMap<String, Tensor<1>>) {
    for (path, gradient) in more {
        let gradient = match sum.remove(&path) {
            Some(before) => before + gradient,
            None => gradient,
        };
        sum.insert(path, gradient);
    }
}

/// Takes the gradients of every parameter that has one.
fn collect(model: &LanguageModel, gradients: &mut Gradients) -> BTreeMap<String, Tensor<1>> {
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
    collect.found
}

pub(crate) fn flat<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let count = x.dims().iter().product::<usize>();
    x.reshape([count])
}
