//! Reads texts with two models and encodes what they give, block by block.

use std::num::NonZeroUsize;

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::{Int, Tensor, TensorData};
use fpo_device::progress::Reporter;
use fpo_sae::Sae;
use fpo_transformer::{LanguageModel, Site};

use super::{Drift, Place, Text, sums::Sums};
use crate::reader::indices;

/// Feature activations computed per block and model: 64 MiB in float32.
const BLOCK: usize = 1 << 24;

/// Two models, the autoencoder that looks into both, and how texts are read.
pub struct Comparison<'a> {
    /// The model before alignment, on a device without autodiff.
    pub before: &'a LanguageModel,
    /// The aligned model, on the same device.
    pub after: &'a LanguageModel,
    /// The autoencoder for `site`.
    pub sae: &'a Sae,
    /// Where the models' activations are read.
    pub site: Site,
    /// Tokens whose positions are left out: BOS, EOS and padding (fpo_data's `Tokenizer::special_ids`).
    pub excluded: &'a [u32],
    /// Texts per forward pass.
    pub texts_at_once: NonZeroUsize,
    /// Places kept per feature.
    pub places: usize,
    /// Receives progress.
    pub reporter: &'a Reporter,
}

/// Texts as one padded input, and its positions that count.
struct Batch {
    tokens: Vec<i32>,
    rows: usize,
    width: usize,
    /// Indices into `tokens`, text after text.
    counted: Vec<i32>,
    /// Where they are; without activations. `[counted.len()]`
    places: Vec<Place>,
}

impl Batch {
    fn of(texts: &[Text], chosen: &[usize], excluded: &[u32]) -> Self {
        let sequences = || chosen.iter().flat_map(|&text| &texts[text]);
        let width = sequences().map(|sequence| sequence.tokens.len()).max().unwrap_or(0);
        let rows = sequences().count();
        let (mut tokens, mut counted, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let mut row = 0;
        for &text in chosen {
            for (number, sequence) in texts[text].iter().enumerate() {
                let prefixes = prefixes(&sequence.tokens);
                for position in sequence.counted(excluded) {
                    counted.push((row * width + position) as i32);
                    let prefix = prefixes[position];
                    let place =
                        Place { text, sequence: number, position, prefix, ..Place::default() };
                    places.push(place);
                }
                // The models are causal, so what follows a sequence is never seen.
                tokens.extend(sequence.tokens.iter().map(|&token| token as i32));
                row += 1;
                tokens.resize(row * width, 0);
            }
        }
        Self { tokens, rows, width, counted, places }
    }
}

/// A hash of the tokens up to each position (FNV-1a, a token at a time).
fn prefixes(tokens: &[u32]) -> Vec<u64> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut next = |token: &u32| {
        hash = (hash ^ u64::from(*token)).wrapping_mul(0x0000_0100_0000_01b3);
        hash
    };
    tokens.iter().map(&mut next).collect()
}

impl Comparison<'_> {
    /// Compares the models on texts.
    ///
    /// # Errors
    /// Texts without a position that counts, or a model whose activations aren't finite.
    pub fn measure(&self, texts: &[Text]) -> Result<Drift> {
        let counted = |text: &usize| -> usize {
            texts[*text].iter().map(|sequence| sequence.counted(self.excluded).count()).sum()
        };
        let longest = |text: usize| texts[text].iter().map(|sequence| sequence.tokens.len()).max();
        let mut order: Vec<usize> = (0..texts.len()).filter(|text| counted(text) > 0).collect();
        ensure!(!order.is_empty(), "no text has a token besides BOS, EOS and padding");
        // Texts of similar length together, which saves padding.
        order.sort_by_key(|&text| std::cmp::Reverse(longest(text)));
        let total = order.iter().map(counted).sum();
        let mut progress = self.reporter.begin("drift", "tokens", total, 0);
        let mut sums = Sums::new(self.sae.d_sae(), self.places);
        for chosen in order.chunks(self.texts_at_once.get()) {
            let batch = Batch::of(texts, chosen, self.excluded);
            self.add(&batch, &mut sums)?;
            progress.advance(batch.places.len(), "");
        }
        progress.finish(&format!("{total} tokens"));
        Ok(sums.finish())
    }

    fn add(&self, batch: &Batch, sums: &mut Sums) -> Result<()> {
        let before = self.activations(self.before, batch).context("the model before alignment")?;
        let after = self.activations(self.after, batch).context("the aligned model")?;
        let d_sae = self.sae.d_sae();
        let rows = (BLOCK / d_sae).max(1);
        for (block, places) in batch.places.chunks(rows).enumerate() {
            let encode = |x: &Tensor<2>| -> Result<Vec<f32>> {
                let x = x.clone().narrow(0, block * rows, places.len());
                let values = self.sae.encode(x).into_data().convert::<f32>().try_into_vec::<f32>();
                values.map_err(|error| anyhow!("the features can't be read: {error:?}"))
            };
            let (before, after) = (encode(&before)?, encode(&after)?);
            let activations = before.chunks_exact(d_sae).zip(after.chunks_exact(d_sae));
            for (index, (place, (before, after))) in places.iter().zip(activations).enumerate() {
                sums.add(*place, before, after);
                let next = batch.places.get(block * rows + index + 1);
                if next.is_none_or(|next| next.text != place.text) {
                    sums.close();
                }
            }
        }
        Ok(())
    }

    /// A model's activations at the positions that count, `[counted, d_in]`.
    fn activations(&self, model: &LanguageModel, batch: &Batch) -> Result<Tensor<2>> {
        let device = model.device();
        let data = TensorData::new(batch.tokens.clone(), [batch.rows, batch.width]);
        let input = Tensor::<2, Int>::from_data(data, &device);
        let activations = model.activations(input, &[self.site]).into_iter().next();
        let x = activations.context("a site gives one tensor")?;
        let [rows, width, d_in] = x.dims();
        let x = x.reshape([rows * width, d_in]).select(0, indices(batch.counted.clone(), &device));
        // A threshold would hide NaN: it is above none.
        if !x.clone().abs().sum().into_scalar::<f64>().is_finite() {
            bail!(
                "its activations at {} aren't finite; check its weights for NaN or infinity",
                self.site
            );
        }
        Ok(x)
    }
}
