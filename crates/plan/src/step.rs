//! What a training step needs.

use anyhow::Result;
use fpo_transformer::{LoraConfig, ModelConfig, Precision};

use crate::{
    BLOCKS, BYTES, Memory, adapters, block_parameters, config, d_sae, kept_by_block, parameters,
};
use fpo_config::{OptimizerKind, Settings};

/// A training step, as far as its memory is concerned.
#[derive(Clone, Debug)]
pub struct Step {
    /// The model.
    pub config: ModelConfig,
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
    /// On a GPU: logits are formed in larger blocks, and the gradient of the embedding table is joined from these.
    pub gpu: bool,
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

    /// What the step needs at its worst moment.
    pub fn memory(&self) -> Memory {
        let moments = [self.at_head(), self.at_blocks(), self.at_lookup()];
        let needs = moments.map(|moment| self.memory_at(moment));
        needs.into_iter().max_by_key(Memory::total).expect("there are moments")
    }

    /// Numbers of the embedding table, where it is trained. Its gradient comes in two parts: of the head first, of the lookup last.
    fn table(&self) -> u64 {
        let c = &self.config;
        if self.lora.is_some() { 0 } else { (c.vocab_size * c.hidden_size) as u64 }
    }

    /// Numbers of gradients that earlier forward passes have left.
    fn of_earlier_passes(&self) -> u64 {
        if self.accumulates { self.trained() } else { 0 }
    }

    /// Numbers of gradients beside those of earlier passes, once a pass has gone back through all blocks: those of recomputed blocks
    /// are added to the others one by one.
    fn of_pass(&self) -> u64 {
        if self.accumulates && self.checkpointed { 0 } else { self.trained() }
    }

    /// Bytes of a token's gradients on their way: of gate, up and their product, and of the stream.
    fn passing(&self) -> u64 {
        let c = &self.config;
        self.factor() * 3 * c.intermediate_size as u64 + BYTES * 4 * c.hidden_size as u64
    }

    /// Bytes that are kept of a token for going back through the blocks.
    fn kept(&self) -> u64 {
        let (c, layers) = (&self.config, self.config.num_hidden_layers as u64);
        match self.checkpointed {
            true => BYTES * layers * c.hidden_size as u64,
            false => layers * kept_by_block(c, self.precision),
        }
    }

    /// The way back begins: everything is kept, and logits are formed in blocks.
    fn at_head(&self) -> Moment {
        let tokens = self.tokens as u64;
        let (copies, logits) = if self.gpu { (2, BLOCKS) } else { (1, BLOCKS / 4) };
        Moment {
            gradients: self.of_earlier_passes() + copies * self.table(),
            activations: tokens * (self.kept() + self.passing()),
            logits: logits.min(BYTES * tokens * self.config.vocab_size as u64),
        }
    }

    /// In a block, where most gradients are there.
    fn at_blocks(&self) -> Moment {
        let c = &self.config;
        let (block, inputs) = match (self.checkpointed, &self.lora) {
            (false, _) => (0, 0),
            (true, None) => (block_parameters(c), self.kept()),
            (true, Some(_)) => (self.trained() / c.num_hidden_layers.max(1) as u64, self.kept()),
        };
        let of_token = inputs + kept_by_block(c, self.precision) + self.passing();
        Moment {
            gradients: self.of_earlier_passes() + self.of_pass() + block,
            activations: self.tokens as u64 * of_token,
            logits: 0,
        }
    }

    /// The way back ends: the lookup's part of the table's gradient is added to the head's, and not always in place.
    fn at_lookup(&self) -> Moment {
        let gradients = self.of_earlier_passes() + self.of_pass() + 2 * self.table();
        Moment { gradients, activations: 0, logits: 0 }
    }

    fn memory_at(&self, moment: Moment) -> Memory {
        let c = &self.config;
        let (whole, trained) = (parameters(c), self.trained());
        let weights = match (&self.lora, self.second_model) {
            // A frozen model beside its adapters is the second one too.
            (Some(_), _) => self.factor() * whole + BYTES * trained,
            (None, true) => (BYTES + self.factor()) * whole,
            (None, false) => BYTES * whole,
        };
        let moments = match self.optimizer {
            OptimizerKind::Adamw => 2,
            OptimizerKind::Rmsprop => 1,
        };
        let encoder = self.d_sae.map_or(0, |d_sae| (d_sae * (c.hidden_size + 2)) as u64);
        Memory {
            weights,
            gradients: BYTES * moment.gradients,
            optimizer: BYTES * moments * trained,
            activations: moment.activations,
            rest: BYTES * encoder + moment.logits,
        }
    }
}

/// What comes and goes within a step.
struct Moment {
    /// Numbers.
    gradients: u64,
    /// Bytes.
    activations: u64,
    /// Bytes.
    logits: u64,
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
        gpu: true,
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
        gpu: true,
        second_model: false,
        d_sae: None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 2.61 billion numbers 590 million are the table's.
    #[test]
    fn the_table_s_gradient_comes_in_parts() {
        let settings = Settings::resolve("gemma-2-2b-fpo", None, &[]).unwrap();
        let step = alignment(&settings).unwrap();
        let (whole, table) = (parameters(&step.config), 256_000 * 2304);
        let gradients = |step: &Step| step.memory().gradients;
        let in_parts = BYTES * (whole + 2 * table);
        assert_eq!(gradients(&step), in_parts);
        assert_eq!(gradients(&Step { accumulates: false, ..step.clone() }), in_parts);
        let kept = Step { checkpointed: false, tokens: 1, ..step.clone() };
        assert_eq!(gradients(&kept), in_parts + BYTES * whole);
        let lora = Some(LoraConfig::default());
        assert!(gradients(&Step { lora, ..step }) < BYTES * table / 10);
    }
}
