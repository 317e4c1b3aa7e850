//! Which features separate two sets of texts.

use anyhow::{Context, Result, bail};
use burn::tensor::{Int, Tensor, TensorData};
use fpo_ops::{Encoder, pooled_features};
use fpo_transformer::{LanguageModel, Site};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use fpo_device::progress::{Progress, Reporter};

/// Reads the features of texts: their mean over tokens.
pub struct TextFeatures<'a> {
    /// The model.
    pub model: &'a LanguageModel,
    /// Of the autoencoder.
    pub encoder: &'a Encoder,
    /// Where it reads.
    pub site: Site,
    /// Special tokens, whose positions no autoencoder is trained on.
    pub excluded: &'a [u32],
    /// Texts per forward pass.
    pub texts_at_once: usize,
    /// Told how far the search is.
    pub reporter: &'a Reporter,
}

/// How to search.
#[derive(Clone, Copy, Debug)]
pub struct FindOptions {
    /// At most so many features.
    pub top: usize,
    /// The share of each set by which the found ones are judged, 0 to 1.
    pub hold_out: f64,
    /// Seeds the choice of that share.
    pub seed: u64,
}

/// A feature that is more active on the positive texts than on the negative ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Its number.
    pub index: usize,
    /// Mean over the positive texts, of the half that the ranking saw.
    pub positive_mean: f64,
    /// Mean over the negative ones of that half.
    pub negative_mean: f64,
    /// What ranks: the difference of both over s + s₀, with s the standard deviation of a text and s₀ the
    /// median of all features' (Tusher et al. 2001), without which features that hardly vary in few texts
    /// would come first.
    pub effect: f64,
    /// Chance that a held-out positive text activates it more than a held-out negative one, ties half.
    pub auroc: f64,
    /// Mean of the shares of held-out positive texts above, and negative ones below, the middle of both
    /// means.
    pub accuracy: f64,
}

impl TextFeatures<'_> {
    /// Whether a text has a token that features are read at.
    pub fn can_read(&self, text: &[u32]) -> bool {
        text.iter().any(|token| !self.excluded.contains(token))
    }

    /// Mean activations of texts, `[texts, d_sae]`.
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
            bail!("a text has no token but special ones");
        }
        let tokens =
            Tensor::<2, Int>::from_data(TensorData::new(tokens, [texts.len(), width]), &device);
        let kept = positions.len();
        let positions = Tensor::<1, Int>::from_data(TensorData::new(positions, [kept]), &device);
        let activations = self.model.activations(tokens, &[self.site]);
        let x = activations.into_iter().next().context("a site gives one tensor")?;
        let [rows, width, d_in] = x.dims();
        let x = x.reshape([rows * width, d_in]).select(0, positions);
        Ok(pooled_features(x, self.encoder, &counts))
    }

    fn d_sae(&self) -> usize {
        self.encoder.b_enc.dims()[0]
    }
}

/// Sums over texts, enough for means and variances.
struct Moments {
    texts: usize,
    sums: Vec<f64>,
    squares: Vec<f64>,
}

impl Moments {
    fn of(reader: &TextFeatures, texts: &[&[u32]], progress: &mut Progress) -> Result<Self> {
        let zeros = vec![0.0; reader.d_sae()];
        let mut moments = Self { texts: texts.len(), sums: zeros.clone(), squares: zeros };
        for texts in texts.chunks(reader.texts_at_once) {
            let pooled: Vec<f64> = reader.read(texts)?.into_data().iter::<f64>().collect();
            for row in pooled.chunks_exact(reader.d_sae()) {
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

/// The features that are more active on `positive` than on `negative` texts, the clearest first: ranked on
/// one part of the texts, judged on the other. May be fewer than asked for, or none.
///
/// # Errors
/// Fewer than two texts of a set in either part.
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

/// A set of texts in two.
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
                "{} {name} texts, of which {} are held out: two at least are needed in either part",
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
        // Where nothing varies at all, the means are all there is to go by.
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

/// The middle value, 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// The activations of some features over texts, a list for each feature.
fn held_out(
    reader: &TextFeatures,
    texts: &[&[u32]],
    indices: &[usize],
    progress: &mut Progress,
) -> Result<Vec<Vec<f64>>> {
    let mut columns = vec![Vec::with_capacity(texts.len()); indices.len()];
    for texts in texts.chunks(reader.texts_at_once) {
        let pooled: Vec<f64> = reader.read(texts)?.into_data().iter::<f64>().collect();
        for row in pooled.chunks_exact(reader.d_sae()) {
            columns.iter_mut().zip(indices).for_each(|(column, &index)| column.push(row[index]));
        }
        progress.advance(texts.len(), "judging");
    }
    Ok(columns)
}

/// The area under the ROC curve by ranks (Mann and Whitney's U): ties count half.
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

    /// Oracle: every pair of a positive and a negative number.
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
    fn the_clearest_difference_comes_first() {
        let moments = |columns: [[f64; 4]; 5]| Moments {
            texts: 4,
            sums: columns.map(|c| c.iter().sum()).to_vec(),
            squares: columns.map(|c| c.iter().map(|x| x * x).sum()).to_vec(),
        };
        let flicker = [0.5, 0.7, 0.7, 0.5];
        // A large difference that varies much, a small one that varies little, none that varies as little,
        // none at all, and one the other way round.
        let positive =
            moments([[9.0, 0.0, 9.0, 0.0], [1.0, 1.2, 1.2, 1.0], flicker, [0.0; 4], [0.0; 4]]);
        let negative = moments([[0.0; 4], [0.0; 4], flicker, [0.0; 4], [1.0; 4]]);
        let found = rank(&positive, &negative, 10);
        assert_eq!(found.iter().map(|f| f.index).collect::<Vec<_>>(), [1, 0]);
        // Means 1.1 and 0; variances 0.04/3 and 0, of which the mean's root; the median deviation is that
        // of the third feature, whose variances are 0.04/3 both.
        let (own, usual) = ((0.02f64 / 3.0).sqrt(), (0.04f64 / 3.0).sqrt());
        assert!((found[0].effect - 1.1 / (own + usual)).abs() < 1e-9, "{found:?}");
        assert_eq!(rank(&positive, &negative, 1).len(), 1);
    }
}
