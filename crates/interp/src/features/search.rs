//! Search for features that separate two sets of texts.

use anyhow::{Context, Result, bail};
use burn::tensor::{Int, Tensor, TensorData};
use fpo_device::progress::{Progress, Reporter};
use fpo_ops::{Encoder, pooled_features};
use fpo_transformer::{LanguageModel, Site};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::reader::indices;

/// Computes the features of texts, averaged over tokens.
pub struct TextFeatures<'a> {
    /// The model, on a device without autodiff.
    pub model: &'a LanguageModel,
    /// Encoder of the autoencoder for `site`.
    pub encoder: &'a Encoder,
    /// Where the model's activations are read.
    pub site: Site,
    /// Tokens whose positions are left out: BOS, EOS and padding (fpo_data's `Tokenizer::special_ids`).
    pub excluded: &'a [u32],
    /// Texts per forward pass.
    pub texts_at_once: usize,
    /// Receives progress.
    pub reporter: &'a Reporter,
}

/// Options of [`find`].
#[derive(Clone, Copy, Debug)]
pub struct FindOptions {
    /// Upper bound of the features returned.
    pub top: usize,
    /// Share of each set that is held out to measure the found features, 0 to 1.
    pub hold_out: f64,
    /// Seed of the choice of held-out texts.
    pub seed: u64,
}

/// A feature that is more active on the positive texts than on the negative ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Index in `0..d_sae`.
    pub index: usize,
    /// Mean activation over the positive texts that aren't held out.
    pub positive_mean: f64,
    /// Mean activation over the negative texts that aren't held out.
    pub negative_mean: f64,
    /// The ranking score: the difference of both means over s + s₀, with s the standard deviation over texts and s₀ the median of
    /// all features' s (Tusher et al. 2001). Without s₀, features with hardly any variance in a small sample would rank first.
    pub effect: f64,
    /// Probability that a held-out positive text activates it more than a held-out negative one, ties counting half.
    pub auroc: f64,
    /// Balanced accuracy on held-out texts, with the midpoint of both means as the threshold.
    pub accuracy: f64,
}

impl TextFeatures<'_> {
    /// Whether a text has a token that isn't excluded.
    pub fn can_read(&self, text: &[u32]) -> bool {
        text.iter().any(|token| !self.excluded.contains(token))
    }

    /// Mean features of texts, `[texts, d_sae]`.
    fn read(&self, texts: &[&[u32]]) -> Result<Tensor<2>> {
        let device = self.model.device();
        let width = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let (mut tokens, mut positions) = (Vec::new(), Vec::new());
        let mut counts = Vec::with_capacity(texts.len());
        for (row, text) in texts.iter().enumerate() {
            let ordinary = (0..text.len()).filter(|&t| !self.excluded.contains(&text[t]));
            let before = positions.len();
            positions.extend(ordinary.map(|t| (row * width + t) as i32));
            counts.push(positions.len() - before);
            tokens.extend(text.iter().map(|&token| token as i32));
            tokens.resize((row + 1) * width, 0);
        }
        if counts.contains(&0) {
            bail!("a text has only special tokens");
        }
        let tokens =
            Tensor::<2, Int>::from_data(TensorData::new(tokens, [texts.len(), width]), &device);
        let positions = indices(positions, &device);
        let activations = self.model.activations(tokens, &[self.site]);
        let x = activations.into_iter().next().context("a site gives one tensor")?;
        let [rows, width, d_in] = x.dims();
        let x = x.reshape([rows * width, d_in]).select(0, positions);
        Ok(pooled_features(x, self.encoder, &counts))
    }
}

/// Sums over texts, from which means and variances follow.
struct Moments {
    texts: usize,
    sums: Vec<f64>,
    squares: Vec<f64>,
}

impl Moments {
    fn of(reader: &TextFeatures, texts: &[&[u32]], progress: &mut Progress) -> Result<Self> {
        let zeros = vec![0.0; reader.encoder.d_sae()];
        let mut moments = Self { texts: texts.len(), sums: zeros.clone(), squares: zeros };
        for texts in texts.chunks(reader.texts_at_once) {
            let pooled: Vec<f64> = reader.read(texts)?.into_data().iter::<f64>().collect();
            for row in pooled.chunks_exact(reader.encoder.d_sae()) {
                for ((sum, square), x) in moments.sums.iter_mut().zip(&mut moments.squares).zip(row)
                {
                    *sum += x;
                    *square += x * x;
                }
            }
            progress.advance(texts.len(), "ranking");
        }
        Ok(moments)
    }

    fn mean(&self, index: usize) -> f64 {
        self.sums[index] / self.texts as f64
    }

    fn variance(&self, index: usize) -> f64 {
        let n = self.texts as f64;
        let about_mean = self.squares[index] - n * self.mean(index).powi(2);
        about_mean.max(0.0) / (n - 1.0)
    }
}

/// Finds the features that are more active on `positive` than on `negative` texts, largest effect first. One part of the texts
/// ranks the features, the held-out part measures them. May return fewer than `options.top`, or none.
///
/// # Errors
/// Either part has fewer than two texts of a set, or a text has only special tokens.
pub fn find(
    reader: &TextFeatures,
    positive: &[Vec<u32>],
    negative: &[Vec<u32>],
    options: &FindOptions,
) -> Result<Vec<Found>> {
    let positives = Parts::of("positive", positive, options)?;
    let negatives = Parts::of("negative", negative, options)?;
    let mut progress =
        reader.reporter.begin("features", "texts", positive.len() + negative.len(), 0);
    let of_positive = Moments::of(reader, &positives.ranking, &mut progress)?;
    let of_negative = Moments::of(reader, &negatives.ranking, &mut progress)?;
    let mut found = rank(&of_positive, &of_negative, options.top);

    let indices: Vec<usize> = found.iter().map(|f| f.index).collect();
    let mut columns = |texts: &[&[u32]]| held_out(reader, texts, &indices, &mut progress);
    let (positives, negatives) = (columns(&positives.judging)?, columns(&negatives.judging)?);
    for ((found, positives), negatives) in found.iter_mut().zip(&positives).zip(&negatives) {
        found.auroc = auroc(positives, negatives);
        let middle = 0.5 * (found.positive_mean + found.negative_mean);
        let above = positives.iter().filter(|x| **x > middle).count();
        let below = negatives.iter().filter(|x| **x <= middle).count();
        found.accuracy =
            0.5 * (above as f64 / positives.len() as f64 + below as f64 / negatives.len() as f64);
    }
    progress.finish(&format!("{} features", found.len()));
    Ok(found)
}

/// A set of texts, split into one part for ranking and a held-out part.
struct Parts<'a> {
    ranking: Vec<&'a [u32]>,
    judging: Vec<&'a [u32]>,
}

impl<'a> Parts<'a> {
    fn of(name: &str, texts: &'a [Vec<u32>], options: &FindOptions) -> Result<Self> {
        let mut judging: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        judging.shuffle(&mut ChaCha8Rng::seed_from_u64(options.seed));
        let held_out = (texts.len() as f64 * options.hold_out).round() as usize;
        let ranking = judging.split_off(held_out.min(texts.len()));
        if judging.len() < 2 || ranking.len() < 2 {
            bail!(
                "{} {name} texts, of which {} are held out: both parts need at least two",
                texts.len(),
                judging.len()
            );
        }
        Ok(Self { ranking, judging })
    }
}

fn rank(positive: &Moments, negative: &Moments, top: usize) -> Vec<Found> {
    let deviation =
        |index: usize| (0.5 * (positive.variance(index) + negative.variance(index))).sqrt();
    let usual = median((0..positive.sums.len()).map(deviation).filter(|s| *s > 0.0).collect());
    let of = |index: usize| {
        let (positive_mean, negative_mean) = (positive.mean(index), negative.mean(index));
        // If no feature varies, rank by the difference of means.
        let scale = (deviation(index) + usual).max(f64::MIN_POSITIVE);
        let effect = (positive_mean - negative_mean) / scale;
        Found { index, positive_mean, negative_mean, effect, auroc: f64::NAN, accuracy: f64::NAN }
    };
    let mut found: Vec<Found> =
        (0..positive.sums.len()).map(of).filter(|f| f.positive_mean > f.negative_mean).collect();
    found.sort_by(|a, b| b.effect.total_cmp(&a.effect).then(a.index.cmp(&b.index)));
    found.truncate(top);
    found
}

/// The median (the upper one of an even number of values); 0 if empty.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// The activations of the features in `indices`, one list over the texts per feature.
fn held_out(
    reader: &TextFeatures,
    texts: &[&[u32]],
    indices: &[usize],
    progress: &mut Progress,
) -> Result<Vec<Vec<f64>>> {
    let mut columns = vec![Vec::with_capacity(texts.len()); indices.len()];
    for texts in texts.chunks(reader.texts_at_once) {
        let pooled: Vec<f64> = reader.read(texts)?.into_data().iter::<f64>().collect();
        for row in pooled.chunks_exact(reader.encoder.d_sae()) {
            columns.iter_mut().zip(indices).for_each(|(column, &index)| column.push(row[index]));
        }
        progress.advance(texts.len(), "judging");
    }
    Ok(columns)
}

/// Area under the ROC curve, from ranks (Mann–Whitney U); ties count half.
fn auroc(positives: &[f64], negatives: &[f64]) -> f64 {
    let mut sorted = negatives.to_vec();
    sorted.sort_by(f64::total_cmp);
    let wins = |x: &f64| {
        let below = sorted.partition_point(|y| y < x);
        let not_above = sorted.partition_point(|y| y <= x);
        0.5 * (below + not_above) as f64
    };
    positives.iter().map(wins).sum::<f64>() / (positives.len() * negatives.len()) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Oracle: a loop over all pairs of a positive and a negative value.
    #[test]
    fn auroc_counts_pairs() {
        let cases: [(&[f64], &[f64]); 5] = [
            (&[1.0, 2.0], &[0.0, 0.5]),
            (&[0.0, 0.5], &[1.0, 2.0]),
            (&[0.0, 0.0, 3.0], &[0.0, 0.0]),
            (&[0.1, 0.7, 0.7, 0.9], &[0.7, 0.2, 0.0]),
            (&[5.0], &[5.0]),
        ];
        for (positives, negatives) in cases {
            let mut sum = 0.0;
            for p in positives {
                for n in negatives {
                    sum += if p > n {
                        1.0
                    } else if p == n {
                        0.5
                    } else {
                        0.0
                    };
                }
            }
            let expected = sum / (positives.len() * negatives.len()) as f64;
            assert!((auroc(positives, negatives) - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn the_largest_effect_comes_first() {
        let moments = |columns: [[f64; 4]; 5]| Moments {
            texts: 4,
            sums: columns.map(|c| c.iter().sum()).to_vec(),
            squares: columns.map(|c| c.iter().map(|x| x * x).sum()).to_vec(),
        };
        let flicker = [0.5, 0.7, 0.7, 0.5];
        // A large difference with a large variance, a small one with a small variance, no difference with a small variance, no
        // activation, and a negative difference.
        let positive =
            moments([[9.0, 0.0, 9.0, 0.0], [1.0, 1.2, 1.2, 1.0], flicker, [0.0; 4], [0.0; 4]]);
        let negative = moments([[0.0; 4], [0.0; 4], flicker, [0.0; 4], [1.0; 4]]);
        let found = rank(&positive, &negative, 10);
        assert_eq!(found.iter().map(|f| f.index).collect::<Vec<_>>(), [1, 0]);
        // Means 1.1 and 0; s is the root of the mean of the variances 0.04/3 and 0. The median of s is that of the third feature,
        // whose variances are both 0.04/3.
        let (own, usual) = ((0.02f64 / 3.0).sqrt(), (0.04f64 / 3.0).sqrt());
        assert!((found[0].effect - 1.1 / (own + usual)).abs() < 1e-9, "{found:?}");
        assert_eq!(rank(&positive, &negative, 1).len(), 1);
    }
}
