//! Memory of a training step.

use anyhow::Result;
use fpo_config::{OptimizerKind, Settings};
use fpo_transformer::{LoraConfig, ModelConfig, Precision};

use crate::{
    BLOCKS, BYTES, KEPT_LOGITS, Memory, adapters, block_parameters, config, d_sae, kept_by_block,
    parameters,
};

/// The sizes that determine a training step's memory.
#[derive(Clone, Debug)]
pub struct Step {
    /// Sizes of the model.
    pub config: ModelConfig,
    /// Precision of the model.
    pub precision: Precision,
    /// Tokens per forward pass; a prompt that two responses share counts once.
    pub tokens: usize,
    /// The backward pass recomputes blocks from their inputs (activation checkpointing).
    pub checkpointed: bool,
    /// If set, only these adapters are trained.
    pub lora: Option<LoraConfig>,
    /// The optimiser, which determines the number of moments.
    pub optimizer: OptimizerKind,
    /// Gradients of several micro-batches are accumulated.
    pub accumulates: bool,
    /// The tokens of all micro-batches of a step, if their backward passes wait in front of the blocks for the optimiser.
    pub waiting: Option<usize>,
    /// On a GPU, logits are computed in blocks, and the embedding's gradient is concatenated from the blocks' gradients.
    pub gpu: bool,
    /// The reference model is loaded beside the policy.
    pub second_model: bool,
    /// Number of features of the autoencoder, if the objective needs them.
    pub d_sae: Option<usize>,
}

impl Step {
    fn trained(&self) -> u64 {
        match &self.lora {
            None => parameters(&self.config),
            Some(lora) => adapters(&self.config, lora),
        }
    }

    /// Bytes of an element of a matrix product's factors.
    fn factor(&self) -> u64 {
        self.precision.factor_bytes() as u64
    }

    /// Memory at the step's peak: start of the backward pass, its end in the blocks, or the embedding's gradient.
    pub fn memory(&self) -> Memory {
        let moments = [self.at_head(), self.at_blocks(), self.at_lookup()];
        let needs = moments.map(|moment| self.memory_at(moment));
        needs.into_iter().max_by_key(Memory::total).expect("the array isn't empty")
    }

    /// Elements of the embedding if it is trained, else 0. The gradient of a tied one is the sum of two parts: the head's, computed
    /// first, and the lookup's, computed last.
    fn table(&self) -> u64 {
        let c = &self.config;
        if self.lora.is_some() { 0 } else { (c.vocab_size * c.hidden_size) as u64 }
    }

    /// Elements of the gradients accumulated over earlier micro-batches.
    fn of_earlier_passes(&self) -> u64 {
        match (self.accumulates, self.waiting) {
            (false, _) => 0,
            (true, None) => self.trained(),
            (true, Some(_)) => self.table(),
        }
    }

    /// Tokens whose saved activations exist together.
    fn kept_tokens(&self) -> u64 {
        self.waiting.unwrap_or(self.tokens) as u64
    }

    /// Elements of this micro-batch's gradients after the backward pass through all blocks. With checkpointing they are accumulated
    /// block by block.
    fn of_pass(&self) -> u64 {
        if self.accumulates && self.checkpointed { 0 } else { self.trained() }
    }

    /// Bytes per token of activation gradients in flight: of gate, up and their product, and of the residual stream.
    fn passing(&self) -> u64 {
        let c = &self.config;
        self.factor() * 3 * c.intermediate_size as u64 + BYTES * 4 * c.hidden_size as u64
    }

    /// Bytes per token saved for the backward pass through the blocks.
    fn kept(&self) -> u64 {
        let (c, layers) = (&self.config, self.config.num_hidden_layers as u64);
        match self.checkpointed {
            true => BYTES * layers * c.hidden_size as u64,
            false => self.kept_by_blocks().sum(),
        }
    }

    /// The same for each block with everything kept; blocks differ in their adapters.
    fn kept_by_blocks(&self) -> impl Iterator<Item = u64> {
        let (c, lora) = (&self.config, self.lora.as_ref());
        (0..c.num_hidden_layers).map(move |layer| kept_by_block(c, self.precision, lora, layer))
    }

    /// Start of the backward pass: all activations are saved, and logits are computed in blocks, or some were kept.
    fn at_head(&self) -> Moment {
        let tokens = self.tokens as u64;
        let (copies, logits) = if self.gpu { (2, BLOCKS) } else { (1, KEPT_LOGITS) };
        Moment {
            gradients: self.of_earlier_passes() + copies * self.table(),
            activations: self.kept_tokens() * self.kept() + tokens * self.passing(),
            logits: logits.min(BYTES * tokens * self.config.vocab_size as u64),
        }
    }

    /// The backward pass of the first block, when most gradients exist.
    fn at_blocks(&self) -> Moment {
        let c = &self.config;
        let (block, inputs) = match (self.checkpointed, &self.lora) {
            (false, _) => (0, 0),
            (true, None) => (block_parameters(c), self.kept()),
            (true, Some(_)) => (self.trained() / c.num_hidden_layers.max(1) as u64, self.kept()),
        };
        let of_token = self.kept_by_blocks().max().unwrap_or(0) + self.passing();
        let others = match self.waiting {
            None => self.of_earlier_passes() + self.of_pass(),
            // The head's, and the block's of earlier micro-batches.
            Some(_) => self.table() + if self.accumulates { block } else { 0 },
        };
        Moment {
            gradients: others + block,
            activations: self.kept_tokens() * inputs + self.tokens as u64 * of_token,
            logits: 0,
        }
    }

    /// End of the backward pass, at the lookup. With checkpointing its rows are added to the table in place; without, the gradients of
    /// a tied table's two uses are added, not always in place.
    fn at_lookup(&self) -> Moment {
        let (summed, tables) = if self.config.tie_word_embeddings { (2, 1) } else { (1, 2) };
        let gradients = match (self.waiting, self.checkpointed) {
            (None, true) => self.of_earlier_passes() + self.of_pass(),
            (None, false) => self.of_earlier_passes() + self.of_pass() + summed * self.table(),
            (Some(_), _) => tables * self.table(),
        };
        Moment { gradients, activations: 0, logits: 0 }
    }

    fn memory_at(&self, moment: Moment) -> Memory {
        let c = &self.config;
        let (whole, trained) = (parameters(c), self.trained());
        let weights = match (&self.lora, self.second_model) {
            // The frozen model under the adapters is also the reference.
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

/// The memory that varies within a step, at one moment.
struct Moment {
    /// Elements.
    gradients: u64,
    /// Bytes.
    activations: u64,
    /// Bytes.
    logits: u64,
}

/// The alignment step of a run with these settings, on a GPU.
///
/// # Errors
/// The model's sizes can't be determined.
pub fn alignment(settings: &Settings) -> Result<Step> {
    let s = &settings.align;
    let micro_batch = s.micro_batch_size.get();
    let needs = s.objective().needs();
    Ok(Step {
        config: config(&settings.model)?,
        precision: settings.model.precision,
        // At most: what two responses share passes through the model once, but a prompt may be short.
        tokens: 2 * micro_batch * settings.data.max_length,
        checkpointed: s.checkpoint_activations,
        lora: s.lora.clone(),
        optimizer: s.optimizer.kind,
        accumulates: micro_batch < s.batch_size.get(),
        waiting: s.optimizer_in_backward.then(|| 2 * s.batch_size.get() * settings.data.max_length),
        gpu: true,
        second_model: needs.token_kl,
        d_sae: needs.features.then(|| d_sae(settings)),
    })
}

/// The fine-tuning step of a run with these settings, on a GPU; `None` if `sft.epochs` is 0.
///
/// # Errors
/// The model's sizes can't be determined.
pub fn fine_tuning(settings: &Settings) -> Result<Option<Step>> {
    let s = &settings.sft;
    if s.epochs == 0.0 {
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
        waiting: s.optimizer_in_backward.then(|| s.batch_size.get() * settings.data.max_length),
        gpu: true,
        second_model: false,
        d_sae: None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The embedding has 590 million of the 2.61 billion parameters.
    #[test]
    fn the_embeddings_gradient_has_two_parts() {
        let settings = Settings::resolve("gemma-2-2b-fpo", None, &[]).unwrap();
        let step = alignment(&settings).unwrap();
        let (whole, table) = (parameters(&step.config), 256_000 * 2304);
        let gradients = |step: &Step| step.memory().gradients;
        let in_parts = BYTES * (whole + 2 * table);
        assert_eq!(gradients(&step), in_parts);
        let one_pass = Step { accumulates: false, ..step.clone() };
        let block = block_parameters(&step.config);
        assert_eq!(gradients(&one_pass), BYTES * (whole + block));
        let kept = Step { checkpointed: false, tokens: 1, ..step.clone() };
        assert_eq!(gradients(&kept), in_parts + BYTES * whole);
        let lora = Some(LoraConfig::default());
        assert!(gradients(&Step { lora, ..step.clone() }) < BYTES * table / 10);
        // Of the blocks' gradients, one block's exist.
        let waiting = Step { waiting: Some(step.tokens), accumulates: false, ..step };
        assert_eq!(gradients(&waiting), BYTES * 2 * table);
    }

    /// Oracle: the parts counted by hand. Of 26 blocks, those with adapters keep the inputs of their projections (of q and v the
    /// float32 output of a norm, 2304 wide), and with dropout the two inputs and masks of the adapters.
    #[test]
    fn blocks_keep_what_their_own_adapters_need() {
        let step = |more: &[&str]| {
            let set: Vec<String> = more.iter().map(|set| format!("align.lora.{set}")).collect();
            let settings = Settings::resolve("gemma-2-2b-fpo", None, &set).unwrap();
            Step { checkpointed: false, tokens: 1, ..alignment(&settings).unwrap() }
        };
        let modules = "target_modules=[\"q_proj\", \"v_proj\"]";
        let none = step(&[]).kept();
        let dropped = 2 * 2 * step(&[]).factor() * 2304;
        for (layers, count) in [("[0]", 1), ("[3, 25]", 2), ("[]", 26)] {
            let places = format!("layers_to_transform={layers}");
            let kept = step(&[modules, &places]).kept();
            assert_eq!(kept - none, count * BYTES * 2304, "{layers}");
            let kept = step(&[modules, &places, "dropout=0.1"]).kept();
            assert_eq!(kept - none, count * (BYTES * 2304 + dropped), "{layers}");
        }
    }
}
