//! Means over seeds with confidence intervals.

use serde::{Deserialize, Serialize};

/// How sure the interval of a mean is.
pub const CONFIDENCE: f64 = 0.95;

/// A mean over seeds with its interval at [`CONFIDENCE`] by Student's t distribution; without an interval for a single seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// The interval's lower end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// Its upper end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    /// Seeds that it is a mean over.
    pub seeds: usize,
}

impl Mean {
    /// Of finite values; none of no values. The interval is mean ± t·s/√n, with s from n − 1.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        if n == 1 {
            return Some(Self { mean, low: None, high: None, seeds: 1 });
        }
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = (squares / (n - 1) as f64).sqrt();
        let half = t_quantile(n - 1) * deviation / (n as f64).sqrt();
        Some(Self { mean, low: Some(mean - half), high: Some(mean + half), seeds: n })
    }

    /// Half the interval's width.
    pub fn half_width(&self) -> Option<f64> {
        Some((self.high? - self.low?) / 2.0)
    }
}

/// The t for which |T| ≤ t with probability [`CONFIDENCE`].
fn t_quantile(degrees: usize) -> f64 {
    // t = √ν·tan θ, by bisection on θ.
    let (mut low, mut high) = (0.0, std::f64::consts::FRAC_PI_2);
    for _ in 0..200 {
        let middle = (low + high) / 2.0;
        match within(middle, degrees) < CONFIDENCE {
            true => low = middle,
            false => high = middle,
        }
    }
    (degrees as f64).sqrt() * low.tan()
}

/// P(|T| ≤ √ν·tan θ) for a whole number ν of degrees of freedom: Abramowitz and Stegun, 26.7.3 and 26.7.4.
fn within(theta: f64, degrees: usize) -> f64 {
    let (sin, cos) = theta.sin_cos();
    let is_odd = degrees % 2 == 1;
    // Each term of the sum is the one before times cos²θ·m/(m + 1).
    let (mut term, mut sum) = (if is_odd { cos } else { 1.0 }, 0.0);
    let mut m = if is_odd { 2 } else { 1 };
    for _ in 0..degrees / 2 {
        sum += term;
        term *= cos * cos * m as f64 / (m + 1) as f64;
        m += 2;
    }
    match is_odd {
        true => 2.0 / std::f64::consts::PI * (theta + sin * sum),
        false => sin * sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Oracle: scipy.stats.t.ppf(0.975, ν).
    #[test]
    fn quantiles_of_students_t() {
        for (degrees, expected) in [
            (1, 12.706204736174694),
            (2, 4.302652729749462),
            (3, 3.1824463052837078),
            (4, 2.7764451051977934),
            (5, 2.5705818356363146),
            (9, 2.262157162798205),
            (10, 2.228138851986274),
            (30, 2.0422724563012378),
            (200, 1.9718962236339088),
        ] {
            assert!((t_quantile(degrees) - expected).abs() < 1e-9, "{degrees}");
        }
    }

    /// Oracle: scipy.stats.t.interval(0.95, n - 1, loc=mean, scale=scipy.stats.sem(values)).
    #[test]
    fn intervals_of_means() {
        let cases: [(&[f64], f64, f64); 3] = [
            (&[0.873, 0.861, 0.88, 0.869, 0.874], 0.862681785527835, 0.8801182144721647),
            (&[1.0, 3.0], -10.706204736174694, 14.706204736174694),
            (&[0.7525, 0.74, 0.77], 0.7167324889166792, 0.7916008444166543),
        ];
        for (values, low, high) in cases {
            let found = Mean::of(values).unwrap();
            assert!((found.low.unwrap() - low).abs() < 1e-9, "{found:?}");
            assert!((found.high.unwrap() - high).abs() < 1e-9, "{found:?}");
        }
    }

    #[test]
    fn one_seed_has_no_interval() {
        assert_eq!(Mean::of(&[0.5]), Some(Mean { mean: 0.5, low: None, high: None, seeds: 1 }));
        assert_eq!(Mean::of(&[]), None);
    }
}
