//! `fpo bench`.

use anyhow::Result;
use clap::{Args, Subcommand};

use super::loaded::DeviceArg;
use crate::bench::step::{self, StepReport, StepSizes};

#[derive(Subcommand)]
pub enum Bench {
    /// Measures one training step on random data: time and memory.
    Step(Step),
}

#[derive(Args)]
pub struct Step {
    #[command(flatten)]
    sizes: StepSizes,
    /// Prints one line of JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArg,
}

impl Bench {
    pub fn run(self) -> Result<()> {
        match self {
            Self::Step(step) => step.run(),
        }
    }
}

impl Step {
    fn run(self) -> Result<()> {
        let report = step::measure(&self.sizes, &self.device.open()?)?;
        match self.json {
            true => println!("{}", serde_json::to_string(&report)?),
            false => print(&report),
        }
        Ok(())
    }
}

fn print(report: &StepReport) {
    println!("{:<12} {:10.0} tokens/s", report.method, report.tokens_per_second);
    let milliseconds = [
        ("step", report.step_seconds),
        ("  forward", report.forward_seconds),
        ("  backward", report.backward_seconds),
        ("  optimiser", report.optimizer_seconds),
    ];
    for (name, seconds) in milliseconds {
        println!("{name:<12} {:10.1} ms", seconds * 1e3);
    }
    if let Some(mib) = report.peak_rss_mib {
        println!("{:<12} {mib:10.0} MiB", "peak memory");
    }
}
