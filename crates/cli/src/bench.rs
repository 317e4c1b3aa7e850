//! `fpo bench …`: benchmarks of a training step and of single operations.

use anyhow::Result;
use clap::{Args, Subcommand};
use fpo_bench::{
    ops::{self, OpsReport},
    step::{self, StepReport, StepSizes},
};

use crate::{loaded::DeviceArg, streams::out};

#[derive(Subcommand)]
pub enum Bench {
    Step(Step),
    Ops(Ops),
}

/// Measures one alignment step on random data: time, memory, share of the matrix rate
///
/// Prints tokens per second and the median times of the whole step and of its forward pass, backward pass and
/// optimiser update, then the share of the matrix rate and the peak memory.
///
/// The matrix rate is the FLOP/s of a large matrix product, measured in the same run. The step's FLOPs are those
/// of its matrix products: in the forward pass linear layers at all tokens, attention for visible query-key
/// pairs, head and autoencoder at response positions; in the backward pass twice that, or once if an operand is
/// frozen. Recomputation doesn't count.
///
/// Examples:
///   fpo bench step
///   fpo bench step --model gemma-2-2b --tokens 512 --pairs 2 --device cuda --precision bf16-mixed
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Step {
    #[command(flatten)]
    sizes: StepSizes,
    /// Prints one line of JSON instead of text.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArg,
}

/// Measures every operation of fpo-ops against its plain definition and the matrix rate
///
/// Prints a table of median times in milliseconds: forward pass, forward and backward pass, both for the plain
/// definition, the speedup, and the share of the float32 matrix rate measured in the same run.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Ops {
    /// Calls to time per operation, after one warm-up; the median is reported.
    #[arg(long, value_name = "CALLS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..))]
    repeats: u64,
    /// Prints one line of JSON instead of text.
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
            true => out!("{}", serde_json::to_string(&report)?),
            false => print_step(&report),
        }
    }
}

fn print_step(report: &StepReport) -> Result<()> {
    out!("{:<12} {:10.0} tokens/s", report.method, report.tokens_per_second)?;
    let milliseconds = [
        ("step", report.step_seconds),
        ("  forward", report.forward_seconds),
        ("  backward", report.backward_seconds),
        ("  optimiser", report.optimizer_seconds),
    ];
    for (name, seconds) in milliseconds {
        out!("{name:<12} {:10.1} ms", seconds * 1e3)?;
    }
    let share = (100.0 * report.matmul_share, report.matmul_flops / 1e12);
    out!("{:<12} {:10.1} % of {:.2} TFLOP/s", "matrix rate", share.0, share.1)?;
    if let Some(mib) = report.peak_rss_mib {
        out!("{:<12} {mib:10.0} MiB", "peak memory")?;
    }
    if let (Some(in_use), Some(reserved)) = (report.device_in_use_mib, report.device_reserved_mib) {
        out!("{:<12} {reserved:10.0} MiB reserved, {in_use:.0} MiB of it in use", "on the GPU")?;
    }
    Ok(())
}

impl Ops {
    fn run(self) -> Result<()> {
        let report = ops::measure(&self.device.open()?, self.repeats as usize)?;
        match self.json {
            true => out!("{}", serde_json::to_string(&report)?),
            false => out!("{}", ops_table(&report)),
        }
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
