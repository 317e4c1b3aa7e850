//! Times the strategies on the products of a step until the deadline.

use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use burn_cubecl::{CubeDevice, cubecl::future::block_on};
use fpo_products::{Case, CubeK, ProductError, ProductStrategy, Sample};
use serde_json::{Value, json};

use crate::{
    caught, print,
    shapes::{self, Named},
    shortened,
    timing::{Times, repeat},
};

/// How many of CubeK's kernels are timed on every shape after the ranking on one.
const FINALISTS: usize = 3;

struct Sweep<'a> {
    device: &'a CubeDevice,
    deadline: Instant,
}

/// In this order: cuBLASLt on all shapes, Burn on the largest, all of CubeK's kernels on the decisive shape, and its fastest on the
/// others.
pub fn run(device: &CubeDevice, strategies: &[ProductStrategy], deadline: Instant) {
    let sweep = Sweep { device, deadline };
    let has = |strategy| strategies.contains(&strategy);
    let library = ProductStrategy::CublasLt { proposal: 0, tf32: true };
    let (step, other_types) = (shapes::step(), shapes::other_types());

    if has(library) {
        for named in step.iter().chain(&other_types).chain(&shapes::long_step()) {
            sweep.time(named, &[library]);
        }
        let others = strategies.iter().copied().filter(is_other_proposal).collect::<Vec<_>>();
        for named in step.iter().take(9) {
            sweep.time(named, &others);
        }
    }
    if has(ProductStrategy::Burn) {
        for named in step.iter().take(9).chain(&other_types) {
            sweep.time(named, &[ProductStrategy::Burn]);
            sweep.time_tensors(named);
        }
    }
    let kernels = strategies.iter().copied().filter(is_cubek).collect::<Vec<_>>();
    let mut times = sweep.time(&shapes::decisive(), &kernels);
    times.sort_by_key(|(_, time)| *time);
    let finalists = times.iter().take(FINALISTS).map(|(strategy, _)| *strategy).collect::<Vec<_>>();
    if !finalists.is_empty() {
        print(json!({"what": "finalists", "strategies": names(&finalists)}));
        for named in step.iter().skip(1).chain(&other_types) {
            sweep.time(named, &finalists);
        }
    }
}

fn is_cubek(strategy: &ProductStrategy) -> bool {
    matches!(strategy, ProductStrategy::CubeK(CubeK { .. }))
}

fn is_other_proposal(strategy: &ProductStrategy) -> bool {
    matches!(strategy, ProductStrategy::CublasLt { proposal, tf32: true } if *proposal > 0)
}

fn names(strategies: &[ProductStrategy]) -> Vec<String> {
    strategies.iter().map(ToString::to_string).collect()
}

impl Sweep<'_> {
    fn over(&self) -> bool {
        Instant::now() > self.deadline
    }

    /// Verifies and times a product by each strategy; returns the times of the correct ones.
    fn time(
        &self,
        Named { name, case }: &Named,
        strategies: &[ProductStrategy],
    ) -> Vec<(ProductStrategy, Duration)> {
        let mut times = Vec::new();
        if strategies.is_empty() {
            return times;
        }
        if self.over() {
            let skipped = names(strategies);
            print(
                json!({"what": "skipped", "name": name, "strategies": skipped, "reason": "no time left"}),
            );
            return times;
        }
        let sample = match caught(|| {
            let sample = Sample::new(*case, self.device);
            sample.wait()?;
            Ok(sample)
        }) {
            Ok(sample) => sample,
            Err(error) => {
                print(
                    json!({"what": "skipped", "name": name, "reason": shortened(&error.to_string())}),
                );
                return times;
            }
        };
        for (i, strategy) in strategies.iter().enumerate() {
            if self.over() {
                let skipped = names(&strategies[i..]);
                print(
                    json!({"what": "skipped", "name": name, "strategies": skipped, "reason": "no time left"}),
                );
                break;
            }
            let mut line = line(name, case, &strategy.to_string());
            match caught(|| self.time_sample(&sample, *strategy)) {
                Ok((found, error)) => {
                    add_times(&mut line, case, &found);
                    line["error"] = json!(error);
                    times.push((*strategy, found.best()));
                }
                Err(ProductError::Refused { reason, .. }) => {
                    line["refused"] = json!(shortened(&reason));
                }
                Err(error) => line["failed"] = json!(shortened(&error.to_string())),
            }
            print(line);
        }
        times
    }

    /// The times and the relative error.
    fn time_sample(
        &self,
        sample: &Sample,
        strategy: ProductStrategy,
    ) -> Result<(Times, f64), ProductError> {
        let begun = Instant::now();
        sample.compute(strategy)?;
        sample.wait()?;
        let first = begun.elapsed();
        let error = sample.verify(strategy)?;
        let client = self.device.client();
        let times = repeat(&client, first, &|| sample.compute(strategy), &|| sample.wait())?;
        Ok((times, error))
    }

    /// Times the product through Burn's tensors, on random operands.
    fn time_tensors(&self, Named { name, case }: &Named) {
        if self.over() || case.factors != case.result {
            return;
        }
        let Some(device) = tensors_device(self.device) else { return };
        let drawn = |rows, columns, transposed| {
            let stored = if transposed { [columns, rows] } else { [rows, columns] };
            let matrix = Tensor::<2>::random(stored, Distribution::Uniform(-1.0, 1.0), &device);
            let matrix = match case.factors {
                DType::BF16 => matrix.cast(FloatDType::BF16),
                _ => matrix,
            };
            if transposed { matrix.transpose() } else { matrix }
        };
        let outcome = caught(|| {
            let lhs = drawn(case.m, case.k, case.lhs_transposed);
            let rhs = drawn(case.k, case.n, case.rhs_transposed);
            let wait = || device.sync().map_err(|error| ProductError::Device(error.to_string()));
            wait()?;
            let queue = || {
                let _product = lhs.clone().matmul(rhs.clone());
                Ok(())
            };
            let begun = Instant::now();
            queue()?;
            wait()?;
            // Work reaches the device when fusion flushes: only the host's clock covers it.
            let mut times = repeat(&self.device.client(), begun.elapsed(), &queue, &wait)?;
            times.device = None;
            Ok(times)
        });
        let mut line = line(name, case, "burn-tensors");
        match outcome {
            Ok(times) => add_times(&mut line, case, &times),
            Err(error) => line["failed"] = json!(shortened(&error.to_string())),
        }
        print(line);
        let _ = block_on(self.device.client().sync());
    }
}

fn line(name: &str, case: &Case, strategy: &str) -> Value {
    json!({
        "what": "product",
        "name": name,
        "m": case.m,
        "n": case.n,
        "k": case.k,
        "transposed": [case.lhs_transposed, case.rhs_transposed],
        "factors": case.factors.name(),
        "result": case.result.name(),
        "strategy": strategy,
    })
}

fn add_times(line: &mut Value, case: &Case, times: &Times) {
    let ms = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
    line["ms"] = json!(ms(times.best()));
    line["tflops"] = json!((case.operations() / times.best().as_secs_f64() / 1e11).round() / 10.0);
    line["queued_ms"] = json!(ms(times.queued));
    line["first_ms"] = json!(ms(times.first));
}

/// The device as Burn's tensors name it.
fn tensors_device(device: &CubeDevice) -> Option<Device> {
    match device {
        #[cfg(feature = "cuda")]
        CubeDevice::Cuda(device) => Some(Device::cuda(device.index)),
        #[cfg(feature = "wgpu")]
        CubeDevice::Wgpu(_) => Some(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        _ => None,
    }
}
