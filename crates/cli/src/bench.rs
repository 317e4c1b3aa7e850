//! `fpo bench`.

use anyhow::Result;
use clap::{Args, Subcommand};

use super::loaded::DeviceArg;
use fpo_bench::{
    ops::{self, OpsReport},
    step::{self, StepReport, StepSizes},
};

#[derive(Subcommand)]
pub enum Bench {
    /// Measures one training step on random data: time, share of the matrix rate, memory.
    ///
    /// The share is that of the rate of a large matrix product, measured in the same run. Counted are the products that the
    /// mathematics asks for: of the forward pass each once (linear layers at all tokens, attention for the keys that each query sees,
    /// vocabulary and autoencoder at response positions alone), of the backward pass twice, or once where a factor is frozen;
    /// nothing that is recomputed.
    Step(Step),
    /// Measures every operation of fpo-ops against its plain definition and the matrix rate.
    Ops(Ops),
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

#[derive(Args)]
pub struct Ops {
    /// Runs of each; the median counts.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..))]
    repeats: u64,
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
            Self::Ops(ops) => ops.run(),
        }
    }
}

impl Step {
    fn run(self) -> Result<()> {
        let report = step::measure(&self.sizes, &self.device.open()?)?;
        match self.json {
            true => println!("{}", serde_json::to_string(&report)?),
            false => print_step(&report),
        }
        Ok(())
    }
}

fn print_step(report: &StepReport) {
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
    let share = (100.0 * report.matmul_share, report.matmul_flops / 1e12);
    println!("{:<12} {:10.1} % of {:.2} TFLOP/s", "matrix rate", share.0, share.1);
    if let Some(mib) = report.peak_rss_mib {
        println!("{:<12} {mib:10.0} MiB", "peak memory");
    }
    if let (Some(in_use), Some(reserved)) = (report.device_in_use_mib, report.device_reserved_mib) {
        println!("{:<12} {reserved:10.0} MiB reserved, {in_use:.0} MiB of it in use", "on the GPU");
    }
}

impl Ops {
    fn run(self) -> Result<()> {
        let report = ops::measure(&self.device.open()?, self.repeats as usize)?;
        match self.json {
            true => println!("{}", serde_json::to_string(&report)?),
            false => println!("{}", ops_table(&report)),
        }
        Ok(())
    }
}

fn ops_table(report: &OpsReport) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header([
        "milliseconds",
        "forward",
        "and backward",
        "definition",
        "and backward",
        "faster by",
        "matrix rate",
    ]);
    for op in &report.operations {
        let (ours, plain) = match (op.both_ms, op.definition_both_ms) {
            (Some(ours), Some(plain)) => (ours, plain),
            _ => (op.forward_ms, op.definition_forward_ms),
        };
        let ms = |value: Option<f64>| value.map_or(String::new(), |ms| format!("{ms:.2}"));
        table.add_row([
            op.name.clone(),
            ms(Some(op.forward_ms)),
            ms(op.both_ms),
            ms(Some(op.definition_forward_ms)),
            ms(op.definition_both_ms),
            format!("{:.1} ×", plain / ours),
            op.matmul_share.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share)),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(comfy_table::CellAlignment::Right);
    }
    format!("{table}\nmatrix rate {:.0} GFLOP/s, float32", report.matmul_gflops)
}
