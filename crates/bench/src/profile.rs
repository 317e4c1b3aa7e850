//! Where the time of a step goes: the watched steps of `fpo bench step --profile`.

use std::{cmp::Reverse, collections::BTreeMap, time::Instant};

use anyhow::Result;
use fpo_ops::profile::{self, Profile};
use fpo_transformer::LanguageModel;
use serde::Serialize;

use crate::{
    device_memory::DeviceMemory,
    running::{Running, Waits},
};

/// The profile of a step; all numbers are means per step.
#[derive(Clone, Debug, Serialize)]
pub struct StepProfile {
    /// Time of a watched step, by the clock around it. Longer than a step that isn't watched, because the device is synchronised at
    /// every boundary between places, across which it otherwise runs ahead and Burn fuses.
    pub watched_step_seconds: f64,
    /// Every place; their times add up to the watched step.
    pub places: Vec<PlaceReport>,
    /// Kernels that a step launches when it isn't watched; none on the CPU.
    pub launches: u64,
    /// Those kernels by name, the most frequent first.
    pub kernels: Vec<KernelReport>,
    /// FLOP/s that products reach on the device.
    pub product_rate: f64,
    /// Bytes/s that the device's memory reaches.
    pub memory_rate: f64,
}

/// What a step spends in one place.
#[derive(Clone, Debug, Serialize)]
pub struct PlaceReport {
    /// `forward`, `backward` or `optimiser`.
    pub phase: &'static str,
    /// The part of the model or of the step, such as `attention`; empty outside any.
    pub part: &'static str,
    /// An operation of fpo-ops; `None` for Burn's own and for what the host does.
    pub operation: Option<&'static str>,
    /// Calls of the operation.
    pub calls: f64,
    /// Kernels launched, watched.
    pub launches: f64,
    /// Time until the device was done.
    pub seconds: f64,
    /// FLOPs of matrix products.
    pub flops: f64,
    /// Bytes read and written at least; 0 where `operation` is `None`, of which it isn't known.
    pub bytes: f64,
    /// Share of the product rate, from 0 to 1.
    pub product_share: f64,
    /// Share of the memory rate, from 0 to 1; more where a cache holds what is read.
    pub memory_share: f64,
}

impl PlaceReport {
    /// What both spend together, under the names of the first. The shares are left as they are.
    #[must_use]
    pub fn plus(self, other: &Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            launches: self.launches + other.launches,
            seconds: self.seconds + other.seconds,
            flops: self.flops + other.flops,
            bytes: self.bytes + other.bytes,
            ..self
        }
    }
}

/// How often a step launches a kernel.
#[derive(Clone, Debug, Serialize)]
pub struct KernelReport {
    /// The kernel's name in CubeCL.
    pub name: String,
    /// Launches.
    pub launches: u64,
}

/// Steps that were watched.
pub(crate) struct Watched {
    profile: Profile,
    seconds: f64,
    steps: f64,
    kernels: Vec<(String, u64)>,
}

impl Watched {
    /// Watches the steps 1 to `steps` again, after one to warm up: what is fused between boundaries is other kernels than in a whole
    /// step.
    pub fn of(running: &mut Running, policy: LanguageModel, steps: u64) -> Result<Self> {
        let device = running.device.clone();
        let mut memory = DeviceMemory::new(&device);
        let mut step = |policy, step| {
            let waits = Waits::AfterEachPhase(&mut memory);
            running.step(policy, step, waits).map(|(policy, _)| policy)
        };
        let (moved, kernels) = profile::count_launches(&device, || step(policy, 0));
        let mut policy = moved?;
        policy = profile::watch(&device, || step(policy, 0)).0?;
        let begun = Instant::now();
        let (moved, profile) =
            profile::watch(&device, || -> Result<_> { (1..=steps).try_fold(policy, &mut step) });
        let seconds = begun.elapsed().as_secs_f64();
        moved?;
        Ok(Self { profile, seconds, steps: steps as f64, kernels })
    }

    pub fn report(self, product_rate: f64, memory_rate: f64) -> StepProfile {
        let steps = self.steps;
        let places = self.profile.places.into_iter().map(|(place, spent)| {
            let share = |amount: f64, rate: f64| match spent.seconds {
                0.0 => 0.0,
                seconds => amount / seconds / rate,
            };
            PlaceReport {
                phase: place.phase,
                part: place.part,
                operation: place.operation,
                calls: spent.calls as f64 / steps,
                launches: spent.launches as f64 / steps,
                seconds: spent.seconds / steps,
                flops: spent.flops / steps,
                bytes: spent.bytes / steps,
                product_share: share(spent.flops, product_rate),
                memory_share: share(spent.bytes, memory_rate),
            }
        });
        // A kernel has this name for every type that it is compiled for.
        let mut by_name: BTreeMap<String, u64> = BTreeMap::new();
        for (name, launches) in self.kernels {
            *by_name.entry(name).or_default() += launches;
        }
        let kernels = by_name.into_iter();
        let mut kernels: Vec<_> =
            kernels.map(|(name, launches)| KernelReport { name, launches }).collect();
        kernels.sort_by_key(|kernel| Reverse(kernel.launches));
        StepProfile {
            watched_step_seconds: self.seconds / steps,
            places: places.collect(),
            launches: kernels.iter().map(|kernel| kernel.launches).sum(),
            kernels,
            product_rate,
            memory_rate,
        }
    }
}
