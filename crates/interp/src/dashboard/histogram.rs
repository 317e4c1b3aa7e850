//! Histograms, also in one pass over values whose range is unknown.

use serde::Serialize;

/// Bars of a [`Histogram`].
const BARS: usize = 32;

/// A bar of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bar {
    /// Centre of the bar's interval.
    pub middle: f32,
    /// Number of values in the interval.
    pub count: u32,
}

/// A histogram of positive values. If a value is out of range, the range doubles and pairs of bars are merged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    top: f32,
    counts: [u32; BARS],
}

impl Histogram {
    /// Counts a positive value.
    pub fn add(&mut self, value: f32) {
        if self.top == 0.0 {
            self.top = value;
        }
        while value > self.top && value.is_finite() {
            for i in 0..BARS / 2 {
                self.counts[i] = self.counts[2 * i] + self.counts[2 * i + 1];
            }
            self.counts[BARS / 2..].fill(0);
            self.top *= 2.0;
        }
        let bar = (value / self.top * BARS as f32) as usize;
        self.counts[bar.min(BARS - 1)] += 1;
    }

    /// The bars up to the last non-empty one.
    pub fn bars(&self) -> Vec<Bar> {
        let used = self.counts.iter().rposition(|&count| count > 0).map_or(0, |last| last + 1);
        let width = self.top / BARS as f32;
        let bars = self.counts[..used].iter().enumerate();
        bars.map(|(i, &count)| Bar { middle: (i as f32 + 0.5) * width, count }).collect()
    }
}

/// A histogram of `values` with `count` bars from the lowest to the highest; empty if all are equal.
pub fn bars(values: &[f32], count: usize) -> Vec<Bar> {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let width = (high - low) / count as f32;
    if width.is_nan() || width <= 0.0 {
        return Vec::new();
    }
    let mut counts = vec![0u32; count];
    for value in values {
        counts[(((value - low) / width) as usize).min(count - 1)] += 1;
    }
    let bars = counts.into_iter().enumerate();
    bars.map(|(i, count)| Bar { middle: low + (i as f32 + 0.5) * width, count }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_is_lost_when_the_range_grows() {
        let mut histogram = Histogram::default();
        let values: Vec<f32> = (1..2000).map(|i| 0.01 * (i * 37 % 2000 + 1) as f32).collect();
        values.iter().for_each(|&value| histogram.add(value));
        let bars = histogram.bars();
        assert_eq!(bars.iter().map(|bar| bar.count).sum::<u32>(), 1999);
        let width = bars[1].middle - bars[0].middle;
        for bar in bars {
            let inside =
                |v: &&f32| **v >= bar.middle - width / 2.0 && **v < bar.middle + width / 2.0;
            let expected = values.iter().filter(inside).count();
            // In float32, a value on an edge may fall to either side.
            assert!(expected.abs_diff(bar.count as usize) <= 1, "{bar:?}, {expected}");
        }
    }

    #[test]
    fn bars_span_the_values() {
        let found = bars(&[-1.0, 0.0, 0.1, 3.0], 4);
        assert_eq!(found.iter().map(|bar| bar.count).collect::<Vec<_>>(), [1, 2, 0, 1]);
        assert!(bars(&[2.0, 2.0], 4).is_empty() && bars(&[], 4).is_empty());
    }
}
