//! Win rate, length-controlled win rate and Bradley-Terry score of preferences that are made up here.

use fpo_judge::Summary;
use fpo_judge::annotations::Annotations;
use fpo_judge::stats::Resampling;
use fpo_judge::stats::length_controlled::Judged;
use fpo_judge::summary::scores;

fn main() {
    // A judge that likes length, and a model that writes longer the further its answer stands from the baseline's.
    let rows = (0..200).map(|position| {
        let model_length = 80 + position * 37 % 150;
        let preference = 1.0 / (1.0 + (-(model_length as f64 - 120.0) / 40.0).exp());
        Judged { position, preference: Some(preference), baseline_length: 100, model_length }
    });
    let comparison = Annotations {
        baseline: "baseline".to_owned(),
        model: "model".to_owned(),
        rows: rows.collect(),
    };
    let resampling = Resampling { rounds: 100, seed: 0 };
    let summary = Summary::new(&comparison, None, None, resampling);
    if let (Some(raw), Some(controlled)) = (summary.raw, summary.length_controlled) {
        println!("win rate                   {:.1} %", raw.win_rate);
        println!("length-controlled win rate {:.1} %", controlled.win_rate);
    }
    for row in scores(&[comparison], &[], resampling) {
        println!("{:<26} {:.0}", row.model, row.score.unwrap_or(f64::NAN));
    }
}
