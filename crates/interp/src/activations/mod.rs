//! A model's activations for training autoencoders: read by a forward pass up to the last layer needed, and served in shuffled
//! batches from buffers of bounded size.

mod shards;
mod store;

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, Tensor, TensorData};
use fpo_data::{SequenceBatch, SequenceStore, TokenBatch};
use fpo_device::progress::Reporter;
use fpo_transformer::{Input, LanguageModel, Site};

pub use shards::Stored;
pub use store::{ActivationStore, Cursor, StoreSettings};

use crate::reader::{self, indices};

/// Activations of one site in host memory, `[tokens, width]`.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// Activations in row-major order.
    pub values: Vec<f32>,
    /// Elements per row.
    pub width: usize,
}

impl Block {
    /// Number of rows.
    pub fn tokens(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// The selected rows in the given order, `[rows, width]`.
    pub fn rows(&self, rows: impl Iterator<Item = usize>, device: &Device) -> Tensor<2> {
        let width = self.width;
        let values: Vec<f32> =
            rows.flat_map(|row| self.values[row * width..][..width].iter().copied()).collect();
        let shape = [values.len() / width.max(1), width];
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn extend(&mut self, other: Self) {
        self.width = other.width;
        self.values.extend(other.values);
    }
}

/// Model, data and sites of the activations.
pub struct Source<'a> {
    /// The model, on a device without autodiff.
    pub model: &'a LanguageModel,
    /// Token sequences, one per row.
    pub data: &'a SequenceStore,
    /// Tokens whose positions are left out: BOS, EOS and padding (fpo_data's `Tokenizer::special_ids`).
    pub excluded: Vec<u32>,
    /// Where activations are read, at the same positions for all sites.
    pub sites: Vec<Site>,
    /// Receives progress.
    pub reporter: Reporter,
}

/// Number of positions of each row that aren't excluded.
fn kept_lengths(data: &SequenceStore, excluded: &[u32]) -> Vec<usize> {
    let kept = |tokens: &[u32]| tokens.iter().filter(|t| !excluded.contains(t)).count();
    data.iter().map(|example| kept(example.response.tokens)).collect()
}

impl Source<'_> {
    /// The given rows as a batch.
    ///
    /// # Errors
    /// A row that can't be read.
    pub fn batch(&self, rows: &[usize]) -> Result<TokenBatch> {
        Ok(SequenceBatch::new(&self.data.views(rows)?)?.batch)
    }

    /// The batch as input of the model.
    pub fn input(&self, batch: &TokenBatch) -> Input {
        reader::input(batch, &self.model.device())
    }

    /// Positions of a batch without excluded tokens, as indices of its tokens.
    pub fn kept(&self, batch: &TokenBatch) -> Vec<i32> {
        let kept = (0..).zip(&batch.tokens);
        let kept = kept.filter(|(_, token)| !self.excluded.contains(&(**token as u32)));
        kept.map(|(at, _)| at).collect()
    }

    /// Activations of the given rows, one block per site. Leaves out outliers: positions where the norm of an activation exceeds
    /// its site's limit in `longest`.
    fn read(&self, rows: &[usize], longest: Option<&[f64]>) -> Result<Vec<Block>> {
        let batch = self.batch(rows)?;
        let input = self.input(&batch);
        let mut blocks = Vec::with_capacity(self.sites.len());
        let kept = self.kept(&batch);
        if kept.is_empty() {
            let widths = self.sites.iter().map(|site| site.width(self.model.config()));
            return Ok(widths.map(|width| Block { values: Vec::new(), width }).collect());
        }
        let kept = indices(kept, &self.model.device());
        for x in self.model.activations(input, &self.sites) {
            let [_, _, width] = x.dims();
            let x = x.squeeze_dim::<2>(0).select(0, kept.clone());
            blocks.push(Block { values: x.into_data().iter::<f32>().collect(), width });
        }
        match longest {
            Some(longest) => Ok(without_outliers(blocks, longest)),
            None => Ok(blocks),
        }
    }
}

fn norm(row: &[f32]) -> f64 {
    row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// The median norm of a block's rows.
fn median_norm(block: &Block) -> Result<f64> {
    let mut norms: Vec<f64> = block.values.chunks_exact(block.width.max(1)).map(norm).collect();
    if norms.iter().any(|norm| !norm.is_finite()) {
        bail!("an activation is not finite");
    }
    norms.sort_by(f64::total_cmp);
    norms.get(norms.len() / 2).copied().context("no activations")
}

/// Drops positions where the norm exceeds the limit at any site.
fn without_outliers(blocks: Vec<Block>, longest: &[f64]) -> Vec<Block> {
    let tokens = blocks.first().map_or(0, Block::tokens);
    let fits = |row: &usize| {
        let mut sites = blocks.iter().zip(longest);
        sites.all(|(block, &longest)| {
            norm(&block.values[row * block.width..][..block.width]) <= longest
        })
    };
    let kept: Vec<usize> = (0..tokens).filter(fits).collect();
    if kept.len() == tokens {
        return blocks;
    }
    let keep = |Block { values, width }: Block| {
        let values = kept.iter().flat_map(|row| &values[row * width..][..width]).copied().collect();
        Block { values, width }
    };
    blocks.into_iter().map(keep).collect()
}
