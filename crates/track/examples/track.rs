//! Writes the log of a toy training as TensorBoard's event file and as a table, and asks which evaluation was the best.
//!
//!     cargo run -p fpo-track --example track

use std::{error::Error, fs};

use fpo_track::{Direction, Patience, Rule, Rules, Standing, Tracker, Trackers};
use serde_json::{Map, json};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let kinds = [Tracker::TensorBoard, Tracker::Csv];
    let mut trackers = Trackers::open(&kinds, folder.path(), &[])?;
    let loss = Rule { key: "eval_loss".into(), better: Direction::Lower };
    let patience = Patience { rule: loss.clone(), evaluations: 2, threshold: 0.0 };
    let rules = Rules { keep_best: Some(loss), early_stopping: Some(patience) };
    let mut standing = Standing::default();
    for (step, loss, held_out) in [(1, 0.9, 0.8), (2, 0.6, 0.7), (3, 0.4, 0.75), (4, 0.3, 0.9)] {
        trackers
            .write(&Map::from_iter([("step".into(), json!(step)), ("loss".into(), json!(loss))]))?;
        let line =
            Map::from_iter([("step".into(), json!(step)), ("eval_loss".into(), json!(held_out))]);
        trackers.write(&line)?;
        let verdict = standing.judge(&rules, step, &line)?;
        println!("step {step}: best so far {}, stop {}", verdict.best, verdict.stop);
    }
    print!("{}", fs::read_to_string(folder.path().join("metrics.csv"))?);
    Ok(())
}
