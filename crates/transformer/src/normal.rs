//! Normally distributed weights, drawn on all threads: every value has a fixed place in the generator's stream.

use std::ops::Range;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Pairs per task of a thread.
const PAIRS: usize = 1 << 14;
/// 32-bit words of the stream per pair: two uniform samples of 64 bits.
const WORDS: u128 = 4;

/// Normal samples by the Box-Muller transform, which turns two uniform samples into two normal ones. The parameters of a model
/// follow one another in the stream; each begins with a new pair.
pub(crate) struct Normal {
    rng: ChaCha8Rng,
    std: f64,
    /// The words of the stream that belong to the current parameter.
    parameter: Range<u128>,
}

impl Normal {
    pub(crate) fn new(seed: u64, std: f64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), std, parameter: 0..0 }
    }

    /// Moves to the next parameter, which has `count` elements.
    pub(crate) fn next_parameter(&mut self, count: usize) {
        let start = self.parameter.end;
        self.parameter = start..start + count.div_ceil(2) as u128 * WORDS;
    }

    /// The values at these positions of the current parameter.
    pub(crate) fn values(&self, places: Range<usize>) -> Vec<f32> {
        let (first, end) = (places.start / 2, places.end.div_ceil(2));
        let mut values = vec![0f32; 2 * (end - first)];
        values.par_chunks_mut(2 * PAIRS).enumerate().for_each(|(chunk, values)| {
            let mut rng = self.rng.clone();
            let pair = first + chunk * PAIRS;
            rng.set_word_pos(self.parameter.start + pair as u128 * WORDS);
            for pair in values.chunks_exact_mut(2) {
                let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * self.std;
                let angle = std::f64::consts::TAU * rng.random::<f64>();
                pair[0] = (radius * angle.cos()) as f32;
                pair[1] = (radius * angle.sin()) as f32;
            }
        });
        values.drain(..places.start - 2 * first);
        values.truncate(places.len());
        values
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One thread that draws from the stream in order.
    fn in_order(rng: &mut ChaCha8Rng, count: usize, std: f64) -> Vec<f32> {
        let mut values = Vec::new();
        while values.len() < count {
            let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * std;
            let angle = std::f64::consts::TAU * rng.random::<f64>();
            values.extend([angle.cos(), angle.sin()].map(|x| (radius * x) as f32));
        }
        values.truncate(count);
        values
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Oracle: [`in_order`], whatever pieces a parameter is drawn in.
        #[test]
        fn every_value_has_its_place_in_the_stream(
            seed: u64,
            parameters in prop::collection::vec((1..5 * PAIRS, 0.0..=1.0), 1..4),
        ) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut normal = Normal::new(seed, 0.5);
            for (count, cut) in parameters {
                let cut = (cut * count as f64) as usize;
                normal.next_parameter(count);
                let pieces = [normal.values(0..cut), normal.values(cut..count)].concat();
                prop_assert!(pieces == in_order(&mut rng, count, 0.5));
            }
        }
    }
}
