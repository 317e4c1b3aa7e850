//! The stages of a run, from data to report, without the command line: a model that is far too small to learn much, in seconds.
//!
//! `cargo run --release -p fpo-trainer --example run_stages`

use anyhow::{Context, Result};
use burn::tensor::Device;
use fpo_config::Settings;
use fpo_device::progress::{Reporter, Sink, Task, Watch};
use fpo_report::terminal_table;
use fpo_trainer::{
    run::{Existing, Run},
    stages::{self, StageName},
};

/// Prints the last line of every task.
struct Print;

impl Sink for Print {
    fn begin(&self, _task: &Task) -> Box<dyn Watch> {
        Box::new(Self)
    }

    fn note(&self, stage: &str, text: &str) {
        println!("{stage}: {text}");
    }
}

impl Watch for Print {
    fn advance(&mut self, _task: &Task, _message: &str) {}

    fn finish(&mut self, task: &Task, message: &str) {
        println!(
            "{}: {} {} at {:.0} per second; {message}",
            task.stage,
            task.done,
            task.unit,
            task.rate()
        );
    }
}

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let settings = Settings::resolve("smoke", None, &["align.method=fpo".into()])?;
    let run =
        Run::open(folder.path(), settings, Device::flex(), Existing::Keep, Reporter::new(Print))?;
    let finished = stages::run(&run, StageName::Report)?.context("every stage was asked for")?;
    println!("{}", terminal_table(&finished.table));
    // A second call finds every stage up to date.
    stages::run(&run, StageName::Report)?;
    Ok(())
}
