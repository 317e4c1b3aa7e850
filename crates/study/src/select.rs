//! The best trial of a method.

use std::collections::BTreeMap;

use fpo_metrics::Criterion;
use fpo_track::Direction;

use crate::measure::KL;

/// The place of the best of these results: by the criterion, of equal ones that with the lower KL from the reference, then the first.
/// A trial without a result, or without the metric, is never the best; none where all are so.
pub fn best(results: &[Option<&BTreeMap<String, f64>>], criterion: Criterion) -> Option<usize> {
    let better = criterion.rule().better;
    let rank = |at: usize| -> Option<(f64, f64)> {
        let metrics = results[at]?;
        let value = *metrics.get(criterion.metric().name)?;
        let value = match better {
            Direction::Higher => -value,
            Direction::Lower => value,
        };
        Some((value, metrics.get(KL).copied().unwrap_or(f64::INFINITY)))
    };
    let ranked = (0..results.len()).filter_map(|at| Some((rank(at)?, at)));
    let first =
        ranked.min_by(|((a, kl_a), _), ((b, kl_b), _)| a.total_cmp(b).then(kl_a.total_cmp(kl_b)));
    first.map(|(_, at)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_trial() {
        // (accuracy, loss, KL) of each trial; none where it diverged.
        type Trials<'a> = &'a [Option<(f64, f64, f64)>];
        let cases: [(&str, Trials, Option<usize>); 6] = [
            ("eval_accuracy", &[Some((0.7, 0.5, 1.0)), Some((0.8, 0.9, 9.0))], Some(1)),
            ("eval_loss", &[Some((0.7, 0.5, 1.0)), Some((0.8, 0.9, 9.0))], Some(0)),
            // Equal ones: the lower KL, then the first.
            ("eval_accuracy", &[Some((0.8, 0.5, 2.0)), Some((0.8, 0.5, 1.0))], Some(1)),
            ("eval_accuracy", &[Some((0.8, 0.1, 2.0)), Some((0.8, 0.2, 2.0))], Some(0)),
            ("eval_accuracy", &[None, Some((0.1, 0.5, 2.0))], Some(1)),
            ("eval_accuracy", &[None, None], None),
        ];
        for (criterion, trials, expected) in cases {
            let metrics = |(accuracy, loss, kl): (f64, f64, f64)| {
                let all = [("accuracy", accuracy), ("loss", loss), (KL, kl)];
                BTreeMap::from(all.map(|(name, value)| (name.to_owned(), value)))
            };
            let trials: Vec<_> = trials.iter().map(|trial| trial.map(metrics)).collect();
            let results: Vec<_> = trials.iter().map(Option::as_ref).collect();
            assert_eq!(best(&results, criterion.parse().unwrap()), expected, "{criterion}");
        }
    }
}
