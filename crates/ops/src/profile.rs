//! Where the time of a step goes: seconds, calls, kernel launches, FLOPs and bytes of each operation, by phase and part.
//!
//! Every operation of this crate has one door, its public function, which says that it begins; the graph says when its backward
//! pass does. Callers name the [`phase`] and the [`part`] of a model that they are in. What happens between operations is Burn's,
//! and counts to the part it happens in; in the backward pass to the part of the operation that follows.
//!
//! Nothing of this costs more than the read of a thread-local flag, unless the thread is in [`watch`]. Then the device is
//! synchronised at every boundary, so that work that is queued counts where it was asked for. That takes time of its own and keeps
//! Burn from fusing across boundaries: a watched step is slower than another.

use std::{
    cell::{Cell, RefCell},
    marker::PhantomData,
    time::Instant,
};

use burn::tensor::Device;

/// What a row of a profile counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Such as `forward`.
    pub phase: &'static str,
    /// A part of what is computed, such as `attention`; empty outside any.
    pub part: &'static str,
    /// An operation of this crate; none for Burn's own between them, and for what the host does.
    pub operation: Option<&'static str>,
}

/// What was spent in a place.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// Times that the operation began; for Burn's own, 0.
    pub calls: u64,
    /// Kernels launched on a GPU.
    pub launches: u64,
    /// Wall clock, up to when the device was done.
    pub seconds: f64,
    /// Of matrix products; a multiply-add counts as two. What the mathematics requires: blocks that are computed again don't count.
    pub flops: f64,
    /// Read and written at least: inputs and outputs once each. Not known of Burn's own operations.
    pub bytes: f64,
}

/// The result of [`watch`].
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// In the order in which they came first.
    pub places: Vec<(Place, Spent)>,
}

impl Profile {
    /// What was spent in all places together.
    pub fn seconds(&self) -> f64 {
        self.places.iter().map(|(_, spent)| spent.seconds).sum()
    }

    fn at(&mut self, place: Place) -> &mut Spent {
        let found = self.places.iter().position(|(other, _)| *other == place);
        let i = found.unwrap_or_else(|| {
            self.places.push((place, Spent::default()));
            self.places.len() - 1
        });
        &mut self.places[i].1
    }
}

/// Runs `work`, of which this thread's operations are on `device`, and says where its time went.
///
/// # Panics
/// If this thread is watched already, or the device fails.
pub fn watch<T>(device: &Device, work: impl FnOnce() -> T) -> (T, Profile) {
    /// Ends the watch, however `work` ends.
    struct Watch;
    impl Drop for Watch {
        fn drop(&mut self) {
            WATCHED.set(false);
            WATCHER.take();
        }
    }
    assert!(!WATCHED.get(), "a thread has one profile at a time");
    wait_for(device);
    let watcher = Watcher {
        device: device.clone(),
        profile: Profile::default(),
        stack: Vec::new(),
        launches: launches::Counted::new(),
        counted: 0,
        since: Instant::now(),
    };
    WATCHER.set(Some(watcher));
    WATCHED.set(true);
    let watch = Watch;
    let result = work();
    let profile = with(|watcher| {
        watcher.settle(watcher.place());
        std::mem::take(&mut watcher.profile)
    });
    drop(watch);
    (result, profile)
}

/// Kernels launched on GPUs while `work` runs, by name, as often as each; by any thread of the process. Nothing is synchronised,
/// except that what was queued before and by `work` is waited for.
///
/// # Panics
/// If the device fails.
pub fn count_launches<T>(device: &Device, work: impl FnOnce() -> T) -> (T, Vec<(String, u64)>) {
    wait_for(device);
    let counted = launches::Counted::new();
    let result = work();
    wait_for(device);
    (result, counted.by_name())
}

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    static WATCHER: RefCell<Option<Watcher>> = const { RefCell::new(None) };
}

struct Watcher {
    device: Device,
    profile: Profile,
    stack: Vec<Frame>,
    launches: launches::Counted,
    /// Launches that are in the profile.
    counted: u64,
    /// Until when the time is in the profile.
    since: Instant,
}

#[derive(Clone, Copy, PartialEq)]
enum Frame {
    Phase(&'static str),
    Part(&'static str),
    Forward { operation: &'static str, flops: f64 },
    Backward { part: &'static str, operation: &'static str },
}

impl Watcher {
    fn place(&self) -> Place {
        let mut place = Place::default();
        for frame in &self.stack {
            match *frame {
                Frame::Phase(phase) => place = Place { phase, ..Place::default() },
                Frame::Part(part) => place = Place { part, operation: None, ..place },
                Frame::Forward { operation, .. } => place.operation = Some(operation),
                Frame::Backward { part, operation } => {
                    place = Place { part, operation: Some(operation), ..place };
                }
            }
        }
        place
    }

    /// Counts the time and the launches since the last boundary to a place.
    fn settle(&mut self, place: Place) {
        wait_for(&self.device);
        let (now, launches) = (Instant::now(), self.launches.total());
        let spent = self.profile.at(place);
        spent.seconds += (now - self.since).as_secs_f64();
        spent.launches += launches - self.counted;
        (self.since, self.counted) = (now, launches);
    }

    fn enter(&mut self, frame: Frame) {
        let mut left = self.place();
        if let (Frame::Backward { part, .. }, "") = (frame, left.part) {
            left.part = part;
        }
        self.settle(left);
        self.stack.push(frame);
    }
}

fn with<T>(work: impl FnOnce(&mut Watcher) -> T) -> T {
    WATCHER.with_borrow_mut(|watcher| work(watcher.as_mut().expect("the thread is watched")))
}

fn wait_for(device: &Device) {
    if let Err(error) = device.sync() {
        panic!("{error}");
    }
}

/// A phase, part or operation that ends when this is dropped.
#[must_use]
#[derive(Debug)]
pub struct Within {
    entered: bool,
    /// It belongs to its thread.
    thread: PhantomData<*const ()>,
}

impl Within {
    const NOTHING: Self = Self { entered: false, thread: PhantomData };

    fn enter(frame: Frame) -> Self {
        with(|watcher| watcher.enter(frame));
        Self { entered: true, thread: PhantomData }
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        // After a failure there is no profile, and the device may be gone.
        if !self.entered || !WATCHED.get() || std::thread::panicking() {
            return;
        }
        with(|watcher| {
            watcher.settle(watcher.place());
            watcher.stack.pop();
        });
    }
}

/// A phase of the step begins, such as its backward pass.
pub fn phase(name: &'static str) -> Within {
    if WATCHED.get() { Within::enter(Frame::Phase(name)) } else { Within::NOTHING }
}

/// A part of what is computed begins, such as attention. A part in another one counts by itself.
pub fn part(name: &'static str) -> Within {
    if WATCHED.get() { Within::enter(Frame::Part(name)) } else { Within::NOTHING }
}

/// Whether this thread is in [`watch`].
pub(crate) fn is_watched() -> bool {
    WATCHED.get()
}

/// An operation of this crate begins. `flops` are those of its matrix products. One that another operation's forward pass is made
/// of counts to that one.
pub(crate) fn operation(name: &'static str, flops: impl FnOnce() -> f64) -> Within {
    if !WATCHED.get() || with(|watcher| matches!(watcher.stack.last(), Some(Frame::Forward { .. })))
    {
        return Within::NOTHING;
    }
    let flops = flops();
    let within = Within::enter(Frame::Forward { operation: name, flops });
    add(1, flops, 0.0);
    within
}

/// Counts what the current operation reads and writes.
pub(crate) fn moved(bytes: impl FnOnce() -> f64) {
    if WATCHED.get() {
        add(0, 0.0, bytes());
    }
}

fn add(calls: u64, flops: f64, bytes: f64) {
    with(|watcher| {
        let place = watcher.place();
        let spent = watcher.profile.at(place);
        spent.calls += calls;
        spent.flops += flops;
        spent.bytes += bytes;
    });
}

/// What the backward pass of an operation counts to; empty where its forward pass wasn't watched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin(Option<Box<Recorded>>);

#[derive(Clone, Debug)]
struct Recorded {
    part: &'static str,
    operation: &'static str,
    flops: f64,
    /// Bytes of each input.
    inputs: Vec<f64>,
    /// Bytes of the output.
    output: f64,
}

/// The origin of the current operation, given the bytes of its inputs and of its output, which it has moved.
pub(crate) fn origin(sizes: impl FnOnce() -> (Vec<f64>, f64)) -> Origin {
    if !WATCHED.get() {
        return Origin::default();
    }
    let current = with(|watcher| match watcher.stack.last() {
        Some(&Frame::Forward { operation, flops }) => {
            Some((watcher.place().part, operation, flops))
        }
        _ => None,
    });
    let Some((part, operation, flops)) = current else { return Origin::default() };
    let (inputs, output) = sizes();
    add(0, 0.0, inputs.iter().sum::<f64>() + output);
    Origin(Some(Box::new(Recorded { part, operation, flops, inputs, output })))
}

impl Origin {
    /// The backward pass begins: one product per side that wants a gradient, everything that the forward pass read and wrote (the
    /// gradient has the output's size), and the gradients of the inputs.
    pub(crate) fn backward(&self, wanted: &[bool]) -> Within {
        let Some(recorded) = self.0.as_deref().filter(|_| WATCHED.get()) else {
            return Within::NOTHING;
        };
        let &Recorded { part, operation, flops, ref inputs, output } = recorded;
        let within = Within::enter(Frame::Backward { part, operation });
        // The first input is one side of a product, the others are parts of the other.
        let sides = [wanted.iter().take(1).any(|&w| w), wanted.iter().skip(1).any(|&w| w)];
        let products = sides.into_iter().filter(|&wanted| wanted).count() as f64;
        let written = inputs.iter().zip(wanted).filter(|(_, wanted)| **wanted);
        let written: f64 = written.map(|(bytes, _)| bytes).sum();
        add(1, products * flops, inputs.iter().sum::<f64>() + output + written);
        within
    }
}

/// Launches, which CubeCL announces.
#[cfg(feature = "cube")]
mod launches {
    use std::{
        collections::BTreeMap,
        sync::{Arc, Mutex, MutexGuard, PoisonError},
    };

    use burn_cubecl::cubecl::{
        config::{TypeNameFormatLevel, type_name_format},
        logging::{LaunchObservation, LaunchObserver},
    };

    /// Counts the launches of the process as long as it lives.
    pub(super) struct Counted {
        counts: Arc<Counts>,
        _observation: LaunchObservation,
    }

    #[derive(Default)]
    struct Counts(Mutex<BTreeMap<&'static str, u64>>);

    impl Counts {
        fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl LaunchObserver for Counts {
        fn launched(&self, kernel: &'static str) {
            *self.lock().entry(kernel).or_default() += 1;
        }
    }

    impl Counted {
        pub fn new() -> Self {
            let counts = Arc::new(Counts::default());
            Self { counts: counts.clone(), _observation: LaunchObservation::new(counts) }
        }

        pub fn total(&self) -> u64 {
            self.counts.lock().values().sum()
        }

        /// The most frequent first.
        pub fn by_name(&self) -> Vec<(String, u64)> {
            let short = |name: &str| type_name_format(name, TypeNameFormatLevel::Short);
            let mut counts: Vec<_> =
                self.counts.lock().iter().map(|(name, count)| (short(name), *count)).collect();
            counts.sort_by(|(a, n), (b, m)| m.cmp(n).then_with(|| a.cmp(b)));
            counts
        }
    }
}

/// Without a GPU's backend there are none.
#[cfg(not(feature = "cube"))]
mod launches {
    pub(super) struct Counted;

    impl Counted {
        pub const fn new() -> Self {
            Self
        }

        pub const fn total(&self) -> u64 {
            0
        }

        pub const fn by_name(&self) -> Vec<(String, u64)> {
            Vec::new()
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use std::{thread::sleep, time::Duration};

    use burn::tensor::Tensor;

    use super::*;
    use crate::{AdamW, Gain};

    fn row<'a>(profile: &'a Profile, phase: &str, part: &str, operation: &str) -> &'a Spent {
        let found = profile.places.iter().find(|(place, _)| {
            place.phase == phase
                && place.part == part
                && place.operation.unwrap_or_default() == operation
        });
        &found.unwrap_or_else(|| panic!("no {phase}, {part}, {operation} in {profile:?}")).1
    }

    /// Oracle: counted by hand.
    #[test]
    fn calls_flops_and_bytes_are_those_of_the_mathematics() {
        let device = Device::flex();
        let leaf =
            |shape: [usize; 2]| Tensor::<2>::ones(shape, &device.clone().autodiff()).require_grad();
        let (x, w) = (leaf([6, 4]), leaf([3, 4]));
        let norm = Tensor::<1>::ones([4], &device.clone().autodiff());
        let ((), profile) = watch(&device, || {
            let y = {
                let _phase = phase("forward");
                let _part = part("mlp");
                let x = crate::rms_norm(x.clone(), norm.clone(), Gain::Weight, 1e-6);
                let plain = x.clone().without_autodiff();
                // Computed again in the backward pass.
                crate::linear_of(x, move || crate::softcap(plain.clone(), 1e6), w.clone())
            };
            let _phase = phase("backward");
            let gradients = y.sum().backward();
            let _part = part("update");
            let g = w.grad(&gradients).unwrap();
            let zeros = Tensor::zeros([3, 4], &device);
            let by = AdamW {
                lr: 0.1,
                beta1: 0.9,
                beta2: 0.9,
                eps: 1e-8,
                weight_decay: 0.0,
                grad_scale: 1.0,
            };
            crate::adamw_step(w.clone().inner(), g, zeros.clone(), zeros, 1, &by);
        });
        let spent = |phase, part, operation| {
            let Spent { calls, flops, bytes, .. } = *row(&profile, phase, part, operation);
            (calls, flops, bytes)
        };
        assert_eq!(spent("forward", "mlp", "rms_norm"), (1, 0.0, 4.0 * 52.0));
        assert_eq!(spent("forward", "mlp", "linear"), (1, 144.0, 4.0 * (24.0 + 12.0 + 18.0)));
        // x, w and the output's gradient are read, the gradients of x and w written: two products.
        assert_eq!(spent("backward", "mlp", "linear"), (1, 288.0, 4.0 * 90.0));
        assert_eq!(spent("backward", "mlp", "softcap"), (1, 0.0, 4.0 * 48.0));
        // The norm's weight gets no gradient.
        assert_eq!(spent("backward", "mlp", "rms_norm"), (1, 0.0, 4.0 * (52.0 + 24.0)));
        assert_eq!(spent("backward", "update", "adamw_step"), (1, 0.0, 4.0 * 7.0 * 12.0));
        assert_eq!(spent("backward", "mlp", ""), (0, 0.0, 0.0));
        assert!(profile.places.iter().all(|(_, spent)| spent.launches == 0));
    }

    /// Oracles: sleeps and the clock.
    #[test]
    fn all_of_the_time_is_counted_and_each_part_of_it_once() {
        let device = Device::flex();
        let nap = || sleep(Duration::from_millis(20));
        let begun = Instant::now();
        let ((), profile) = watch(&device, || {
            nap();
            let _phase = phase("forward");
            let _block = part("block");
            nap();
            {
                let _mlp = part("mlp");
                nap();
            }
            nap();
        });
        let whole = begun.elapsed().as_secs_f64();
        // Something else may have had the processor, so the upper bound is the clock and not the naps.
        assert!((0.08..=whole).contains(&profile.seconds()), "{whole} s: {profile:?}");
        for (part, naps) in [("block", 2.0), ("mlp", 1.0)] {
            assert!(row(&profile, "forward", part, "").seconds >= 0.02 * naps, "{profile:?}");
        }
        assert!(row(&profile, "", "", "").seconds >= 0.02);
        // The watch is over.
        let _phase = phase("forward");
        assert!(watch(&device, || ()).1.places.len() == 1);
    }

    #[test]
    fn a_panic_ends_the_watch() {
        let failed = std::panic::catch_unwind(|| {
            watch(&Device::flex(), || {
                let _part = part("block");
                panic!("a failure");
            })
        });
        assert!(failed.is_err() && !is_watched());
    }
}
