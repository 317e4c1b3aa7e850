//! Activation checkpointing per block: the forward pass keeps only the input of each block, and the backward pass recomputes
//! the rest block by block.
//!
//! The forward pass runs outside any graph. Its outputs are leaves of a new graph, on which the caller computes a loss. From the
//! gradients of these leaves a [`BackwardPass`] continues down to the embedding, one part of the model after the other.

use std::collections::BTreeMap;

use burn::{
    module::Module,
    tensor::{Gradients, Int, Tensor},
};
use fpo_ops::{add_rows, at_least_f32_type, seed};

use crate::{
    ForwardOutput, LanguageModel, Site,
    layout::{Input, Layout},
    model::{Block, BlockOutput},
};

/// What [`LanguageModel::forward_checkpointed`] keeps for the backward pass.
#[derive(Debug)]
pub struct Tape {
    tokens: Tensor<2, Int>,
    layout: Layout,
    /// The input of each block, `[batch, tokens, d_model]`.
    inputs: Vec<Tensor<3>>,
    /// The input of the final norm, `[batch, tokens, d_model]`.
    last: Tensor<3>,
    sites: Vec<Site>,
    /// The leaves that the caller received.
    hidden_states: Tensor<3>,
    activations: Vec<Tensor<3>>,
}

impl LanguageModel {
    /// [`LanguageModel::forward`] in less memory. The outputs are leaves; [`Tape::begin`] takes their gradients to the
    /// parameters.
    ///
    /// # Panics
    /// If the model lacks a site's layer; see [`Site::check`].
    pub fn forward_checkpointed(
        &self,
        input: impl Into<Input>,
        sites: &[Site],
    ) -> (ForwardOutput, Tape) {
        let Input { tokens, texts } = input.into();
        let input = Input { tokens: tokens.without_autodiff(), texts };
        let (layout, tokens) = (input.layout(self.config()), input.tokens);
        let plain = self.valid();
        let depth = plain.model.layers.len();
        let mut inputs = Vec::with_capacity(depth);
        let (last, activations) =
            plain.blocks(&layout, tokens.clone(), sites, depth, |x| inputs.push(x.clone()));
        let hidden_states = leaf(plain.final_norm(last.clone()));
        let activations: Vec<Tensor<3>> = activations.into_iter().map(leaf).collect();
        let output =
            ForwardOutput { hidden_states: hidden_states.clone(), sites: activations.clone() };
        let sites = sites.to_vec();
        (output, Tape { tokens, layout, inputs, last, sites, hidden_states, activations })
    }
}

impl Tape {
    /// The rest of the backward pass, from the gradients of the outputs.
    pub fn begin(self, gradients: &mut Gradients) -> BackwardPass {
        let Self { tokens, layout, inputs, last, sites, hidden_states, activations } = self;
        let at_sites = sites.into_iter().zip(activations);
        let at_sites = at_sites.filter_map(|(site, x)| Some((site, x.grad_remove(gradients)?)));
        BackwardPass {
            tokens,
            layout,
            inputs,
            last: Some(last),
            at_sites: at_sites.collect(),
            gradient: hidden_states.grad_remove(gradients),
        }
    }
}

/// A backward pass on its way from the outputs of a forward pass to the embedding. Where it has been, nothing of it is left.
#[derive(Clone, Debug)]
pub struct BackwardPass {
    tokens: Tensor<2, Int>,
    layout: Layout,
    /// The inputs of the blocks that it hasn't come to, `[batch, tokens, d_model]`.
    inputs: Vec<Tensor<3>>,
    /// The input of the final norm, until it has been there.
    last: Option<Tensor<3>>,
    /// The gradients of the activations at the sites.
    at_sites: Vec<(Site, Tensor<3>)>,
    /// The gradient of the residual stream where it is; at first, that of the final hidden states.
    gradient: Option<Tensor<3>>,
}

impl BackwardPass {
    /// Goes through the next part of `model`, which must have there the weights of the forward pass: the final norm, then each block
    /// from the last to the first. `found` is called with the gradients of the part's parameters, if it has any. False at the
    /// embedding, where there is no next part.
    pub fn step(&mut self, model: &LanguageModel, found: impl FnOnce(Gradients)) -> bool {
        if let Some(x) = self.last.take() {
            self.gradient = self.gradient.take().and_then(|gradient| {
                let x = leaf(x);
                back(&x, vec![(model.final_norm(x.clone()), gradient)], found)
            });
            return true;
        }
        let Some(x) = self.inputs.pop() else { return false };
        let layer = self.inputs.len();
        let here =
            self.at_sites.extract_if(.., |(site, _)| site.layer == layer).collect::<Vec<_>>();
        let gradient = self.gradient.take();
        if gradient.is_some() || !here.is_empty() {
            let block = &model.model.layers[layer];
            self.gradient = through_block(block, leaf(x), &self.layout, gradient, here, found);
        }
        true
    }

    /// At the embedding, the gradient of its rows, if it is trained. The gradient of a parameter that is used in several places (a
    /// tied embedding is also the head) is the sum of its parts.
    pub fn embedded(self, model: &LanguageModel) -> Option<EmbeddedRows> {
        let embedding = &model.model.embed_tokens;
        let gradient = self.gradient.filter(|_| embedding.rows().is_require_grad())?;
        let [batch, length, d_model] = gradient.dims();
        let of_rows = model.precision().factor(gradient * model.config().embedding_scale);
        Some(EmbeddedRows {
            tokens: self.tokens.reshape([batch * length]),
            gradient: of_rows.reshape([batch * length, d_model]),
            parts: embedding.parts(),
        })
    }
}

/// The gradient of the token embeddings of a batch: that of all other rows of the table is zero.
#[derive(Clone, Debug)]
pub struct EmbeddedRows {
    /// `[batch · tokens]`
    tokens: Tensor<1, Int>,
    /// `[batch · tokens, d_model]`
    gradient: Tensor<2>,
    /// The path in the model and the number of rows of each part of the table.
    parts: Vec<(String, usize)>,
}

impl EmbeddedRows {
    /// Adds it to the gradient of each part of the table, which is flattened and under the part's path; one that isn't there is zero.
    pub fn add_to(self, gradients: &mut BTreeMap<String, Tensor<1>>) {
        let [_, d_model] = self.gradient.dims();
        let place = (&self.gradient.device(), at_least_f32_type(self.gradient.dtype()));
        let mut first = 0;
        for (path, rows) in self.parts {
            let shape = [rows, d_model];
            let table = match gradients.remove(&path) {
                Some(before) => before.reshape(shape),
                None => Tensor::zeros(shape, place),
            };
            let sum = add_rows(table, first, self.tokens.clone(), self.gradient.clone());
            gradients.insert(path, sum.reshape([rows * d_model]));
            first += rows;
        }
    }
}

/// Recomputes a block and returns the gradient of its input.
fn through_block(
    block: &Block,
    x: Tensor<3>,
    layout: &Layout,
    gradient: Option<Tensor<3>>,
    at_sites: Vec<(Site, Tensor<3>)>,
    found: impl FnOnce(Gradients),
) -> Option<Tensor<3>> {
    let output: BlockOutput = block.forward(x.clone(), layout);
    let mut ends: Vec<_> =
        at_sites.into_iter().map(|(site, g)| (output.at(site.kind), g)).collect();
    ends.extend(gradient.map(|gradient| (output.resid_post, gradient)));
    back(&x, ends, found)
}

/// The backward pass from outputs with known gradients: returns the gradient of the leaf `x`, and passes all others to `found`.
fn back(
    x: &Tensor<3>,
    ends: Vec<(Tensor<3>, Tensor<3>)>,
    found: impl FnOnce(Gradients),
) -> Option<Tensor<3>> {
    let seeds = ends.into_iter().map(|(output, gradient)| seed(output, gradient));
    let mut gradients = seeds.reduce(|a, b| a + b)?.backward();
    let gradient = x.grad_remove(&mut gradients);
    found(gradients);
    gradient
}

/// `x` as a leaf of a new graph.
fn leaf(x: Tensor<3>) -> Tensor<3> {
    x.autodiff().require_grad()
}
