//! What a training step needs.

use anyhow::Result;
use fpo_transformer::{Gemma2Config, LoraConfig, Precision};

use super::{
    BLOCKS, BYTES, Memory, adapters, block_parameters, config, d_sae, kept_by_block, parameters,
};
use crate::settings::{OptimizerKind, Settings};

/// A training step, as far as its memory is concerned.
#[derive(Clone, Debug)]
pub struct Step {
    /// The model.
    pub config: Gemma2Config,
    /// Its types.
    pub precision: Precision,
    /// Tokens of one forward pass, padding included.
    pub tokens: usize,
    /// Blocks are computed twice instead of kept.
    pub checkpointed: bool,
    /// Adapters alone are trained.
    pub lora: Option<LoraConfig>,
    /// What keeps moments.
    pub optimizer: OptimizerKind,
    /// Gradients of several forward passes add up.
    pub accumulates: bool,
    /// The reference model is there as well.
    pub second_model: bool,
    /// Features of the autoencoder, where it is read.
    pub d_sae: Option<usize>,
}

impl Step {
    fn trained(&self) -> u64 {
        match &self.lora {
            None => parameters(&self.config),
            Some(lora) => adapters(&self.config, lora),
        }
    }

    /// Bytes of a number that enters a product.
    fn factor(&self) -> u64 {
        self.precision.factor_bytes() as u64
    }

    /// Numbers of gradients that are there beside those of the step so far, on their way to being added to them.
    ///
    /// The table's gradient comes in two parts, that of the head first, that of the lookup last; and the head's is joined from blocks
    /// of tokens, so that it is there twice at the beginning of the way back.
    fn passing_gradients(&self, trained: u64) -> u64 {
        let c = &self.config;
        let table = (c.vocab_size * c.hidden_size) as u64;
        match (self.accumulates, self.checkpointed, &self.lora) {
            (false, _, None) => table,
            (false, _, Some(_)) => 0,
            (true, false, None) => trained + table,
            (true, false, Some(_)) => trained,
            // Block by block.
            (true, true, None) => block_parameters(c).max(2 * table),
            (true, true, Some(_)) => trained / c.num_hidden_layers.max(1) as u64,
        }
    }

    /// What the step needs.
    pub fn memory(&self) -> Memory {
        let c = &self.config;
        let (tokens, layers) = (self.tokens as u64, c.num_hidden_layers as u64);
        let (whole, trained) = (parameters(c), self.trained());
        let of_adapters = if self.lora.is_some() { trained } else { 0 };
        let (of_policy, of_second) = match (&self.lora, self.second_model) {
            // A frozen model beside its adapters is the second one too.
            (Some(_), _) => (self.factor(), 0),
            (None, true) => (BYTES, self.factor()),
            (None, false) => (BYTES, 0),
        };
        let of_block = kept_by_block(c, self.precision);
        let kept = match self.checkpointed {
            true => BYTES * layers * c.hidden_size as u64 + of_block,
            false => layers * of_block,
        };
        // Gradients on their way: of gate, up and their product, and of the stream.
        let passing =
            self.factor() * 3 * c.intermediate_size as u64 + BYTES * 4 * c.hidden_size as u64;
        let moments = match self.optimizer {
            OptimizerKind::Adamw => 2,
            OptimizerKind::Rmsprop => 1,
        };
        let encoder = self.d_sae.map_or(0, |d_sae| (d_sae * (c.hidden_size + 2)) as u64);
        Memory {
            weights: (of_policy + of_second) * whole + BYTES * of_adapters,
            gradients: BYTES * (trained + self.passing_gradients(trained)),
            optimizer: BYTES * moments * trained,
            activations: tokens * (kept + passing),
            rest: BYTES * encoder + BLOCKS.min(BYTES * tokens * c.vocab_size as u64),
        }
    }
}

/// The alignment step of a run.
///
/// # Errors
/// A model whose sizes can't be known.
pub fn alignment(settings: &Settings) -> Result<Step> {
    let s = &settings.align;
    let micro_batch = s.micro_batch_size.get();
    let needs = s.objective().needs();
    Ok(Step {
        config: config(&settings.model)?,
        precision: settings.model.precision,
        tokens: 2 * micro_batch * settings.data.max_length,
        checkpointed: s.checkpoint_activations,
        lora: s.lora.clone(),
        optimizer: s.optimizer.kind,
        accumulates: micro_batch < s.batch_size.get(),
        second_model: needs.token_kl,
        d_sae: needs.features.then(|| d_sae(settings)),
    })
}

/// The fine-tuning step of a run; none where there is no fine-tuning.
///
/// # Errors
/// A model whose sizes can't be known.
pub fn fine_tuning(settings: &Settings) -> Result<Option<Step>> {
    let s = &settings.sft;
    if s.epochs == 0 {
        return Ok(None);
    }
    let micro_batch = s.micro_batch_size.get();
    Ok(Some(Step {
        config: config(&settings.model)?,
        precision: settings.model.precision,
        tokens: micro_batch * settings.data.max_length,
        checkpointed: s.checkpoint_activations,
        lora: s.lora.clone(),
        optimizer: s.optimizer.kind,
        accumulates: micro_batch < s.batch_size.get(),
        second_model: false,
        d_sae: None,
    }))
}
