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
    use super::*;

    /// Oracle: one thread that draws from the stream in order.
    #[test]
    fn every_thread_finds_its_place_in_the_stream() {
        let (seed, std) = (3, 0.5);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut normal = Normal::new(seed, std);
        for count in [1, 7, 2 * PAIRS, 5 * PAIRS + 1] {
            let mut expected = Vec::new();
            while expected.len() < count {
                let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * std;
                let angle = std::f64::consts::TAU * rng.random::<f64>();
                expected.extend([angle.cos(), angle.sin()].map(|x| (radius * x) as f32));
            }
            expected.truncate(count);
            normal.next_parameter(count);
            assert!(normal.values(0..count) == expected, "{count} values");
            // The pieces have the same values wherever the parameter is cut.
            for cut in [0, 1, count / 3, count / 2, count - 1, count] {
                let pieces = [normal.values(0..cut), normal.values(cut..count)].concat();
                assert!(pieces == expected, "{count} values, cut at {cut}");
            }
        }
    }
}
