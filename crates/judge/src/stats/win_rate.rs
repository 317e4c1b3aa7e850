//! The raw win rate, as AlpacaEval defines it (`alpaca_eval.metrics.get_winrate`).

use serde::Serialize;

/// How often the model beats the baseline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WinRate {
    /// Mean preference, in percent.
    pub win_rate: f64,
    /// Standard error of that mean, in percent; none for a single question.
    pub standard_error: Option<f64>,
    /// Win rate in percent if a preference counts as a whole win, a whole loss, or half of each.
    pub discrete_win_rate: f64,
    /// Questions on which the model is preferred.
    pub wins: usize,
    /// Questions on which the baseline is preferred.
    pub losses: usize,
    /// Questions on which neither is.
    pub draws: usize,
}

/// The win rate over the questions that have a preference; none if no question has one.
pub fn win_rate(preferences: &[Option<f64>]) -> Option<WinRate> {
    let known: Vec<f64> = preferences.iter().flatten().copied().collect();
    let count = |wanted: fn(f64) -> bool| known.iter().filter(|p| wanted(**p)).count();
    let (wins, losses) = (count(|p| p > 0.5), count(|p| p < 0.5));
    let draws = known.len() - wins - losses;
    Some(WinRate {
        win_rate: 100.0 * mean(&known)?,
        standard_error: standard_error(&known).map(|error| 100.0 * error),
        discrete_win_rate: 100.0 * (wins as f64 + draws as f64 / 2.0) / known.len() as f64,
        wins,
        losses,
        draws,
    })
}

/// Mean; none of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Sample standard deviation, with n − 1; none of fewer than two values.
pub fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// Standard error of the mean; none of fewer than two values.
pub fn standard_error(values: &[f64]) -> Option<f64> {
    Some(deviation(values)? / (values.len() as f64).sqrt())
}

/// A percentile, interpolated linearly between sorted values as NumPy does. Infinite values are kept apart from finite ones.
pub fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    let place = percent / 100.0 * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (*sorted.get(place.floor() as usize)?, *sorted.get(place.ceil() as usize)?);
    // Between an infinite value and another, the nearer one: their difference has no meaning.
    Some(match low.is_finite() && high.is_finite() {
        true => low + (high - low) * place.fract(),
        false if place.fract() < 0.5 => low,
        false => high,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand.
    #[test]
    fn draws_and_missing_preferences_count_as_in_alpaca_eval() {
        let found = win_rate(&[Some(1.0), Some(0.0), None, Some(0.5), Some(1.0)]).unwrap();
        assert_eq!((found.wins, found.losses, found.draws), (2, 1, 1));
        assert!((found.win_rate - 62.5).abs() < 1e-12);
        assert!((found.discrete_win_rate - 62.5).abs() < 1e-12);
        let variance =
            (3.0 * 0.375f64.powi(2) - 0.375f64.powi(2) + 0.625f64.powi(2) + 0.125f64.powi(2)) / 3.0;
        assert!((found.standard_error.unwrap() - 100.0 * (variance / 4.0).sqrt()).abs() < 1e-12);
        assert_eq!(win_rate(&[None]), None);
        assert_eq!(win_rate(&[Some(1.0)]).unwrap().standard_error, None);
    }

    /// The first two by `numpy.percentile`.
    #[test]
    fn percentiles_are_numpys() {
        for (values, percent, expected) in [
            (&[1.0, 2.0, 4.0, 8.0][..], 2.5, 1.075),
            (&[1.0, 2.0, 4.0, 8.0], 97.5, 7.7),
            (&[3.0], 50.0, 3.0),
            (&[f64::NEG_INFINITY, 0.0, f64::INFINITY], 60.0, 0.0),
            (&[f64::NEG_INFINITY, 0.0, f64::INFINITY], 90.0, f64::INFINITY),
            (&[f64::INFINITY, f64::INFINITY], 30.0, f64::INFINITY),
        ] {
            let found = percentile(values, percent).unwrap();
            assert!(found == expected || (found - expected).abs() < 1e-12, "{values:?}: {found}");
        }
        assert_eq!(percentile(&[], 50.0), None);
    }
}
