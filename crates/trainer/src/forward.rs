//! From a batch in host memory to the tensors that losses take.

use anyhow::{Result, bail};
use burn::tensor::{Device, Int, Tensor, TensorData};
use fpo_data::{Pooling, TokenBatch};
use fpo_ops::{Encoder, pooled_features};
use fpo_sae::Sae;
use fpo_transformer::{ForwardOutput, LanguageModel, ModelConfig, Site, Tape};

/// What reads a model's sparse features: an encoder and its site, or several, and the positions that
/// count. The features of several sites stand one after another.
#[derive(Clone)]
pub struct FeatureReader {
    encoders: Vec<(Encoder, Site)>,
    pooling: Pooling,
    /// Tokens whose positions the autoencoder never saw.
    excluded: Vec<u32>,
}

impl FeatureReader {
    /// Reads `sae`'s features at `site`, leaving out positions that hold one of `excluded`.
    pub fn new(sae: &Sae, site: Site, pooling: Pooling, excluded: Vec<u32>) -> Self {
        Self { encoders: vec![(sae.encoder.clone(), site)], pooling, excluded }
    }

    /// Reads another autoencoder's features too.
    pub fn and(mut self, sae: &Sae, site: Site) -> Self {
        self.encoders.push((sae.encoder.clone(), site));
        self
    }

    /// What gives the features, site by site.
    pub fn encoders(&self) -> impl Iterator<Item = &Encoder> {
        self.encoders.iter().map(|(encoder, _)| encoder)
    }

    /// Number of features of each site.
    pub fn widths(&self) -> Vec<usize> {
        self.encoders().map(|encoder| encoder.w_enc.dims()[1]).collect()
    }

    /// Number of features of all sites.
    pub fn d_sae(&self) -> usize {
        self.widths().iter().sum()
    }

    /// Refuses a site that the model lacks, and an autoencoder that is for another width.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        for (encoder, site) in &self.encoders {
            site.check(config.num_hidden_layers)?;
            let (takes, gives) = (encoder.w_enc.dims()[0], site.width(config));
            if takes != gives {
                bail!("the autoencoder takes activations of width {takes}, {site} has {gives}");
            }
        }
        Ok(())
    }

    fn sites(&self) -> Vec<Site> {
        self.encoders.iter().map(|(_, site)| *site).collect()
    }

    /// Pooled features of activations, site by site, `[rows, d_sae]`.
    fn pool(&self, batch: &TokenBatch, activations: Vec<Tensor<3>>) -> Tensor<2> {
        let positions = batch.positions(self.pooling, &self.excluded);
        let pooled = activations.into_iter().zip(self.encoders()).map(|(x, encoder)| {
            let flat = int_tensor(positions.flat.clone(), &x.device());
            pooled_features(rows(x).select(0, flat), encoder, &positions.counts)
        });
        let mut pooled: Vec<_> = pooled.collect();
        match pooled.len() {
            1 => pooled.remove(0),
            _ => Tensor::cat(pooled, 1),
        }
    }
}

/// A batch on a device, with the positions that losses are about. n is the number of response tokens.
pub struct DeviceBatch {
    /// `[rows, width]`
    pub tokens: Tensor<2, Int>,
    /// Flat indices of the positions that predict the response tokens, `[n]`.
    predicting: Tensor<1, Int>,
    /// Those tokens, `[n]`.
    targets: Tensor<1, Int>,
    /// Response tokens of each row.
    pub counts: Vec<usize>,
}

impl DeviceBatch {
    /// Moves a batch to a device.
    pub fn new(batch: &TokenBatch, device: &Device) -> Self {
        let shape = [batch.rows, batch.width];
        Self {
            tokens: Tensor::from_data(TensorData::new(batch.tokens.clone(), shape), device),
            predicting: int_tensor(batch.predicting_positions(), device),
            targets: int_tensor(batch.targets(), device),
            counts: batch.response_counts(),
        }
    }

    /// Sums values `[n]` over each row's response tokens → `[rows]`.
    pub fn sum_by_row(&self, values: Tensor<1>) -> Tensor<1> {
        self.sum_first_by_row(values, &self.counts)
    }

    /// The same over as many of a response's first tokens as the shorter response of its pair has, where
    /// the rows are pairs, all chosen responses first.
    pub fn sum_shared_by_row(&self, values: Tensor<1>) -> Tensor<1> {
        let pairs = self.counts.len() / 2;
        let shared = |row: usize| self.counts[row % pairs].min(self.counts[pairs + row % pairs]);
        self.sum_first_by_row(values, &(0..2 * pairs).map(shared).collect::<Vec<_>>())
    }

    fn sum_first_by_row(&self, values: Tensor<1>, first: &[usize]) -> Tensor<1> {
        let [n] = values.dims();
        let rows = self.counts.len();
        // A product with a matrix of zeros and ones: differentiable, and in the same order everywhere.
        let mut members = vec![0f32; rows * n];
        let mut start = 0;
        for (row, (&count, &first)) in self.counts.iter().zip(first).enumerate() {
            members[row * n + start..][..first].fill(1.0);
            start += count;
        }
        let members = TensorData::new(members, [rows, n]);
        let members = Tensor::from_data(members, (&values.device(), values.dtype()));
        members.matmul(values.unsqueeze_dim::<2>(1)).squeeze_dim(1)
    }
}

/// What a model makes of a batch.
pub struct Forward {
    /// Final hidden states where response tokens are predicted, `[n, d_model]`.
    pub hidden: Tensor<2>,
    /// Pooled activations of each row, `[rows, d_sae]`, where a reader was given.
    pub pooled: Option<Tensor<2>>,
    /// What the backward pass needs beside the graph, where activations are recomputed.
    pub tape: Option<Tape>,
}

/// What a forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// Everything: the fast way.
    Kept,
    /// What goes into each block; the rest is computed a second time.
    Recomputed,
}

impl Activations {
    /// As the setting `checkpoint_activations` says.
    pub const fn checkpointed(yes: bool) -> Self {
        if yes { Self::Recomputed } else { Self::Kept }
    }
}

impl Forward {
    /// One pass of the model over the batch.
    pub fn new(
        model: &LanguageModel,
        batch: &TokenBatch,
        device_batch: &DeviceBatch,
        reader: Option<&FeatureReader>,
    ) -> Self {
        let output = model.forward(device_batch.tokens.clone(), &sites(reader));
        Self::read(output, None, batch, device_batch, reader)
    }

    /// One pass of a model that is trained.
    pub fn for_training(
        model: &LanguageModel,
        batch: &TokenBatch,
        device_batch: &DeviceBatch,
        reader: Option<&FeatureReader>,
        activations: Activations,
    ) -> Self {
        match activations {
            Activations::Kept => Self::new(model, batch, device_batch, reader),
            Activations::Recomputed => {
                let tokens = device_batch.tokens.clone();
                let (output, tape) = model.forward_checkpointed(tokens, &sites(reader));
                Self::read(output, Some(tape), batch, device_batch, reader)
            }
        }
    }

    fn read(
        output: ForwardOutput,
        tape: Option<Tape>,
        batch: &TokenBatch,
        device_batch: &DeviceBatch,
        reader: Option<&FeatureReader>,
    ) -> Self {
        let hidden = rows(output.hidden_states).select(0, device_batch.predicting.clone());
        let pooled = reader.map(|reader| reader.pool(batch, output.sites));
        Self { hidden, pooled, tape }
    }

    /// Summed log-probability of each row's response, `[rows]`.
    pub fn log_probs(&self, model: &LanguageModel, batch: &DeviceBatch) -> Tensor<1> {
        batch.sum_by_row(self.token_log_probs(model, batch))
    }

    /// Log-probability of every response token, `[n]`.
    pub fn token_log_probs(&self, model: &LanguageModel, batch: &DeviceBatch) -> Tensor<1> {
        model.head().log_probs(self.hidden.clone(), batch.targets.clone())
    }

    /// log p(token) − log Σ_v p(v)² of every response token, `[n]`: how much the model would have written
    /// it itself. A constant.
    pub fn token_aligned_log_probs(&self, model: &LanguageModel, batch: &DeviceBatch) -> Tensor<1> {
        // With logits z this is log softmax(2z) − log softmax(z) at the token.
        let head = model.head().without_autodiff();
        let hidden = self.hidden.clone().without_autodiff();
        let targets = batch.targets.clone().without_autodiff();
        head.scaled_log_probs(hidden.clone(), targets.clone(), 2.0)
            - head.log_probs(hidden, targets)
    }

    /// Entropy of the model's distribution at every response token in nats, and whether its most
    /// probable token is the response's, `[n]` each; constants.
    pub fn token_statistics(&self, model: &LanguageModel, batch: &DeviceBatch) -> [Tensor<1>; 2] {
        let targets = batch.targets.clone().without_autodiff();
        let statistics = model.head().token_statistics(self.hidden.clone(), targets.clone());
        let right = statistics.argmax.equal(targets).float();
        [statistics.entropy, right]
    }

    /// KL(reference ‖ model), summed over each row's response positions, `[rows]`.
    pub fn kl(
        &self,
        model: &LanguageModel,
        reference: &Forward,
        reference_model: &LanguageModel,
        batch: &DeviceBatch,
    ) -> Tensor<1> {
        let (hidden, reference_hidden) = (self.hidden.clone(), reference.hidden.clone());
        let kl = model.head().kl(hidden, &reference_model.head(), reference_hidden);
        batch.sum_by_row(kl)
    }
}

fn sites(reader: Option<&FeatureReader>) -> Vec<Site> {
    reader.map_or(Vec::new(), FeatureReader::sites)
}

/// `[batch, tokens, width]` → `[batch · tokens, width]`
fn rows(x: Tensor<3>) -> Tensor<2> {
    let [batch, tokens, width] = x.dims();
    x.reshape([batch * tokens, width])
}

fn int_tensor(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}
