//! Activation checkpointing per block: the forward pass keeps only the input of each block, and the backward pass recomputes
//! the rest block by block.
//!
//! The forward pass runs outside any graph. Its outputs are leaves of a new graph, on which the caller computes a loss. From the
//! gradients of these leaves a [`Tape`] continues the backward pass down to the embedding.

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
    /// [`LanguageModel::forward`] in less memory. The outputs are leaves; [`Tape::backward`] takes their gradients to the
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
    /// The backward pass from the gradients of the outputs through `model`, which must be the one of the forward pass. `found`
    /// is called with the gradients of the final norm and of each block from the last to the first. Returns the gradient of the
    /// embedding's rows, if it is trained. The gradient of a parameter that is used in several places (a tied embedding is also the
    /// head) is the sum of its parts.
    pub fn backward(
        mut self,
        model: &LanguageModel,
        gradients: &mut Gradients,
        mut found: impl FnMut(Gradients),
    ) -> Option<EmbeddedRows> {
        let backbone = &model.model;
        let mut site_gradients: Vec<Option<Tensor<3>>> =
            self.activations.drain(..).map(|x| x.grad_remove(gradients)).collect();
        let mut gradient = self.hidden_states.grad_remove(gradients).and_then(|gradient| {
            let x = leaf(self.last);
            back(&x, vec![(model.final_norm(x.clone()), gradient)], &mut found)
        });

        let blocks = backbone.layers.iter().enumerate().rev();
        for ((layer, block), x) in blocks.zip(self.inputs.into_iter().rev()) {
            let x = leaf(x);
            let at_sites = self.sites.iter().zip(&mut site_gradients);
            let at_sites = at_sites.filter(|(site, _)| site.layer == layer);
            let at_sites: Vec<_> =
                at_sites.filter_map(|(site, slot)| Some((*site, slot.take()?))).collect();
            if gradient.is_some() || !at_sites.is_empty() {
                gradient = through_block(block, x, &self.layout, gradient, at_sites, &mut found);
            }
        }

        let trained = backbone.embed_tokens.rows().is_require_grad();
        let gradient = gradient.filter(|_| trained)?;
        let [batch, length, d_model] = gradient.dims();
        let of_rows = model.precision().factor(gradient * model.config().embedding_scale);
        Some(EmbeddedRows {
            tokens: self.tokens.reshape([batch * length]),
            gradient: of_rows.reshape([batch * length, d_model]),
            parts: backbone.embed_tokens.parts(),
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
    found: &mut impl FnMut(Gradients),
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
    found: &mut impl FnMut(Gradients),
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
