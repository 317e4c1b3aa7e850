//! Collects features in two passes over the data: the first gathers statistics and the rows in which each feature is strongest, the
//! second reads the excerpts around these positions.

use std::{collections::BTreeMap, num::NonZeroUsize, ops::Range};

use anyhow::{Context, Result, bail};
use burn::tensor::Tensor;
use fpo_data::Batches;
use fpo_sae::Sae;

use super::{Example, Feature, Histogram, logits};
use crate::{activations::Source, drift::excerpt, reader::indices};

/// Positions per block, which bounds the size of `[positions, d_sae]`.
const POSITIONS: usize = 1024;

/// What to collect.
#[derive(Clone, Debug)]
pub struct Options {
    /// Indices of the features; defaults to all.
    pub features: Option<Vec<usize>>,
    /// Stops after the batch that reaches this number of tokens.
    pub tokens: usize,
    /// Rows per forward pass.
    pub batch_size: NonZeroUsize,
    /// Excerpts per feature.
    pub examples: usize,
    /// Tokens of an excerpt on either side of the strongest one.
    pub context: usize,
    /// Promoted tokens per feature, and suppressed ones.
    pub logits: usize,
}

/// A feature's strongest position in a row.
#[derive(Clone, Copy)]
struct Candidate {
    activation: f32,
    row: usize,
    position: usize,
}

/// Statistics of a feature.
#[derive(Clone, Default)]
struct Statistics {
    active: usize,
    sum: f64,
    max: f32,
    histogram: Histogram,
    /// Strongest first.
    candidates: Vec<Candidate>,
}

impl Statistics {
    fn add(&mut self, activation: f32) {
        self.active += 1;
        self.sum += f64::from(activation);
        self.max = self.max.max(activation);
        self.histogram.add(activation);
    }

    fn offer(&mut self, candidate: Candidate, most: usize) {
        let at = self.candidates.partition_point(|c| c.activation >= candidate.activation);
        if at < most {
            self.candidates.insert(at, candidate);
            self.candidates.truncate(most);
        }
    }
}

/// Collects the features of an autoencoder on the data of `source`, whose only site must be the autoencoder's. Also returns the
/// number of tokens read.
///
/// # Errors
/// A source with more or fewer sites, a feature out of range, unreadable data, or data without tokens.
pub fn collect(sae: &Sae, source: &Source<'_>, options: &Options) -> Result<(Vec<Feature>, usize)> {
    let &[site] = source.sites.as_slice() else {
        bail!("expected one site, but the source has {}", source.sites.len())
    };
    let features = match &options.features {
        Some(features) => features.clone(),
        None => (0..sae.d_sae()).collect(),
    };
    if let Some(feature) = features.iter().find(|&&feature| feature >= sae.d_sae()) {
        bail!("no feature {feature}: the autoencoder has features 0 to {}", sae.d_sae() - 1);
    }
    let reader = Reader { sae, source, features: &features };
    let (statistics, tokens) = reader.count(options)?;
    let examples = reader.read_examples(&statistics, options)?;
    let effects = logits::effects(sae, source.model, site, &features, options.logits);
    let found = features.iter().zip(statistics).zip(examples).zip(effects);
    let features = found.map(|(((&index, statistics), examples), effect)| Feature {
        index,
        density: statistics.active as f64 / tokens as f64,
        max: statistics.max,
        mean: statistics.sum / statistics.active.max(1) as f64,
        activations: statistics.histogram,
        examples,
        promoted: effect.promoted,
        suppressed: effect.suppressed,
        logits: effect.bars,
    });
    Ok((features.collect(), tokens))
}

struct Reader<'a> {
    sae: &'a Sae,
    source: &'a Source<'a>,
    features: &'a [usize],
}

impl Reader<'_> {
    /// Calls `each` with (index into `rows`, position, activations of the features) for every position that isn't excluded, in
    /// order. Returns the number of positions.
    fn read(&self, rows: &[usize], mut each: impl FnMut(usize, usize, &[f32])) -> Result<usize> {
        let device = self.source.model.device();
        let batch = self.source.batch(rows)?;
        let kept = self.source.kept(&batch);
        let output = self.source.model.activations(self.source.input(&batch), &self.source.sites);
        let x = output.into_iter().next().context("a site gives one tensor")?;
        let (x, in_rows): (Tensor<2>, _) = (x.squeeze_dim(0), batch.in_rows());
        let wanted = (self.features.len() < self.sae.d_sae())
            .then(|| indices(self.features.iter().map(|&i| i as i32).collect(), &device));
        for kept in kept.chunks(POSITIONS) {
            let x = x.clone().select(0, indices(kept.to_vec(), &device));
            let mut features = self.sae.encode(x);
            if let Some(wanted) = &wanted {
                features = features.select(1, wanted.clone());
            }
            let values: Vec<f32> = features.into_data().iter::<f32>().collect();
            for (&at, values) in kept.iter().zip(values.chunks_exact(self.features.len())) {
                let (row, position) = in_rows[at as usize];
                each(row, position, values);
            }
        }
        Ok(kept.len())
    }

    fn count(&self, options: &Options) -> Result<(Vec<Statistics>, usize)> {
        let count = self.features.len();
        let mut statistics = vec![Statistics::default(); count];
        let total = self.source.data.lengths().iter().sum::<usize>().min(options.tokens);
        let mut progress = self.source.reporter.begin("features", "tokens", total, 0);
        let mut tokens = 0;
        let batches = Batches::sequential(self.source.data.len(), options.batch_size);
        for rows in batches.iter() {
            if tokens >= options.tokens {
                break;
            }
            // The strongest position of each feature in each row.
            let mut strongest: BTreeMap<(usize, usize), Candidate> = BTreeMap::new();
            let read = self.read(rows, |row, position, values| {
                let active = values.iter().enumerate().filter(|(_, value)| **value > 0.0);
                for (slot, &activation) in active {
                    statistics[slot].add(activation);
                    let candidate = Candidate { activation, row: rows[row], position };
                    let best = strongest.entry((row, slot)).or_insert(candidate);
                    if activation > best.activation {
                        *best = candidate;
                    }
                }
            })?;
            for ((_, slot), candidate) in strongest {
                statistics[slot].offer(candidate, options.examples);
            }
            tokens += read;
            progress.advance(read, "");
        }
        progress.finish(&format!("{tokens} tokens"));
        if tokens == 0 {
            bail!("the data has no tokens to read");
        }
        Ok((statistics, tokens))
    }

    fn read_examples(
        &self,
        statistics: &[Statistics],
        options: &Options,
    ) -> Result<Vec<Vec<Example>>> {
        // Grouped by row, so that each row is read once: feature, rank, and range of the excerpt.
        let mut wanted: BTreeMap<usize, Vec<(usize, usize, Range<usize>)>> = BTreeMap::new();
        let mut found: Vec<Vec<Example>> = Vec::with_capacity(statistics.len());
        for (slot, statistics) in statistics.iter().enumerate() {
            let mut examples = Vec::with_capacity(statistics.candidates.len());
            for (rank, candidate) in statistics.candidates.iter().enumerate() {
                let tokens = self.source.data.get(candidate.row)?.response.tokens;
                let range = excerpt(candidate.position, options.context, tokens.len());
                examples.push(Example {
                    tokens: tokens[range.clone()].to_vec(),
                    activations: vec![0.0; range.len()],
                    strongest: candidate.position - range.start,
                });
                wanted.entry(candidate.row).or_default().push((slot, rank, range));
            }
            found.push(examples);
        }
        let rows: Vec<usize> = wanted.keys().copied().collect();
        let mut progress = self.source.reporter.begin("examples", "rows", rows.len(), 0);
        for rows in rows.chunks(options.batch_size.get()) {
            self.read(rows, |row, position, values| {
                for (slot, rank, range) in &wanted[&rows[row]] {
                    if range.contains(&position) {
                        found[*slot][*rank].activations[position - range.start] = values[*slot];
                    }
                }
            })?;
            progress.advance(rows.len(), "");
        }
        progress.finish("");
        Ok(found)
    }
}
