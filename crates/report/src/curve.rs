//! Prepares logged points for a small chart: filtered, thinned, smoothed, with round numbers on the axes.

use crate::format::{fixed, scientific};

type Point = (f64, f64);

/// Most points drawn of a curve: a small chart has no more pixels.
const DRAWN_POINTS: usize = 600;
/// Most points of a smoothed curve.
const SMOOTH_POINTS: usize = 200;
/// Curves with fewer points aren't smoothed.
const SMOOTH_FROM: usize = 60;

/// A curve ready to be drawn.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Curve {
    /// The logged points, sorted and thinned.
    pub(super) raw: Vec<Point>,
    /// A smoothed version if the points are many and noisy.
    pub(super) smooth: Option<Vec<Point>>,
}

impl Curve {
    /// Drops points that aren't finite, sorts by x, thins and smooths. `None` if no point is left.
    pub(super) fn new(points: &[Point]) -> Option<Self> {
        let curve = Self::exact(points)?;
        let smooth = is_noisy(&curve.raw).then(|| smooth(&curve.raw));
        Some(Self { raw: thin(curve.raw), smooth })
    }

    /// The same, neither thinned nor smoothed.
    pub(super) fn exact(points: &[Point]) -> Option<Self> {
        // With larger numbers, squares and widths of axes would overflow.
        let drawable = |v: f64| v.abs() < 1e150;
        let mut points: Vec<Point> =
            points.iter().copied().filter(|&(x, y)| drawable(x) && drawable(y)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        (!points.is_empty()).then_some(Self { raw: points, smooth: None })
    }

    /// The first y of the curve, smoothed if it is noisy.
    pub(super) fn first(&self) -> f64 {
        self.main().first().map_or(f64::NAN, |p| p.1)
    }

    /// The last y of the curve, smoothed if it is noisy.
    pub(super) fn last(&self) -> f64 {
        self.main().last().map_or(f64::NAN, |p| p.1)
    }

    fn main(&self) -> &[Point] {
        self.smooth.as_deref().unwrap_or(&self.raw)
    }
}

/// Keeps the lowest and the highest point of each bucket, and with them spikes, and both ends, and with them the range of x.
fn thin(points: Vec<Point>) -> Vec<Point> {
    if points.len() <= DRAWN_POINTS {
        return points;
    }
    let buckets = DRAWN_POINTS / 2 - 1;
    let by_y = |a: &&Point, b: &&Point| a.1.total_cmp(&b.1);
    let extremes = (0..buckets).flat_map(|bucket| {
        let bucket =
            &points[bucket * points.len() / buckets..(bucket + 1) * points.len() / buckets];
        bucket.iter().min_by(by_y).into_iter().chain(bucket.iter().max_by(by_y))
    });
    let ends = points.first().into_iter().chain(points.last());
    let mut kept: Vec<Point> = extremes.chain(ends).copied().collect();
    kept.sort_by(|a, b| a.0.total_cmp(&b.0));
    kept
}

/// Whether the curve keeps changing direction, unlike, say, a learning rate.
fn is_noisy(points: &[Point]) -> bool {
    let reversals =
        points.windows(3).filter(|p| (p[1].1 - p[0].1) * (p[2].1 - p[1].1) < 0.0).count();
    points.len() >= SMOOTH_FROM && reversals * 10 > points.len()
}

/// Local linear regression around each point, with Gaussian weights over about a twentieth of the curve.
///
/// It doesn't lag as an exponential moving average does, and isn't biased at the ends as a centred moving average is.
fn smooth(points: &[Point]) -> Vec<Point> {
    let sigma = (points.len() as f64 / 60.0).max(2.0);
    let reach = (3.0 * sigma) as usize;
    let count = points.len().min(SMOOTH_POINTS);
    (0..count)
        .map(|i| {
            let center = i * (points.len() - 1) / (count - 1).max(1);
            let from = center.saturating_sub(reach);
            let window = &points[from..(center + reach + 1).min(points.len())];
            // Weighted sums of 1, t, t², y and t·y, with t the distance from the centre; the result is the line's value at t = 0.
            let (mut w, mut wt, mut wtt, mut wy, mut wty) = (0.0, 0.0, 0.0, 0.0, 0.0);
            for (offset, &(_, y)) in window.iter().enumerate() {
                let t = ((from + offset) as f64 - center as f64) / sigma;
                let weight = (-0.5 * t * t).exp();
                w += weight;
                wt += weight * t;
                wtt += weight * t * t;
                wy += weight * y;
                wty += weight * t * y;
            }
            (points[center].0, (wtt * wy - wt * wty) / (w * wtt - wt * wt))
        })
        .collect()
}

/// An axis: its range and its ticks at round numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) ticks: Vec<f64>,
    step: f64,
}

impl Axis {
    /// An axis that covers all `values`, with `padding` (a share of the range) at both ends and about `count` ticks.
    pub(super) fn around(values: impl Iterator<Item = f64>, padding: f64, count: usize) -> Self {
        let (mut low, mut high) =
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let size = low.abs().max(high.abs());
        if high - low <= size * 1e-9 {
            // A constant is a line in the middle.
            let room = if size == 0.0 { 1.0 } else { size * 0.1 };
            (low, high) = (low - room, high + room);
        } else {
            let room = (high - low) * padding;
            (low, high) = (low - room, high + room);
        }
        let step = round_step((high - low) / count.max(1) as f64);
        let ticks = ((low / step).ceil() as i64..=(high / step).floor() as i64)
            .map(|k| k as f64 * step)
            .collect();
        Self { low, high, ticks, step }
    }

    /// The label of a tick, with as many decimals as the distance between ticks requires.
    pub(super) fn label(&self, value: f64) -> String {
        let largest = self.low.abs().max(self.high.abs());
        if value.abs() < self.step * 1e-6 {
            "0".to_owned()
        } else if largest >= 1e9 || self.step < 1e-4 {
            scientific(value)
        } else if largest >= 1e7 && self.step >= 1e6 {
            format!("{}M", fixed(value / 1e6, 0))
        } else if largest >= 1e4 && self.step >= 1e3 {
            format!("{}k", fixed(value / 1e3, 0))
        } else {
            let decimals = (-self.step.log10() - 1e-9).ceil().max(0.0) as usize;
            fixed(value, decimals)
        }
    }
}

/// `step` rounded up to 1, 2 or 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= step * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_that_are_not_finite_are_dropped() {
        let curve = Curve::new(&[
            (2.0, 5.0),
            (0.0, f64::NAN),
            (1.0, f64::INFINITY),
            (f64::NAN, 1.0),
            (1.0, 4.0),
        ]);
        assert_eq!(curve, Some(Curve { raw: vec![(1.0, 4.0), (2.0, 5.0)], smooth: None }));
        assert_eq!(Curve::new(&[(0.0, f64::NAN)]), None);
        assert_eq!(Curve::new(&[]), None);
    }

    #[test]
    fn thinning_keeps_the_spike() {
        let mut points: Vec<Point> = (0..50_000).map(|i| (i as f64, (i % 7) as f64)).collect();
        points[31_417].1 = 1e6;
        let curve = Curve::new(&points).unwrap();
        assert!(curve.raw.len() <= DRAWN_POINTS);
        assert!(curve.raw.contains(&(31_417.0, 1e6)));
        assert_eq!((curve.raw[0].0, curve.raw[curve.raw.len() - 1].0), (0.0, 49_999.0));
        assert!(curve.raw.is_sorted_by(|a, b| a.0 <= b.0));
    }

    #[test]
    fn smoothing_finds_the_line_under_a_zigzag() {
        let line = |x: f64| 3.0 - 0.002 * x;
        let zigzag = |i: usize| if i.is_multiple_of(2) { 0.5 } else { -0.5 };
        let points: Vec<Point> =
            (0..1000).map(|i| (i as f64, line(i as f64) + zigzag(i))).collect();
        let curve = Curve::new(&points).unwrap();
        let smoothed = curve.smooth.as_deref().unwrap();
        assert_eq!((smoothed[0].0, smoothed[smoothed.len() - 1].0), (0.0, 999.0));
        smoothed.iter().for_each(|&(x, y)| assert!((y - line(x)).abs() < 0.1, "{x} {y}"));
        assert!(
            (curve.first() - line(0.0)).abs() < 0.1 && (curve.last() - line(999.0)).abs() < 0.1
        );
    }

    #[test]
    fn smooth_or_short_curves_are_left_alone() {
        let warm_up = |i: usize| (i as f64, (i as f64 / 100.0).min(1.0));
        assert_eq!(Curve::new(&(0..2000).map(warm_up).collect::<Vec<_>>()).unwrap().smooth, None);
        let short: Vec<Point> = (0..SMOOTH_FROM - 1).map(|i| (i as f64, (i % 2) as f64)).collect();
        assert_eq!(Curve::new(&short).unwrap().smooth, None);
    }

    #[test]
    fn ticks_are_round_numbers() {
        let cases: [(&[f64], &[&str]); 8] = [
            (&[0.0, 100.0], &["0", "20", "40", "60", "80", "100"]),
            (&[0.31, 0.72], &["0.4", "0.5", "0.6", "0.7"]),
            (&[0.0, 1e-4], &["0", "2e-5", "4e-5", "6e-5", "8e-5", "1e-4"]),
            (&[-3.0, 1.0], &["−3", "−2", "−1", "0", "1"]),
            (&[0.0, 50_000.0], &["0", "10k", "20k", "30k", "40k", "50k"]),
            (&[0.0, 2500.0], &["0", "500", "1,000", "1,500", "2,000", "2,500"]),
            (&[5.0, 5.0], &["4.6", "4.8", "5.0", "5.2", "5.4"]),
            (&[0.0], &["−1.0", "−0.5", "0", "0.5", "1.0"]),
        ];
        for (values, expected) in cases {
            let axis = Axis::around(values.iter().copied(), 0.0, 5);
            let labels: Vec<String> = axis.ticks.iter().map(|&t| axis.label(t)).collect();
            assert_eq!(labels, expected, "{values:?}");
        }
    }

    #[test]
    fn extreme_ranges_give_a_handful_of_ticks() {
        for values in [
            [-9e149, 9e149],
            [1.0, 1.0 + 1e-12],
            [1e-150, 2e-150],
            [1e15, 1e15 + 1.0],
            [-5e-9, 1e8],
        ] {
            let axis = Axis::around(values.into_iter(), 0.05, 5);
            assert!((1..=8).contains(&axis.ticks.len()), "{values:?}: {:?}", axis.ticks);
        }
    }
}
