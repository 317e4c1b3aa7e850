//! Buffers: how many activations are held, where they come from, and in which order they are served.

use std::{num::NonZeroUsize, ops::Range, path::Path};

use anyhow::{Result, bail};
use burn::tensor::{Device, Tensor};
use fpo_data::{Batches, Fingerprint};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    Block, Source, median_norm,
    shards::{Shards, Stored},
};

/// How a store is made.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// Tokens in all, at most.
    pub tokens: usize,
    /// Tokens kept apart for measuring, at most a tenth of all.
    pub held_out: usize,
    /// Tokens that are shuffled together, at least: all of them, if there are fewer than twice as many.
    pub buffer_tokens: usize,
    /// Leaves out tokens whose activation is longer than so many times the median.
    pub max_norm: Option<f64>,
    /// Rows a forward pass.
    pub batch_size: NonZeroUsize,
    /// Seeds the order of rows and of activations.
    pub seed: u64,
}

/// Where the next batch begins: what a checkpoint remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    epoch: u64,
    /// The position in the epoch's order of buffers.
    position: usize,
    /// Rows of that buffer that were served.
    served: usize,
}

/// A buffer in memory, and the order of its rows.
struct Loaded {
    epoch: u64,
    buffer: usize,
    blocks: Vec<Block>,
    order: Vec<usize>,
}

/// Shuffled activations, a buffer at a time. The order depends on settings and cursor alone.
pub struct ActivationStore<'a> {
    source: Source<'a>,
    settings: StoreSettings,
    rows: Batches,
    /// Tokens of each batch of rows, before outliers are left out.
    sizes: Vec<usize>,
    /// Ranges of the batches of rows.
    held_out: Range<usize>,
    buffers: Vec<Range<usize>>,
    /// Tokens of all buffers, before outliers are left out.
    training_tokens: usize,
    longest: Option<Vec<f64>>,
    shards: Option<Shards>,
    cursor: Cursor,
    loaded: Option<Loaded>,
}

impl<'a> ActivationStore<'a> {
    /// Plans what is read when; the model runs only for the limit on norms.
    ///
    /// # Errors
    /// Too little data to train and to measure on, or a setting out of range.
    pub fn new(source: Source<'a>, settings: StoreSettings) -> Result<Self> {
        let max_norm = settings.max_norm.unwrap_or(f64::INFINITY);
        if settings.buffer_tokens == 0 || max_norm.is_nan() || max_norm <= 1.0 {
            bail!(
                "buffer_tokens must be positive, and max_norm (a multiple of the median) above 1"
            );
        }
        let lengths = source.data.lengths();
        let rows = Batches::shuffled(&lengths, settings.batch_size, settings.seed, 0);
        let kept = source.kept_lengths();
        let sizes: Vec<usize> =
            rows.iter().map(|batch| batch.iter().map(|&row| kept[row]).sum()).collect();
        let available = sizes.iter().sum::<usize>().min(settings.tokens);
        let held_out = settings.held_out.min(available / 10).max(1);
        let held_out = 0..first_reaching(&sizes, held_out);
        let end = first_reaching(&sizes, available);
        let training = held_out.end..end.max(held_out.end);
        let training_tokens: usize = sizes[training.clone()].iter().sum();
        if training_tokens < 2 {
            bail!(
                "{} rows give no activations to train an autoencoder on beside those to measure it on",
                lengths.len()
            );
        }
        let buffers = split(&sizes, training, training_tokens, settings.buffer_tokens);
        let mut store = Self {
            source,
            settings,
            rows,
            sizes,
            held_out,
            buffers,
            training_tokens,
            longest: None,
            shards: None,
            cursor: Cursor::default(),
            loaded: None,
        };
        store.longest = store.longest()?;
        Ok(store)
    }

    /// Keeps activations in `folder`, and takes them from there if they were made from the same things. What is
    /// there keeps its type, and may have more sites.
    pub fn with_shards(
        mut self,
        folder: &Path,
        stored: Stored,
        made_from: Fingerprint,
    ) -> Result<Self> {
        let s = &self.settings;
        let made_from = made_from
            .with("tokens", s.tokens)
            .with("held_out", s.held_out)
            .with("buffer_tokens", s.buffer_tokens)
            .with("max_norm", format!("{:?}", s.max_norm))
            .with("batch_size", s.batch_size)
            .with("seed", s.seed)
            .with("excluded", format!("{:?}", self.source.excluded));
        self.shards = Some(Shards::open(folder, &self.source, stored, made_from)?);
        Ok(self)
    }

    /// Tokens to train on, before outliers are left out.
    pub fn training_tokens(&self) -> usize {
        self.training_tokens
    }

    /// Buffers that an epoch is made of.
    pub fn buffers(&self) -> usize {
        self.buffers.len()
    }

    /// What activations are read from.
    pub fn source(&self) -> &Source<'a> {
        &self.source
    }

    /// Where the next batch begins.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Goes on from where another store of the same settings was.
    pub fn seek(&mut self, cursor: Cursor) {
        self.cursor = cursor;
    }

    /// The activations that are kept apart, a block for each site.
    pub fn measuring_blocks(&self) -> Result<Vec<Block>> {
        self.read("measure", 0, self.held_out.clone())
    }

    /// The next `tokens` activations of every site, `[tokens, width]` each and at the same positions; fewer
    /// only where a buffer has no more than that.
    pub fn next_batch(&mut self, tokens: usize, device: &Device) -> Result<Vec<Tensor<2>>> {
        loop {
            let cursor = self.cursor;
            let loaded = self.load()?;
            let end = cursor.served + tokens;
            if end > loaded.order.len() && cursor.served > 0 {
                self.advance();
                continue;
            }
            let rows = &loaded.order[cursor.served..end.min(loaded.order.len())];
            if rows.is_empty() {
                bail!("a buffer has no activations: max_norm leaves nothing");
            }
            let blocks = loaded.blocks.iter();
            let batch = blocks.map(|block| block.rows(rows.iter().copied(), device)).collect();
            self.cursor.served = end;
            return Ok(batch);
        }
    }

    /// To the next buffer, in the next epoch after the last.
    fn advance(&mut self) {
        let Cursor { epoch, position, .. } = self.cursor;
        self.cursor = match position + 1 < self.buffers.len() {
            true => Cursor { epoch, position: position + 1, served: 0 },
            false => Cursor { epoch: epoch + 1, position: 0, served: 0 },
        };
    }

    /// The buffer that the cursor is in.
    fn load(&mut self) -> Result<&Loaded> {
        let Cursor { epoch, position, .. } = self.cursor;
        let buffer = self.shuffled(epoch, 0, self.buffers.len())[position];
        let loaded = match self.loaded.take() {
            Some(loaded) if (loaded.epoch, loaded.buffer) == (epoch, buffer) => loaded,
            // The same activations in another order.
            Some(Loaded { buffer: same, blocks, .. }) if same == buffer => {
                let order = self.shuffled(epoch, buffer + 1, rows_of(&blocks));
                Loaded { epoch, buffer, blocks, order }
            }
            other => {
                // Two buffers are never held at once.
                drop(other);
                let blocks = self.read("activations", buffer + 1, self.buffers[buffer].clone())?;
                let order = self.shuffled(epoch, buffer + 1, rows_of(&blocks));
                Loaded { epoch, buffer, blocks, order }
            }
        };
        Ok(self.loaded.insert(loaded))
    }

    /// 0 … count − 1 in an order that depends on seed, epoch and purpose.
    fn shuffled(&self, epoch: u64, purpose: usize, count: usize) -> Vec<usize> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.settings.seed.wrapping_add(epoch << 32));
        rng.set_stream(purpose as u64);
        let mut order: Vec<usize> = (0..count).collect();
        order.shuffle(&mut rng);
        order
    }

    /// Activations of a range of batches, from the disk if they are there.
    fn read(&self, what: &str, part: usize, range: Range<usize>) -> Result<Vec<Block>> {
        if let Some(blocks) = self.shards.as_ref().map(|s| s.read(part)).transpose()?.flatten() {
            return Ok(blocks);
        }
        let batches = self.rows.iter().skip(range.start).take(range.len());
        let total = self.sizes[range].iter().sum();
        let mut progress = self.source.reporter.begin(what, "tokens", total, 0);
        let mut blocks: Vec<Block> = self.source.sites.iter().map(|_| Block::default()).collect();
        for (block, site) in blocks.iter_mut().zip(&self.source.sites) {
            // Whole at once, so that growing never needs twice the memory.
            block.values.reserve_exact(total * site.width(self.source.model.config()));
        }
        for rows in batches {
            let read = self.source.read(rows, self.longest.as_deref())?;
            let tokens = read.first().map_or(0, Block::tokens);
            blocks.iter_mut().zip(read).for_each(|(block, more)| block.extend(more));
            progress.advance(tokens, "");
        }
        let rate = total as f64 / progress.seconds().max(1e-9);
        progress.finish(&format!("{total} activations, {rate:.0} tokens/s"));
        if let Some(shards) = &self.shards {
            shards.write(part, &blocks)?;
        }
        Ok(blocks)
    }

    /// The longest activation of each site that is no outlier, from the first rows that are held out.
    fn longest(&self) -> Result<Option<Vec<f64>>> {
        let Some(times) = self.settings.max_norm else { return Ok(None) };
        let first = self.rows.get(0).unwrap_or_default();
        let blocks = self.source.read(first, None)?;
        let medians: Result<Vec<f64>> = blocks.iter().map(median_norm).collect();
        Ok(Some(medians?.into_iter().map(|median| times * median).collect()))
    }
}

fn rows_of(blocks: &[Block]) -> usize {
    blocks.first().map_or(0, Block::tokens)
}

/// How many sizes it takes to sum to `wanted`.
fn first_reaching(sizes: &[usize], wanted: usize) -> usize {
    let mut sum = 0;
    let reached = sizes.iter().position(|size| {
        sum += size;
        sum >= wanted
    });
    reached.map_or(sizes.len(), |index| index + 1)
}

/// Cuts a range into as many parts of about equal size as have `least` tokens each.
fn split(sizes: &[usize], range: Range<usize>, total: usize, least: usize) -> Vec<Range<usize>> {
    let parts = (total / least).max(1);
    let mut ranges = Vec::with_capacity(parts);
    let (mut start, mut sum) = (range.start, 0);
    for index in range.clone() {
        sum += sizes[index];
        let done = ranges.len() + 1;
        if done < parts && sum >= total / parts * done {
            ranges.push(start..index + 1);
            start = index + 1;
        }
    }
    if start < range.end {
        ranges.push(start..range.end);
    }
    ranges
}
