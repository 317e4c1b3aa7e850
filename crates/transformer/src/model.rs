//! The decoder, from top to bottom: norm, attention, MLP, block, model.
//!
//! Fields have the checkpoint's names, so that a parameter's path is its name in safetensors.

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{DType, Device, Int, Tensor},
};
use fpo_ops::{AttentionOptions, Gain, Rows, at_least_f32, profile};

use crate::{
    BlockNorms, Embedding, Error, Head, Linear, LoraConfig, MlpActivation, ModelConfig, Placement,
    Precision, Provider, Site, SiteKind,
    builder::Builder,
    cache::LayerCache,
    embedding::{EMBEDDING, HEAD},
    layout::{Input, Layout, Rotaries},
    linear::Again,
};

/// `x · rsqrt(mean(x²) + eps) · gain`
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[width]`: the gain, or the gain minus one.
    pub weight: Param<Tensor<1>>,
    #[module(skip)]
    pub(crate) gain: Gain,
    pub(crate) eps: f64,
}

impl RmsNorm {
    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        fpo_ops::rms_norm(x, self.weight.val(), self.gain, self.eps)
    }

    /// The same for layers that compute it again in their backward pass.
    fn again(&self, x: &Tensor<3>) -> Again<3> {
        let (gain, eps) = (self.gain, self.eps);
        let value = self.forward(x.clone());
        let (x, weight) = (x.clone().without_autodiff(), self.weight.val().without_autodiff());
        Again::new(value, move || fpo_ops::rms_norm(x.clone(), weight.clone(), gain, eps))
    }

    /// The gain, `[width]`.
    pub fn gain(&self) -> Tensor<1> {
        // The neutral weight has the gain 1.
        self.weight.val() + (1.0 - self.gain.neutral())
    }
}

/// Grouped-query attention with rotary positions. Queries and keys may be normalised and scores soft-capped, and a layer may have
/// a sliding window.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, `[heads · head_dim, d_model]`
    pub q_proj: Linear,
    /// Keys, `[kv_heads · head_dim, d_model]`
    pub k_proj: Linear,
    /// Values, `[kv_heads · head_dim, d_model]`
    pub v_proj: Linear,
    /// Output, `[d_model, heads · head_dim]`
    pub o_proj: Linear,
    /// On each head of the queries, before the rotary embedding.
    pub q_norm: Option<RmsNorm>,
    /// On each head of the keys, before the rotary embedding.
    pub k_norm: Option<RmsNorm>,
    head_dim: usize,
    scale: f64,
    softcap: Option<f64>,
    window: Option<usize>,
}

impl Attention {
    /// Queries, keys and values before the rotary embedding. `[batch, tokens, heads, head_dim]` each
    fn qkv(&self, x: &Again<3>) -> [Tensor<4>; 3] {
        let heads = |x: Tensor<3>| {
            let [batch, tokens, width] = x.dims();
            x.reshape([batch, tokens, width / self.head_dim, self.head_dim])
        };
        // Normalised heads stay in float32 until they are rotated.
        let normal = |norm: &Option<RmsNorm>, x: Tensor<4>| match norm {
            Some(norm) => norm.forward(at_least_f32(x)),
            None => x,
        };
        let q = normal(&self.q_norm, heads(self.q_proj.forward_again(x)));
        let k = normal(&self.k_norm, heads(self.k_proj.forward_again(x)));
        [q, k, heads(self.v_proj.forward_again(x))]
    }

    /// The concatenated heads before the output projection. `[batch, tokens, heads · head_dim]`
    fn z(&self, x: &Again<3>, layout: &Layout) -> Tensor<3> {
        let [q, k, v] = self.qkv(x);
        let [batch, tokens, ..] = q.dims();
        let options =
            AttentionOptions { scale: self.scale, softcap: self.softcap, window: self.window };
        let z = layout.attend(q, k, v, &options);
        z.reshape([batch as i32, tokens as i32, -1])
    }

    /// The same for the newest tokens of a generation, with the previous ones in `cache`.
    fn z_cached(&self, x: &Again<3>, rotaries: &Rotaries, cache: &mut LayerCache) -> Tensor<3> {
        let [q, k, v] = self.qkv(x);
        let rotary = rotaries.of(self.window);
        let [q, k] = [q, k].map(|x| rotary.per_row(x).cast(v.dtype()));
        cache.attend(q, k, v, self.scale, self.softcap, self.window)
    }
}

/// The gated MLP: `down(activation(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[intermediate, d_model]`
    pub gate_proj: Linear,
    /// `[intermediate, d_model]`
    pub up_proj: Linear,
    /// `[d_model, intermediate]`
    pub down_proj: Linear,
    #[module(skip)]
    activation: MlpActivation,
}

impl Mlp {
    fn forward(&self, x: &Again<3>) -> Tensor<3> {
        let gated = match self.activation {
            MlpActivation::GeluTanh => fpo_ops::geglu,
            MlpActivation::Silu => fpo_ops::swiglu,
        };
        let [gate, up] = [&self.gate_proj, &self.up_proj].map(|layer| layer.forward_again(x));
        let value = gated(gate.clone(), up.clone());
        let [gate, up] = [gate, up].map(Tensor::without_autodiff);
        self.down_proj.forward_again(&Again::new(value, move || gated(gate.clone(), up.clone())))
    }
}

/// The activations of a block at its sites. `[batch, tokens, width]`
pub(crate) struct BlockOutput {
    resid_pre: Tensor<3>,
    attn_z: Tensor<3>,
    mlp_out: Tensor<3>,
    pub(crate) resid_post: Tensor<3>,
}

impl BlockOutput {
    pub(crate) fn at(&self, kind: SiteKind) -> Tensor<3> {
        match kind {
            SiteKind::ResidPre => self.resid_pre.clone(),
            SiteKind::ResidPost => self.resid_post.clone(),
            SiteKind::MlpOut => self.mlp_out.clone(),
            SiteKind::AttnZ => self.attn_z.clone(),
        }
    }
}

/// A transformer block, with a norm before both attention and MLP, or before and after both.
#[derive(Module, Debug)]
pub struct Block {
    /// `[batch, tokens, d_model]` → the same
    pub self_attn: Attention,
    /// `[batch, tokens, d_model]` → the same
    pub mlp: Mlp,
    /// On the input of attention.
    pub input_layernorm: RmsNorm,
    /// With norms before and after: on the output of attention, before it is added to the residual stream. With norms only
    /// before, whose files use this name for another place: on the input of the MLP.
    pub post_attention_layernorm: RmsNorm,
    /// With norms before and after: on the input of the MLP.
    pub pre_feedforward_layernorm: Option<RmsNorm>,
    /// With norms before and after: on the output of the MLP, before it is added to the residual stream.
    pub post_feedforward_layernorm: Option<RmsNorm>,
}

impl Block {
    /// The norm on the output of attention, if there is one.
    pub fn after_attention(&self) -> Option<&RmsNorm> {
        self.pre_feedforward_layernorm.is_some().then_some(&self.post_attention_layernorm)
    }

    /// The norm on the input of the MLP.
    fn before_mlp(&self) -> &RmsNorm {
        self.pre_feedforward_layernorm.as_ref().unwrap_or(&self.post_attention_layernorm)
    }

    /// The block on whole texts.
    pub(crate) fn forward(&self, x: Tensor<3>, layout: &Layout) -> BlockOutput {
        self.forward_with(x, |attention, x| attention.z(x, layout))
    }

    fn forward_with(
        &self,
        x: Tensor<3>,
        attention: impl FnOnce(&Attention, &Again<3>) -> Tensor<3>,
    ) -> BlockOutput {
        let _block = profile::part("block");
        let resid_pre = x.clone();
        let after = |norm: Option<&RmsNorm>, output: Tensor<3>| match norm {
            Some(norm) => norm.forward(at_least_f32(output)),
            None => at_least_f32(output),
        };
        let normal = self.input_layernorm.again(&x);
        let (attn_z, attn_out) = {
            let _attention = profile::part("attention");
            let z = attention(&self.self_attn, &normal);
            (z.clone(), self.self_attn.o_proj.forward(z))
        };
        let x = x + after(self.after_attention(), attn_out);
        let normal = self.before_mlp().again(&x);
        let mlp_out = {
            let _mlp = profile::part("mlp");
            self.mlp.forward(&normal)
        };
        let mlp_out = after(self.post_feedforward_layernorm.as_ref(), mlp_out);
        let attn_z = at_least_f32(attn_z);
        BlockOutput { resid_pre, attn_z, resid_post: x + mlp_out.clone(), mlp_out }
    }
}

/// Everything below the head: the parameters with the prefix `model.` in a checkpoint.
#[derive(Module, Debug)]
pub struct Backbone {
    /// Token embedding, which may also be the unembedding.
    pub embed_tokens: Embedding,
    /// Blocks, from the embedding to the final norm.
    pub layers: Vec<Block>,
    /// Applied to the last block's output.
    pub norm: RmsNorm,
}

/// A decoder-only language model.
#[derive(Module, Debug)]
pub struct LanguageModel {
    /// Everything below the head.
    pub model: Backbone,
    /// The unembedding, if it isn't the embedding.
    pub lm_head: Option<Embedding>,
    #[module(skip)]
    pub(crate) config: ModelConfig,
    #[module(skip)]
    precision: Precision,
    /// The configuration of the blocks' adapters, if they have any.
    #[module(skip)]
    pub(crate) lora: Option<LoraConfig>,
}

/// The result of a forward pass.
#[derive(Debug)]
pub struct ForwardOutput {
    /// After the final norm: the input of the head. `[batch, tokens, d_model]`
    pub hidden_states: Tensor<3>,
    /// The activations at the requested sites, in that order. `[batch, tokens, width of the site]`
    pub sites: Vec<Tensor<3>>,
}

impl LanguageModel {
    /// Builds a model with the parameters that `provider` gives.
    ///
    /// # Errors
    /// Those of `provider`, or a parameter that the device can't hold.
    pub fn build(
        config: &ModelConfig,
        placement: impl Into<Placement>,
        provider: Provider,
    ) -> Result<Self, Error> {
        let c = config;
        let placement = placement.into();
        let precision = placement.precision;
        let mut b = Builder { provider, placement };
        let table = [c.vocab_size, c.hidden_size];
        let embed_tokens = Embedding::build(&mut b, EMBEDDING, table)?;
        let mut layers = Vec::with_capacity(c.num_hidden_layers);
        for layer in 0..c.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
            let (d, ffn) = (c.hidden_size, c.intermediate_size);
            let after = c.block_norms == BlockNorms::BeforeAndAfter;
            layers.push(Block {
                self_attn: Attention {
                    q_proj: b.linear(name("self_attn.q_proj"), q, d, c.qkv_bias)?,
                    k_proj: b.linear(name("self_attn.k_proj"), kv, d, c.qkv_bias)?,
                    v_proj: b.linear(name("self_attn.v_proj"), kv, d, c.qkv_bias)?,
                    o_proj: b.linear(name("self_attn.o_proj"), d, q, false)?,
                    q_norm: b.norm_if(c.qk_norm, name("self_attn.q_norm"), c.head_dim, c)?,
                    k_norm: b.norm_if(c.qk_norm, name("self_attn.k_norm"), c.head_dim, c)?,
                    head_dim: c.head_dim,
                    scale: c.query_pre_attn_scalar.powf(-0.5),
                    softcap: c.attn_logit_softcapping,
                    window: c.window(layer),
                },
                mlp: Mlp {
                    gate_proj: b.linear(name("mlp.gate_proj"), ffn, d, false)?,
                    up_proj: b.linear(name("mlp.up_proj"), ffn, d, false)?,
                    down_proj: b.linear(name("mlp.down_proj"), d, ffn, false)?,
                    activation: c.activation,
                },
                input_layernorm: b.norm(name("input_layernorm"), d, c)?,
                post_attention_layernorm: b.norm(name("post_attention_layernorm"), d, c)?,
                pre_feedforward_layernorm: b.norm_if(
                    after,
                    name("pre_feedforward_layernorm"),
                    d,
                    c,
                )?,
                post_feedforward_layernorm: b.norm_if(
                    after,
                    name("post_feedforward_layernorm"),
                    d,
                    c,
                )?,
            });
        }
        let norm = b.norm("model.norm".into(), c.hidden_size, c)?;
        let model = Backbone { embed_tokens, layers, norm };
        let lm_head = match c.tie_word_embeddings {
            true => None,
            false => Some(Embedding::build(&mut b, HEAD, table)?),
        };
        Ok(Self { model, lm_head, config: c.clone(), precision, lora: None })
    }

    /// The same model outside any graph, its matrices in the type in which a model that isn't trained holds them. What needs no
    /// other type is shared with this model.
    #[must_use]
    pub fn frozen(&self) -> Self {
        struct Freeze(DType);
        impl ModuleMapper for Freeze {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                param.map(|weights| match D {
                    2 => weights.cast(self.0),
                    _ => weights,
                })
            }
        }
        let matrices = self.precision.of_matrix(&self.device().without_autodiff());
        self.valid().map(&mut Freeze(matrices))
    }

    /// The configuration that the model was built from.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The types in which it is stored and computed.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The device of the parameters.
    pub fn device(&self) -> Device {
        self.unembedding().device()
    }

    /// The rows of the head. `[vocab_size, d_model]`
    pub fn unembedding(&self) -> Rows {
        self.lm_head.as_ref().unwrap_or(&self.model.embed_tokens).rows()
    }

    /// Token embeddings, scaled. `tokens` `[batch, tokens]` → `[batch, tokens, d_model]`
    pub(crate) fn embed(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let _embedding = profile::part("embedding");
        let [batch, length] = tokens.dims();
        let rows = self.model.embed_tokens.rows().select(tokens.reshape([batch * length]));
        // Rounded as in every other use of a matrix.
        let scaled = at_least_f32(self.precision.factor(rows)) * self.config.embedding_scale;
        scaled.reshape([batch as i32, length as i32, -1])
    }

    /// The forward pass. However the texts are laid out, the outputs at a text's tokens are those that it would get alone.
    ///
    /// # Panics
    /// If the model lacks a site's layer; see [`Site::check`].
    pub fn forward(&self, input: impl Into<Input>, sites: &[Site]) -> ForwardOutput {
        let (input, depth) = (input.into(), self.model.layers.len());
        let layout = input.layout(&self.config);
        let (x, sites) = self.blocks(&layout, input.tokens, sites, depth, |_| {});
        ForwardOutput { hidden_states: self.final_norm(x), sites }
    }

    /// Only the activations at `sites`: the forward pass ends after the last layer that is needed.
    pub fn activations(&self, input: impl Into<Input>, sites: &[Site]) -> Vec<Tensor<3>> {
        let depth = sites.iter().map(|site| site.layer + 1).max().unwrap_or(0);
        let input = input.into();
        let layout = input.layout(&self.config);
        self.blocks(&layout, input.tokens, sites, depth, |_| {}).1
    }

    /// The final norm of the last block's output: the input of the head. `[batch, tokens, d_model]`
    pub(crate) fn final_norm(&self, x: Tensor<3>) -> Tensor<3> {
        let _norm = profile::part("final norm");
        self.precision.factor(self.model.norm.forward(x))
    }

    /// The output of the first `depth` blocks and the activations at `sites`. `entering` is called with the input of each block.
    pub(crate) fn blocks(
        &self,
        layout: &Layout,
        tokens: Tensor<2, Int>,
        sites: &[Site],
        depth: usize,
        mut entering: impl FnMut(&Tensor<3>),
    ) -> (Tensor<3>, Vec<Tensor<3>>) {
        let mut x = self.embed(tokens);
        let mut found: Vec<Option<Tensor<3>>> = vec![None; sites.len()];
        for (layer, block) in self.model.layers.iter().take(depth).enumerate() {
            entering(&x);
            let output = block.forward(x, layout);
            for (slot, site) in found.iter_mut().zip(sites).filter(|(_, s)| s.layer == layer) {
                *slot = Some(output.at(site.kind));
            }
            x = output.resid_post;
        }
        let found = found.into_iter().zip(sites);
        let found = found.map(|(x, site)| x.unwrap_or_else(|| panic!("the model has no {site}")));
        (x, found.collect())
    }

    /// The final hidden states of [`Self::forward`], `[batch, tokens, d_model]`, with the activation at `site`,
    /// `[batch, tokens, width]`, replaced by `replace` of it.
    pub fn forward_with(
        &self,
        input: impl Into<Input>,
        site: Site,
        replace: impl Fn(Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        let input = input.into();
        let layout = input.layout(&self.config);
        let mut x = self.embed(input.tokens);
        for (layer, block) in self.model.layers.iter().enumerate() {
            let is_here = |kind| site == Site { kind, layer };
            if is_here(SiteKind::ResidPre) {
                x = replace(x);
            }
            let output = block.forward_with(x, |attention, x| {
                let z = attention.z(x, &layout);
                if is_here(SiteKind::AttnZ) { replace(at_least_f32(z)) } else { z }
            });
            x = if is_here(SiteKind::ResidPost) {
                replace(output.resid_post)
            } else if is_here(SiteKind::MlpOut) {
                output.resid_post - output.mlp_out.clone() + replace(output.mlp_out)
            } else {
                output.resid_post
            };
        }
        self.final_norm(x)
    }

    /// The final hidden states of `tokens` `[batch, tokens]`, which continue the tokens in `caches`, at the given positions (one
    /// for each of the `batch · tokens`).
    pub(crate) fn forward_cached(
        &self,
        tokens: Tensor<2, Int>,
        positions: &[usize],
        caches: &mut [LayerCache],
    ) -> Tensor<3> {
        let rotaries = Rotaries::new(positions.iter().copied(), &self.config, &tokens.device());
        let mut x = self.embed(tokens);
        for (block, cache) in self.model.layers.iter().zip(caches) {
            x = block
                .forward_with(x, |attention, x| attention.z_cached(x, &rotaries, cache))
                .resid_post;
        }
        self.final_norm(x)
    }

    /// What turns final hidden states into distributions over the vocabulary.
    pub fn head(&self) -> Head {
        Head::new(self.unembedding(), self.config.final_logit_softcapping, self.precision)
    }

    /// [`Head::logits`]: `[n, d_model]` → `[n, vocab_size]`
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.head().logits(hidden)
    }
}
