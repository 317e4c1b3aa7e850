//! Writes the folders of two runs as far as pages read them, and prints what the page of both says.
//!
//!     cargo run -p fpo-pages --example two_runs

use std::{error::Error, fs};

use fpo_config::Settings;
use fpo_pages::{RunFiles, curves_csv, side_by_side};
use fpo_report::render_runs;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let mut runs = Vec::new();
    for (name, beta, steps) in [("small", 0.1, 3), ("large", 0.5, 5)] {
        let run = folder.path().join(name);
        // An alignment that is still under way.
        fs::create_dir_all(run.join("checkpoints/align"))?;
        let settings = Settings::resolve("tiny", None, &[format!("align.beta={beta}")])?;
        fs::write(run.join("run.toml"), settings.to_toml()?)?;
        let line = |step: usize| format!("{{\"step\":{step},\"loss\":{}}}\n", beta / step as f64);
        let log: String = (1..=steps).map(line).collect();
        fs::write(run.join("checkpoints/align/metrics.jsonl"), log)?;
        runs.push(RunFiles::read(&run)?);
    }
    let names = ["small".to_owned(), "large".to_owned()];
    let report = side_by_side(&names, &runs);
    for warning in &report.warnings {
        println!("{warning}");
    }
    for row in &report.settings.rows {
        let values: Vec<&str> = row.cells.iter().map(|cell| &*cell.text).collect();
        println!("{}: {}", row.name, values.join(", "));
    }
    print!("{}", curves_csv(&names, &runs));
    println!("{} bytes of HTML", render_runs(&report).len());
    Ok(())
}
