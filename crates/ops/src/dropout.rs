//! Dropout whose mask is a function of numbers that the caller gives: the same on every device, in every pass over the same rows, and
//! whichever other rows are in the batch.

use burn::tensor::{DType, Int, Tensor, TensorData};

use crate::profile;

/// Which elements are zeroed.
#[derive(Clone, Copy, Debug)]
pub struct Dropout<'a> {
    /// The share of elements that are zeroed, in `[0, 1)`; rounded to a multiple of 2⁻¹⁶.
    pub rate: f64,
    /// Another seed gives an independent mask.
    pub seed: u64,
    /// Identifies each token: a number of its row, and its position there. Its mask depends on these, not on its place in the batch.
    pub tokens: &'a [(u64, usize)],
}

/// `x · m / (1 − rate)` with m = 0 for a share `rate` of the elements, else 1: E of it is `x`.
///
/// # Shapes
/// * `x`: `[…, features]`, a token for each element of the dimensions before
///
/// # Panics
/// If `tokens` doesn't identify each token.
pub fn dropout<const D: usize>(x: Tensor<D>, by: Dropout) -> Tensor<D> {
    let _within = profile::operation("dropout", || 0.0);
    #[cfg(feature = "flex")]
    if crate::flex::operand(&x).is_some() {
        let mask = TensorData::new(fast(&x.dims(), by), x.dims());
        let mask = Tensor::from_data(mask, (&x.device(), x.dtype()));
        return x * mask;
    }
    definition(x, by)
}

/// [`dropout`] in plain tensor operations: a number below 2³⁰ for each position and for each feature, and a hash of their sum.
pub fn definition<const D: usize>(x: Tensor<D>, by: Dropout) -> Tensor<D> {
    let (positions, features) = by.numbers(&x.dims());
    let integers = |values: Vec<i32>, shape: [usize; 2]| {
        Tensor::<2, Int>::from_data(TensorData::new(values, shape), (&x.device(), DType::I32))
    };
    let shape = [positions.len(), features.len()];
    let positions = integers(positions, [shape[0], 1]);
    let features = integers(features, [1, shape[1]]);
    let mut hash = positions.expand(shape) + features.expand(shape);
    for (multiplier, shift) in ROUNDS {
        let low = hash.clone().bitwise_and_scalar(LOW) * multiplier;
        hash = low + hash.bitwise_right_shift_scalar(BITS);
        hash = hash.clone().bitwise_xor(hash.bitwise_right_shift_scalar(shift));
    }
    let kept = hash.bitwise_and_scalar(LOW).greater_equal_elem(by.dropped());
    let kept = kept.reshape(x.dims()).float().cast(x.dtype());
    x * (kept * by.scale())
}

const BITS: i32 = 16;
const LOW: i32 = 0xffff;
/// Multipliers and shifts of the rounds. With a multiplier below 2¹⁵ nothing exceeds 2³¹ − 1; an odd one maps the low half of a number
/// one to one, so every threshold is met exactly.
const ROUNDS: [(i32, i32); 3] = [(31_285, 15), (30_903, 13), (32_713, 16)];

impl Dropout<'_> {
    /// An element whose hash is below this is zeroed.
    fn dropped(&self) -> i32 {
        assert!((0.0..1.0).contains(&self.rate), "dropout: the rate {} isn't in [0, 1)", self.rate);
        ((self.rate * f64::from(LOW + 1)).round() as i32).min(LOW)
    }

    fn scale(&self) -> f64 {
        f64::from(LOW + 1) / f64::from(LOW + 1 - self.dropped())
    }

    /// The number of each position of a tensor, row by row, and of each feature.
    fn numbers(&self, dims: &[usize]) -> (Vec<i32>, Vec<i32>) {
        let [tokens @ .., features] = dims else { panic!("dropout: {dims:?}") };
        let count: usize = tokens.iter().product();
        assert_eq!(count, self.tokens.len(), "dropout: tokens {dims:?} and what identifies them");
        let of = |purpose: u64, number: u64, index: usize| {
            (mix(mix(mix(self.seed ^ purpose) ^ number) ^ index as u64) >> 34) as i32
        };
        let positions = self.tokens.iter().map(|&(row, position)| of(1, row, position));
        (positions.collect(), (0..*features).map(|index| of(2, 0, index)).collect())
    }
}

/// The finaliser of SplitMix64 (Steele et al. 2014).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The mask, scaled, for float32 on Flex.
#[cfg(feature = "flex")]
fn fast(dims: &[usize], by: Dropout) -> Vec<f32> {
    let (positions, features) = by.numbers(dims);
    let (dropped, scale) = (by.dropped(), by.scale() as f32);
    let mut mask = vec![0.0; positions.len() * features.len()];
    let width = features.len().max(1);
    let rows = (crate::flex::blocks::ELEMENTS / width).max(1);
    crate::flex::blocks::for_each_block([(&mut mask, rows * width)], |block, [mask]| {
        for (row, mask) in mask.chunks_exact_mut(width).enumerate() {
            let position = positions[block * rows + row];
            for (element, feature) in mask.iter_mut().zip(&features) {
                let mut hash = position + feature;
                for (multiplier, shift) in ROUNDS {
                    hash = (hash & LOW) * multiplier + (hash >> BITS);
                    hash ^= hash >> shift;
                }
                *element = if hash & LOW >= dropped { scale } else { 0.0 };
            }
        }
    });
    mask
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::{numbers::close, testing::random};
    use burn::tensor::Device;

    /// The tokens of padded rows.
    fn tokens(rows: &[u64], width: usize) -> Vec<(u64, usize)> {
        rows.iter().flat_map(|&row| (0..width).map(move |position| (row, position))).collect()
    }

    fn kept(dims: &[usize; 3], rate: f64, seed: u64, rows: &[u64]) -> Vec<bool> {
        let tokens = &tokens(rows, dims[1]);
        fast(dims, Dropout { rate, seed, tokens }).into_iter().map(|x| x > 0.0).collect()
    }

    /// Oracle: the definition, in values and gradients; both give what the mask says.
    #[test]
    fn the_fast_path_is_the_definition() {
        let tokens = tokens(&[7, 3, u64::MAX], 17);
        for rate in [0.0, 1e-6, 0.05, 0.5, 0.999_999] {
            let by = Dropout { rate, seed: 5, tokens: &tokens };
            let plain = random::<3>(1, [3, 17, 33]).cast(DType::F32);
            let [found, expected] = [dropout, definition].map(|f| {
                let x = plain.clone().autodiff().require_grad();
                let y = f(x.clone(), by);
                let gradient = (y.clone() * y.clone()).sum().backward();
                [y.inner(), x.grad(&gradient).unwrap()]
            });
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.to_data(), expected.to_data(), "rate {rate}");
            }
            // d Σ (x·m)² / dx = 2·x·m².
            let mask = TensorData::new(fast(&[3, 17, 33], by), [3, 17, 33]);
            let mask = Tensor::<3>::from_data(mask, (&Device::flex(), DType::F32));
            let gradient = plain * mask.clone() * mask * 2.0;
            close("gradient", &found[1], &gradient, 1e-6);
        }
        let x = random::<3>(1, [3, 17, 4]);
        let none = dropout(x.clone(), Dropout { rate: 0.0, seed: 5, tokens: &tokens });
        assert_eq!(none.to_data(), x.to_data(), "nothing is dropped");
    }

    /// Oracle: independent coins. Share, and how often two elements agree: of a position, of a feature, of seeds, of rows, of both.
    #[test]
    fn masks_are_independent_coins() {
        let (rows, width, features) = (8, 128, 256);
        let keys: Vec<u64> = (0..rows).collect();
        let dims = [rows as usize, width, features];
        for rate in [0.05, 0.1, 0.5] {
            let mask = kept(&dims, rate, 1, &keys);
            let other = kept(&dims, rate, 2, &keys);
            let n = mask.len() as f64;
            let dropped = mask.iter().filter(|kept| !**kept).count() as f64;
            let deviation = (n * rate * (1.0 - rate)).sqrt();
            assert!((dropped - n * rate).abs() < 4.0 * deviation, "{rate}: {dropped} of {n}");
            let both = rate * rate;
            for shift in [1, 2, 17, features, features + 1, 3 * features, width * features] {
                let pairs = mask.iter().zip(&mask[shift..]).map(|(a, b)| !a && !b);
                let count = (mask.len() - shift) as f64;
                let found = pairs.filter(|both| *both).count() as f64;
                let deviation = (count * both * (1.0 - both)).sqrt();
                assert!((found - count * both).abs() < 4.5 * deviation, "{rate} {shift}: {found}");
            }
            let seeds = mask.iter().zip(&other).filter(|(a, b)| !**a && !**b).count() as f64;
            let deviation = (n * both * (1.0 - both)).sqrt();
            assert!((seeds - n * both).abs() < 4.0 * deviation, "{rate}: {seeds} under two seeds");
            // Pairs of positions agree no more than by chance, whichever they are.
            for (a, b) in (0..200).map(|i| (i * 5 % 1024, (i * 11 + 3) % 1024)) {
                let [a, b] = [a, b].map(|position| &mask[position * features..][..features]);
                let found = a.iter().zip(b).filter(|(a, b)| !**a && !**b).count() as f64;
                let deviation = (features as f64 * both).sqrt();
                assert!(
                    found < features as f64 * both + 6.0 * deviation + 2.0 || a == b,
                    "{found}"
                );
            }
        }
    }

    /// A row's mask follows its number, wherever it is and however long the longest row beside it.
    #[test]
    fn the_mask_of_a_row_is_its_own() {
        let (a, b) = (kept(&[2, 5, 8], 0.3, 9, &[4, 11]), kept(&[3, 7, 8], 0.3, 9, &[11, 2, 4]));
        assert_eq!(a[..40], b[2 * 56..][..40]);
        assert_eq!(a[40..], b[..40]);
    }
}
