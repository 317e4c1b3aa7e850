//! `fpo bench …`: benchmarks of a training step, of single operations, and of loading a checkpoint.

use anyhow::Result;
use clap::{Args, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use fpo_bench::{
    load::{self, LoadReport, LoadSizes},
    ops::{self, OpsReport},
    profile::{PlaceReport, StepProfile},
    step::{self, StepReport, StepSizes},
};

use crate::{
    loaded::DeviceArg,
    streams::{out, say},
};

/// Weights that take more than a moment to draw.
const WORTH_SAYING: u64 = 100_000_000;

#[derive(Subcommand)]
pub enum Bench {
    Step(Step),
    Ops(Ops),
    Load(Load),
}

/// Measures one alignment step on random data: time, memory, share of the matrix rate
///
/// Prints tokens per second and the median times of the whole step and of its forward pass, backward pass and
/// optimiser update, then the share of the matrix rate and the peak memory.
///
/// All pairs have the same number of tokens, or with --lengths those of a file, whose batches take turns. Times are
/// then means over the measured steps, and tokens per second are all tokens of these steps divided by their time;
/// nothing is padded.
///
/// The matrix rate is the FLOP/s of a large matrix product, measured in the same run. The step's FLOPs are those
/// of its matrix products: in the forward pass linear layers at all tokens, attention for visible query-key
/// pairs, head and autoencoder at response positions; in the backward pass twice that, or once if an operand is
/// frozen. Recomputation doesn't count.
///
/// With --profile it runs as many steps again and watches them: for each phase, part of the model and operation,
/// the time, calls, kernel launches, FLOPs, bytes, and the shares of what products and memory reach on the device,
/// measured in the same run. A watched step waits for the device at every boundary, so it takes longer than the
/// step above; the table says by how much. Bytes are those that have to move: inputs and outputs once.
///
/// Examples:
///   fpo bench step
///   fpo bench step --profile --layers 2
///   fpo bench step --lengths pairs.jsonl --pairs 4
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

/// Measures how fast a checkpoint is loaded onto a device
///
/// Prints the time to load it again and again from the operating system's cache, and bytes of the files per second.
///
/// Examples:
///   fpo bench load models/gemma-2-2b
///   fpo bench load --model gemma-2-2b --device cuda
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Load {
    #[command(flatten)]
    sizes: LoadSizes,
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
            Self::Load(load) => load.run(),
        }
    }
}

impl Step {
    fn run(self) -> Result<()> {
        let device = self.device.open()?;
        let parameters = self.sizes.parameters()?;
        if parameters >= WORTH_SAYING {
            say!(
                "drawing {:.2} billion random weights, then a step to warm up",
                parameters as f64 / 1e9
            );
        }
        let report = step::measure(&self.sizes, &device)?;
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
    if report.device_in_use_mib.is_some() {
        out!(
            "             the phases are those of steps that wait for the GPU after each of them"
        )?;
    }
    let share = (100.0 * report.matmul_share, report.matmul_flops / 1e12);
    out!("{:<12} {:10.1} % of {:.2} TFLOP/s", "matrix rate", share.0, share.1)?;
    if let Some(mib) = report.peak_rss_mib {
        out!("{:<12} {mib:10.0} MiB", "peak memory")?;
    }
    if let (Some(in_use), Some(reserved)) = (report.device_in_use_mib, report.device_reserved_mib) {
        out!("{:<12} {reserved:10.0} MiB reserved, {in_use:.0} MiB of it in use", "on the GPU")?;
    }
    out!(
        "{:<12} {:10.1} s, and {:.1} s for the first step",
        "start",
        report.start_seconds,
        report.first_step_seconds
    )?;
    match &report.profile {
        Some(profile) => print_profile(profile, report.step_seconds),
        None => Ok(()),
    }
}

fn print_profile(profile: &StepProfile, step_seconds: f64) -> Result<()> {
    let watched = profile.watched_step_seconds;
    out!(
        "\nwhere a step's time goes; watched, it takes {:.1} ms, otherwise {:.1} ms\n",
        1e3 * watched,
        1e3 * step_seconds
    )?;
    out!("{}", profile_table(profile))?;
    out!(
        "products: {:.2} TFLOP/s, memory: {:.1} GB/s, measured on this device",
        profile.product_rate / 1e12,
        profile.memory_rate / 1e9
    )?;
    if profile.launches > 0 {
        out!("\nkernels of a step that isn't watched: {}", profile.launches)?;
        for kernel in &profile.kernels {
            out!("{:>8}  {}", kernel.launches, kernel.name)?;
        }
    }
    Ok(())
}

fn profile_table(profile: &StepProfile) -> String {
    let on_gpu = profile.launches > 0;
    let mut table = Table::new();
    let mut header = vec!["phase", "part", "operation", "calls"];
    header.extend(on_gpu.then_some("launches"));
    header.extend(["ms", "share", "GFLOP", "of products", "MB", "of memory"]);
    table.load_style(presets::NOTHING).set_header(header);
    let mut row = |names: [&str; 3], place: &PlaceReport| {
        let some = |value: f64, text: String| if value > 0.0 { text } else { String::new() };
        let mut cells = names.map(str::to_owned).to_vec();
        cells.push(some(place.calls, format!("{:.0}", place.calls)));
        cells.extend(on_gpu.then(|| format!("{:.0}", place.launches)));
        cells.push(format!("{:.2}", 1e3 * place.seconds));
        let share = 100.0 * place.seconds / profile.watched_step_seconds;
        cells.push(format!("{share:.1} %"));
        cells.push(some(place.flops, format!("{:.2}", place.flops / 1e9)));
        cells.push(some(place.flops, format!("{:.0} %", 100.0 * place.product_share)));
        cells.push(some(place.bytes, format!("{:.1}", place.bytes / 1e6)));
        cells.push(some(place.bytes, format!("{:.0} %", 100.0 * place.memory_share)));
        table.add_row(cells);
    };
    for phase in ["forward", "backward", "optimiser", ""] {
        let places = || profile.places.iter().filter(|place| place.phase == phase);
        let Some(first) = places().next() else { continue };
        let mut all = places().skip(1).fold(first.clone(), |all, place| all.plus(place));
        // Of operations alone: how much the others move isn't known.
        (all.product_share, all.memory_share) = (
            all.flops / all.seconds / profile.product_rate,
            all.bytes / all.seconds / profile.memory_rate,
        );
        row([if phase.is_empty() { "between" } else { phase }, "", ""], &all);
        if !phase.is_empty() {
            for place in places() {
                row(["", place.part, place.operation.unwrap_or("Burn's own, host")], place);
            }
        }
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

impl Load {
    fn run(self) -> Result<()> {
        let report = load::measure(&self.sizes, &self.device.open()?)?;
        match self.json {
            true => out!("{}", serde_json::to_string(&report)?),
            false => print_load(&report),
        }
    }
}

fn print_load(report: &LoadReport) -> Result<()> {
    if let Some([drawn, written]) = report.written_seconds {
        out!("{:<12} {drawn:10.1} s, and {written:.1} s to write them", "weights")?;
    }
    out!(
        "{:<12} {:10.2} GB, {:.2} billion parameters",
        "checkpoint",
        report.bytes as f64 / 1e9,
        report.parameters as f64 / 1e9
    )?;
    out!("{:<12} {:10.2} s", "first load", report.first_seconds)?;
    out!("{:<12} {:10.2} s, {:.2} GB/s", "load", report.seconds, report.bytes_per_second / 1e9)
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
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
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
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\nmatrix rate {:.0} GFLOP/s, float32", report.matmul_gflops)
}
