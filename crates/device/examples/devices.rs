//! Lists the devices, opens one by name, and reports progress to a sink of its own.
//!
//!     cargo run --release -p fpo-device --features flex --example devices

use anyhow::Result;
use burn::tensor::{Distribution, Tensor};
use fpo_device::{
    guard, list, parse,
    progress::{Reporter, Sink, Task, Watch},
    silence,
};

/// Prints every report as a line.
struct Lines;

impl Sink for Lines {
    fn begin(&self, task: &Task) -> Box<dyn Watch> {
        println!("{}: {} {}", task.stage, task.total, task.unit);
        Box::new(Self)
    }

    fn note(&self, stage: &str, text: &str) {
        println!("{stage}: {text}");
    }
}

impl Watch for Lines {
    fn advance(&mut self, task: &Task, message: &str) {
        println!("{}: {}/{} {}, {message}", task.stage, task.done, task.total, task.unit);
    }

    fn finish(&mut self, task: &Task, message: &str) {
        println!("{}: {message} after {:.1?}", task.stage, task.elapsed());
    }
}

fn main() -> Result<()> {
    silence();
    for device in list() {
        println!("{:<8} {}", device.name, device.about);
    }
    if let Err(error) = parse("cpu:1") {
        println!("refused: {error}");
    }
    let device = parse("cpu")?;

    let mut progress = Reporter::new(Lines).begin("products", "steps", 3, 0);
    let mut x = Tensor::<2>::random([64, 64], Distribution::Default, &device);
    for _ in 0..3 {
        // A failure of the device, such as too little memory, is an error here and not a panic.
        x = guard(|| Ok(x.clone().matmul(x.clone()) / 16.0))?;
        progress.advance(1, &format!("mean {:.3e}", x.clone().mean().into_scalar::<f32>()));
    }
    progress.finish("done");
    Ok(())
}
