//! Compares strategies for matrix products: correctness and time of each on the shapes of a training step at Gemma-2-2B's widths,
//! as JSON lines, the most important first.
//!
//! ```text
//! products --sweep [--device cuda|wgpu] [--strategies cublaslt,burn,cubek,NAME,…] [--seconds 60]
//! products --check [--device …] [--strategies …] [--seconds …]
//! products --list
//! ```

mod shapes;
mod sweep;
mod timing;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use burn::tensor::DType;
use burn_cubecl::CubeDevice;
use fpo_products::{ProductError, ProductStrategy, awkward, check};
use serde_json::{Value, json};

/// The command line.
struct Options {
    mode: Mode,
    device: String,
    strategies: Vec<ProductStrategy>,
    /// Nothing is started after it.
    deadline: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Sweep,
    Check,
    List,
}

fn main() -> ExitCode {
    match options().and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<(), String> {
    if options.mode == Mode::List {
        for strategy in &options.strategies {
            println!("{strategy}");
        }
        return Ok(());
    }
    let device = device(&options.device)?;
    // The libraries panic on some failures; these are caught and reported per strategy.
    std::panic::set_hook(Box::new(|_| {}));
    let client = device.client();
    let hardware = &client.properties().hardware;
    print(json!({
        "what": "card",
        "name": client.properties().identity.name,
        "runtime": client.name(),
        "driver": driver(),
        "multiprocessors": hardware.num_streaming_multiprocessors,
        "shared_memory": hardware.max_shared_memory_size,
    }));
    match options.mode {
        Mode::Sweep => sweep::run(&device, &options.strategies, options.deadline),
        _ => check_all(&device, &options),
    }
    Ok(())
}

/// Verifies every strategy on small products of awkward shapes.
fn check_all(device: &CubeDevice, options: &Options) {
    for types in [[DType::BF16; 2], [DType::BF16, DType::F32], [DType::F32; 2]] {
        for strategy in &options.strategies {
            let (mut right, mut worst, mut refused) = (0, 0.0f64, Vec::new());
            let mut wrong = Vec::new();
            for case in awkward(types) {
                if Instant::now() > options.deadline {
                    break;
                }
                match caught(|| check(*strategy, case, device)) {
                    Ok(error) => {
                        right += 1;
                        worst = worst.max(error);
                    }
                    Err(ProductError::Refused { reason, .. }) => {
                        refused.push(format!("{case}: {}", shortened(&reason)));
                    }
                    Err(error) => wrong.push(format!("{case}: {}", shortened(&error.to_string()))),
                }
            }
            if right + refused.len() + wrong.len() == 0 {
                print(
                    json!({"what": "check", "strategy": strategy.to_string(), "skipped": "no time left"}),
                );
                continue;
            }
            print(json!({
                "what": "check",
                "strategy": strategy.to_string(),
                "factors": types[0].name(),
                "result": types[1].name(),
                "right": right,
                "worst": worst,
                "wrong": wrong,
                "refused": refused.len(),
                "refusal": refused.first(),
            }));
        }
    }
}

/// Turns a panic into an error.
fn caught<R>(work: impl FnOnce() -> Result<R, ProductError>) -> Result<R, ProductError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(ProductError::Device(format!("panicked: {}", message.unwrap_or_default())))
    })
}

/// The beginning of a long message.
fn shortened(text: &str) -> String {
    text.chars().take(400).collect()
}

fn print(line: Value) {
    println!("{line}");
}

fn options() -> Result<Options, String> {
    let (mut mode, mut device, mut names, mut seconds) = (None, "cuda".to_owned(), None, 60u64);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--sweep" => mode = Some(Mode::Sweep),
            "--check" => mode = Some(Mode::Check),
            "--list" => mode = Some(Mode::List),
            "--device" => device = value()?,
            "--strategies" => names = Some(value()?),
            "--seconds" => {
                let text = value()?;
                seconds =
                    text.parse().map_err(|_| format!("--seconds {text}: not a whole number"))?;
            }
            _ => return Err(format!("unknown argument '{argument}'")),
        }
    }
    let mode = mode.ok_or("one of --sweep, --check and --list is required")?;
    let strategies = strategies(names.as_deref().unwrap_or("cublaslt,burn,cubek"))?;
    let deadline = Instant::now() + Duration::from_secs(seconds);
    Ok(Options { mode, device, strategies, deadline })
}

/// Parses a comma-separated list of strategies and groups of them.
fn strategies(names: &str) -> Result<Vec<ProductStrategy>, String> {
    let mut chosen = Vec::new();
    for name in names.split(',') {
        let all = ProductStrategy::all().into_iter();
        match name {
            "cubek" => chosen.extend(all.filter(|s| matches!(s, ProductStrategy::CubeK(_)))),
            "cubek-tma" => chosen.extend(
                all.filter(|s| matches!(s, ProductStrategy::CubeK(kernel) if kernel.needs_tma())),
            ),
            "cubek-no-tma" => chosen.extend(
                all.filter(|s| matches!(s, ProductStrategy::CubeK(kernel) if !kernel.needs_tma())),
            ),
            _ => chosen.push(name.parse().map_err(|error: ProductError| error.to_string())?),
        }
    }
    Ok(chosen)
}

fn device(name: &str) -> Result<CubeDevice, String> {
    let device = match name {
        "cuda" => CubeDevice::cuda(0),
        "wgpu" => CubeDevice::wgpu(burn_cubecl::cubecl::device::WgpuDeviceKind::DefaultDevice),
        _ => return Err(format!("unknown device '{name}'; known devices: cuda, wgpu")),
    };
    device.map_err(|error| format!("no device '{name}': {error}"))
}

/// Version of NVIDIA's driver, if installed.
fn driver() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    text.split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
        .map(str::to_owned)
}
