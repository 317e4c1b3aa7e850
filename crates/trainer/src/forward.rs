//! From a batch in host memory to the tensors that losses take.

use burn::tensor::{Device, Int, Tensor};
use fpo_data::TokenBatch;
use fpo_interp::reader::{FeatureReader, indices, input};
use fpo_ops::{profile, segment_sums, select_rows};
use fpo_transformer::{ForwardOutput, Head, Input, LanguageModel, Site, Tape};

/// A batch on a device, with the positions that losses are about. n is the number of response tokens.
pub struct DeviceBatch {
    input: Input,
    /// Indices of the tokens that predict the response tokens, `[n]`.
    predicting: Tensor<1, Int>,
    /// Those tokens, `[n]`.
    targets: Tensor<1, Int>,
    /// Response tokens of each row.
    pub counts: Vec<usize>,
}

impl DeviceBatch {
    /// Moves a batch to a device.
    pub fn new(batch: &TokenBatch, device: &Device) -> Self {
        let _batch = profile::part("batch");
        Self {
            input: input(batch, device),
            predicting: indices(batch.predicting_positions(), device),
            targets: indices(batch.targets(), device),
            counts: batch.response_counts(),
        }
    }

    /// Sums values `[n]` over each row's response tokens → `[rows]`.
    pub fn sum_by_row(&self, values: Tensor<1>) -> Tensor<1> {
        self.sum_first_by_row(values, &self.counts)
    }

    /// Sums values `[n]` over each row's first tokens, as many as the shorter response of its pair has. The rows are pairs, all
    /// chosen responses first. → `[rows]`
    pub fn sum_shared_by_row(&self, values: Tensor<1>) -> Tensor<1> {
        let pairs = self.counts.len() / 2;
        let shared = |row: usize| self.counts[row % pairs].min(self.counts[pairs + row % pairs]);
        self.sum_first_by_row(values, &(0..2 * pairs).map(shared).collect::<Vec<_>>())
    }

    fn sum_first_by_row(&self, values: Tensor<1>, first: &[usize]) -> Tensor<1> {
        let mut start = 0;
        let segments = self.counts.iter().zip(first).map(|(&count, &first)| {
            start += count;
            start - count..start - count + first
        });
        segment_sums(values, &segments.collect::<Vec<_>>())
    }
}

/// What a forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// All activations: the fast way.
    All,
    /// The input of each block; the rest is computed again in the backward pass.
    BlockInputs,
}

impl Keep {
    /// As the setting `checkpoint_activations` says.
    pub const fn checkpointed(yes: bool) -> Self {
        if yes { Self::BlockInputs } else { Self::All }
    }
}

/// What a model makes of a batch.
pub struct Forward {
    head: Head,
    /// Final hidden states where response tokens are predicted, `[n, d_model]`.
    hidden: Tensor<2>,
    /// The response tokens, `[n]`.
    targets: Tensor<1, Int>,
    /// Pooled features, one tensor `[rows, d_sae]` per site of the reader.
    pub pooled: Vec<Tensor<2>>,
    /// What the backward pass needs beside the graph, where activations are computed again.
    pub tape: Option<Tape>,
}

impl Forward {
    /// One pass of a model over a batch, with the features that `reader` reads.
    pub fn new(
        model: &LanguageModel,
        batch: &TokenBatch,
        on_device: &DeviceBatch,
        reader: Option<&FeatureReader>,
    ) -> Self {
        Self::for_training(model, batch, on_device, reader, Keep::All)
    }

    /// The same for a model that is trained.
    pub fn for_training(
        model: &LanguageModel,
        batch: &TokenBatch,
        on_device: &DeviceBatch,
        reader: Option<&FeatureReader>,
        keep: Keep,
    ) -> Self {
        let sites: Vec<Site> = reader.map_or(Vec::new(), FeatureReader::sites);
        let input = on_device.input.clone();
        let (ForwardOutput { hidden_states, sites }, tape) = match keep {
            Keep::All => (model.forward(input, &sites), None),
            Keep::BlockInputs => {
                let (output, tape) = model.forward_checkpointed(input, &sites);
                (output, Some(tape))
            }
        };
        let hidden = hidden_states.squeeze_dim::<2>(0);
        Self {
            head: model.head(),
            hidden: select_rows(hidden, on_device.predicting.clone()),
            targets: on_device.targets.clone(),
            pooled: reader.map_or(Vec::new(), |reader| reader.pool(batch, sites)),
            tape,
        }
    }

    /// Log-probability of every response token in nats, `[n]`.
    pub fn token_log_probs(&self) -> Tensor<1> {
        self.head.log_probs(self.hidden.clone(), self.targets.clone())
    }

    /// log p(token) − log Σ_v p(v)² of every response token, `[n]`: how likely the model itself would write it (WPO). A constant.
    pub fn token_aligned_log_probs(&self) -> Tensor<1> {
        // With logits z this is log softmax(2z) − log softmax(z) at the token.
        let head = self.head.clone().without_autodiff();
        let hidden = self.hidden.clone().without_autodiff();
        let targets = self.targets.clone().without_autodiff();
        let at = |scale| head.scaled_log_probs(hidden.clone(), targets.clone(), scale);
        at(2.0) - at(1.0)
    }

    /// Entropy of the model's distribution at every response token in nats, and 1 where its most probable token is the
    /// response's, else 0; `[n]` each, constants.
    pub fn token_statistics(&self) -> [Tensor<1>; 2] {
        let statistics = self.head.token_statistics(self.hidden.clone(), self.targets.clone());
        let right = statistics.argmax.equal(self.targets.clone().without_autodiff()).float();
        [statistics.entropy, right]
    }

    /// KL(reference ‖ model) at every response token in nats, `[n]`.
    pub fn token_kl(&self, reference: &Self) -> Tensor<1> {
        self.head.kl(self.hidden.clone(), &reference.head, reference.hidden.clone())
    }
}
