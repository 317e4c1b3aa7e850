//! Activations of a model for autoencoders: read from its forward pass, which ends at the last layer needed,
//! and served in shuffled batches from buffers of bounded size.

mod shards;
mod store;

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, Int, Tensor, TensorData};
use fpo_data::{SequenceBatch, SequenceStore, TokenBatch};
use fpo_device::progress::Reporter;
use fpo_transformer::{LanguageModel, Site};
pub use shards::Stored;
pub use store::{ActivationStore, Cursor, StoreSettings};

/// Activations of one site in host memory, `[tokens, width]`.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// Row by row.
    pub values: Vec<f32>,
    /// Of a row.
    pub width: usize,
}

impl Block {
    /// Number of rows.
    pub fn tokens(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// Some of the rows, in the order given. `[rows, width]`
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

/// What activations are read from.
pub struct Source<'a> {
    /// The model, without autodiff.
    pub model: &'a LanguageModel,
    /// Rows of tokens.
    pub data: &'a SequenceStore,
    /// Fills the cells behind a row's end.
    pub pad: u32,
    /// Tokens whose positions are left out: BOS and EOS, as autoencoders are trained on neither.
    pub excluded: Vec<u32>,
    /// Where activations are read, all of them at the same positions.
    pub sites: Vec<Site>,
    /// Told how far reading is.
    pub reporter: Reporter,
}

impl Source<'_> {
    /// How many positions of each row are not excluded.
    fn kept_lengths(&self) -> Vec<usize> {
        let kept = |tokens: &[u32]| tokens.iter().filter(|t| !self.excluded.contains(t)).count();
        self.data.iter().map(|example| kept(example.response.tokens)).collect()
    }

    /// Some of the rows as a batch.
    pub fn batch(&self, rows: &[usize]) -> Result<TokenBatch> {
        Ok(SequenceBatch::new(&self.data.views(rows)?, self.pad)?.batch)
    }

    /// What the model takes, `[rows, width]`.
    pub fn input(&self, batch: &TokenBatch) -> Tensor<2, Int> {
        let data = TensorData::new(batch.tokens.clone(), [batch.rows, batch.width]);
        Tensor::from_data(data, &self.model.device())
    }

    /// The flat positions of a batch that hold neither padding nor an excluded token.
    pub fn kept(&self, batch: &TokenBatch) -> Vec<i32> {
        let mut kept = Vec::with_capacity(batch.tokens.len());
        for row in 0..batch.rows {
            let real = batch.row(row).iter().enumerate();
            let real = real.filter(|(_, token)| !self.excluded.contains(&(**token as u32)));
            kept.extend(real.map(|(t, _)| (row * batch.width + t) as i32));
        }
        kept
    }

    /// The activations of some rows, a block for each site. A position whose activation is longer than its
    /// site's `longest` is an outlier, and left out.
    fn read(&self, rows: &[usize], longest: Option<&[f64]>) -> Result<Vec<Block>> {
        let batch = self.batch(rows)?;
        let shape = [batch.rows, batch.width];
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
            let x = x.reshape([shape[0] * shape[1], width]).select(0, kept.clone());
            blocks.push(Block { values: x.into_data().iter::<f32>().collect(), width });
        }
        match longest {
            Some(longest) => Ok(without_outliers(blocks, longest)),
            None => Ok(blocks),
        }
    }
}

/// Positions as a tensor, `[count]`.
pub(crate) fn indices(positions: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let count = positions.len();
    Tensor::from_data(TensorData::new(positions, [count]), device)
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

/// Drops the positions whose activation is too long at any of the sites.
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
