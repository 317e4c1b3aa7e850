//! Buffers of activations, read from the model or from disk and served in shuffled order.

use std::{num::NonZeroUsize, ops::Range, path::Path};

use anyhow::{Result, bail};
use burn::tensor::{Device, Tensor};
use fpo_data::{Batches, Fingerprint, SequenceStore};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    Block, Source, kept_lengths, median_norm,
    shards::{Shards, Stored},
};

/// Which order rows are in: shards of another one hold other rows.
const ORDER: &str = "windows of a quarter";
/// Batches that data is read in, at least.
const BATCHES: usize = 8;
/// Tokens to train on, at least.
const LEAST: usize = 2;

/// Settings of an [`ActivationStore`].
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// Upper bound of the tokens used.
    pub tokens: usize,
    /// Held-out tokens for measuring; capped at a tenth of all.
    pub held_out: usize,
    /// Lower bound of the tokens that are shuffled together. With fewer than twice as many, all tokens are.
    pub buffer_tokens: usize,
    /// If set, leaves out tokens whose activation norm exceeds this multiple of the median.
    pub max_norm: Option<f64>,
    /// Rows per forward pass, at most: small data is read in eight batches or more, so that one of them can be held out.
    pub batch_size: NonZeroUsize,
    /// Seed for the order of rows and of activations.
    pub seed: u64,
}

/// How rows are divided: those that are measured on, and those that are trained on.
struct Division {
    rows: Batches,
    sizes: Vec<usize>,
    held_out: Range<usize>,
    training: Range<usize>,
}

impl StoreSettings {
    fn divide(&self, data: &SequenceStore, excluded: &[u32]) -> Division {
        let lengths = data.lengths();
        let most = NonZeroUsize::new(lengths.len() / BATCHES).unwrap_or(NonZeroUsize::MIN);
        let rows = Batches::shuffled(&lengths, self.batch_size.min(most), self.seed, 0);
        let kept = kept_lengths(data, excluded);
        let sizes: Vec<usize> =
            rows.iter().map(|batch| batch.iter().map(|&row| kept[row]).sum()).collect();
        let available = sizes.iter().sum::<usize>().min(self.tokens);
        let held_out = self.held_out.min(available / 10).max(1);
        let held_out = 0..first_reaching(&sizes, held_out);
        let end = first_reaching(&sizes, available);
        let training = held_out.end..end.max(held_out.end);
        Division { rows, sizes, held_out, training }
    }

    /// Refuses data that leaves nothing to train an autoencoder on, before anything is computed.
    ///
    /// # Errors
    /// Says how many rows and tokens there are and how many are used for what.
    pub fn check_rows(&self, data: &SequenceStore, excluded: &[u32]) -> Result<()> {
        let Division { sizes, held_out, training, .. } = self.divide(data, excluded);
        let training: usize = sizes[training].iter().sum();
        if training >= LEAST {
            return Ok(());
        }
        let measured: usize = sizes[held_out].iter().sum();
        let all: usize = sizes.iter().sum();
        let used = match self.tokens < all {
            true => format!("at most {} are used; ", self.tokens),
            false => String::new(),
        };
        bail!(
            "{} rows are too few to train an autoencoder: of their {all} tokens {used}{measured} are measured on, which leaves \
             {training} to train on, and {LEAST} are the least",
            data.len(),
        )
    }
}

/// Position of the next batch, saved in checkpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    epoch: u64,
    /// Index into the epoch's order of buffers.
    position: usize,
    /// Rows of that buffer already served.
    served: usize,
}

/// A buffer in memory and the order of its rows.
struct Loaded {
    epoch: u64,
    buffer: usize,
    blocks: Vec<Block>,
    order: Vec<usize>,
}

/// Serves shuffled activations, holding one buffer at a time. The order only depends on the settings and the cursor.
pub struct ActivationStore<'a> {
    source: Source<'a>,
    settings: StoreSettings,
    rows: Batches,
    /// Tokens in each batch of rows, including outliers.
    sizes: Vec<usize>,
    /// The held-out batches of rows.
    held_out: Range<usize>,
    /// The batches of rows in each buffer.
    buffers: Vec<Range<usize>>,
    /// Tokens in all buffers, including outliers.
    training_tokens: usize,
    /// Limit on the norm of an activation, per site.
    longest: Option<Vec<f64>>,
    shards: Option<Shards>,
    cursor: Cursor,
    loaded: Option<Loaded>,
}

impl<'a> ActivationStore<'a> {
    /// Splits the data into held-out rows and buffers; data of one batch is all held out. Runs the model only if `max_norm` is set,
    /// on one batch.
    ///
    /// # Errors
    /// A setting out of range.
    pub fn new(source: Source<'a>, settings: StoreSettings) -> Result<Self> {
        let max_norm = settings.max_norm.unwrap_or(f64::INFINITY);
        if settings.buffer_tokens == 0 || max_norm.is_nan() || max_norm <= 1.0 {
            bail!(
                "buffer_tokens must be positive, and max_norm (a multiple of the median) above 1"
            );
        }
        let Division { rows, sizes, held_out, training } =
            settings.divide(source.data, &source.excluded);
        let training_tokens: usize = sizes[training.clone()].iter().sum();
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

    /// Stores activations in `folder` and reuses those already there, which keep their type and may include more sites.
    ///
    /// # Errors
    /// The folder holds activations from other inputs than `made_from` and the store's settings.
    pub fn with_shards(
        mut self,
        folder: &Path,
        stored: Stored,
        made_from: Fingerprint,
    ) -> Result<Self> {
        let s = &self.settings;
        let made_from = made_from
            .with("order", ORDER)
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

    /// Number of tokens to train on, including outliers.
    pub fn training_tokens(&self) -> usize {
        self.training_tokens
    }

    /// Number of buffers per epoch.
    pub fn buffers(&self) -> usize {
        self.buffers.len()
    }

    /// The source of the activations.
    pub fn source(&self) -> &Source<'a> {
        &self.source
    }

    /// Position of the next batch.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Continues at the position of another store with the same settings.
    pub fn seek(&mut self, cursor: Cursor) {
        self.cursor = cursor;
    }

    /// The held-out activations, one block per site.
    ///
    /// # Errors
    /// The data or a shard can't be read.
    pub fn measuring_blocks(&self) -> Result<Vec<Block>> {
        self.read("measure", 0, self.held_out.clone())
    }

    /// The next `tokens` activations: one tensor `[tokens, width]` per site, all at the same positions. Fewer only if a whole
    /// buffer has fewer.
    ///
    /// # Errors
    /// Too little data to train on beside the held-out rows, data or a shard that can't be read, or a buffer that `max_norm` leaves
    /// empty.
    pub fn next_batch(&mut self, tokens: usize, device: &Device) -> Result<Vec<Tensor<2>>> {
        if self.training_tokens < LEAST {
            self.settings.check_rows(self.source.data, &self.source.excluded)?;
        }
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
                bail!("a buffer is empty: max_norm excludes all of its activations");
            }
            let blocks = loaded.blocks.iter();
            let batch = blocks.map(|block| block.rows(rows.iter().copied(), device)).collect();
            self.cursor.served = end;
            return Ok(batch);
        }
    }

    /// Moves to the next buffer, or to the next epoch after the last one.
    fn advance(&mut self) {
        let Cursor { epoch, position, .. } = self.cursor;
        self.cursor = match position + 1 < self.buffers.len() {
            true => Cursor { epoch, position: position + 1, served: 0 },
            false => Cursor { epoch: epoch + 1, position: 0, served: 0 },
        };
    }

    /// The buffer at the cursor.
    fn load(&mut self) -> Result<&Loaded> {
        let Cursor { epoch, position, .. } = self.cursor;
        let buffer = self.shuffled(epoch, 0, self.buffers.len())[position];
        let loaded = match self.loaded.take() {
            Some(loaded) if (loaded.epoch, loaded.buffer) == (epoch, buffer) => loaded,
            // The next epoch of a single buffer: only the order changes.
            Some(Loaded { buffer: same, blocks, .. }) if same == buffer => {
                let order = self.shuffled(epoch, buffer + 1, rows_of(&blocks));
                Loaded { epoch, buffer, blocks, order }
            }
            other => {
                // Never hold two buffers in memory.
                drop(other);
                let blocks = self.read("activations", buffer + 1, self.buffers[buffer].clone())?;
                let order = self.shuffled(epoch, buffer + 1, rows_of(&blocks));
                Loaded { epoch, buffer, blocks, order }
            }
        };
        Ok(self.loaded.insert(loaded))
    }

    /// A permutation of `0..count` that depends on seed, epoch and purpose.
    fn shuffled(&self, epoch: u64, purpose: usize, count: usize) -> Vec<usize> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.settings.seed.wrapping_add(epoch << 32));
        rng.set_stream(purpose as u64);
        let mut order: Vec<usize> = (0..count).collect();
        order.shuffle(&mut rng);
        order
    }

    /// Activations of a range of batches, from disk if stored there.
    fn read(&self, what: &str, part: usize, range: Range<usize>) -> Result<Vec<Block>> {
        if let Some(blocks) = self.shards.as_ref().map(|s| s.read(part)).transpose()?.flatten() {
            return Ok(blocks);
        }
        let batches = self.rows.iter().skip(range.start).take(range.len());
        let total = self.sizes[range].iter().sum();
        let mut progress = self.source.reporter.begin(what, "tokens", total, 0);
        let mut blocks: Vec<Block> = self.source.sites.iter().map(|_| Block::default()).collect();
        for (block, site) in blocks.iter_mut().zip(&self.source.sites) {
            // A growing vector would need up to twice the memory.
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

    /// The limit on the norm at each site, a multiple of the median over the first held-out batch.
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

/// Number of leading sizes that sum to at least `wanted`.
fn first_reaching(sizes: &[usize], wanted: usize) -> usize {
    let mut sum = 0;
    let reached = sizes.iter().position(|size| {
        sum += size;
        sum >= wanted
    });
    reached.map_or(sizes.len(), |index| index + 1)
}

/// Splits a range into as many parts of about equal size as possible with at least `least` tokens each.
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
