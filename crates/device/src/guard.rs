//! Turns device failures, on whichever thread they occur, into errors of the work that they affect.
//!
//! CubeCL executes the work of a stream on a thread of the device and catches panics there. If a caller is waiting for a result,
//! the panic resumes on the caller's thread. Otherwise it is only logged, and the output tensors are left unwritten. Therefore a
//! panic hook records every failure, and [`guard`] checks for failures of its own stream when its work ends, even if it returned
//! `Ok`.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
};

use anyhow::{Error, Result, anyhow};
use burn::tensor::{Device, StreamId};

use crate::DeviceFailure;

/// Messages of panics that follow from an earlier failure on the device's thread.
const CONSEQUENCES: [&str; 6] = [
    "The work writing this buffer was torn down",
    "The work was skipped",
    "Error while reading data",
    "device: host access failed",
    "RecvError",
    "the channel is disconnected",
];

/// CubeCL's panic on the device's thread if work that already runs there submits more work, which fails. The submitter then handles
/// the failure itself: autotuning does so, and discards the kernel that it tried.
const HANDED_ON: &str = "Can't have an error when submitting a task";

/// Open guards, and the failures recorded on any thread while they are open.
struct Watch(Mutex<State>);

#[derive(Default)]
struct State {
    /// Open guards; within a stream, outer guards first.
    guards: Vec<Guard>,
    /// Recorded failures in order of occurrence.
    notes: Vec<Note>,
}

struct Guard {
    stream: StreamId,
    /// A nested guard has reported a failure, of which later failures may be consequences.
    reported: bool,
}

struct Note {
    /// The stream whose work failed.
    stream: StreamId,
    /// The thread that panicked.
    thread: ThreadId,
    failure: DeviceFailure,
}

static WATCH: Watch = Watch::new();

impl State {
    /// Whether a note may concern a stream: it is the stream's own, or belongs to no guarded stream (a device's internal work).
    fn concerns(&self, note: &Note, stream: StreamId) -> bool {
        note.stream == stream || self.guards.iter().all(|guard| guard.stream != note.stream)
    }

    /// Removes the notes that concern a stream and returns the first.
    fn take(&mut self, stream: StreamId) -> Option<DeviceFailure> {
        let notes = std::mem::take(&mut self.notes);
        let (found, rest): (Vec<_>, Vec<_>) =
            notes.into_iter().partition(|note| self.concerns(note, stream));
        self.notes = rest;
        found.into_iter().next().map(|note| note.failure)
    }

    /// Removes a stream's own notes and returns the first unreported failure. Failures on this thread don't count, because their
    /// panic was caught before it reached the guard; nor do those after a failure that a nested guard has reported.
    fn take_unreported(&mut self, stream: StreamId) -> Option<DeviceFailure> {
        let here = thread::current().id();
        let found: Vec<_> = self.notes.extract_if(.., |note| note.stream == stream).collect();
        let after = self.guards.iter().rfind(|g| g.stream == stream).is_some_and(|g| g.reported);
        let mut unreported = found.into_iter().filter(|note| note.thread != here && !after);
        unreported.next().map(|note| note.failure)
    }

    fn open(&mut self, stream: StreamId) {
        if self.guards.iter().all(|guard| guard.stream != stream) {
            // From before the stream was guarded.
            self.notes.retain(|note| note.stream != stream);
        }
        self.guards.push(Guard { stream, reported: false });
    }

    fn close(&mut self, stream: StreamId, reports: bool) {
        let Some(innermost) = self.guards.iter().rposition(|guard| guard.stream == stream) else {
            return;
        };
        let reported = self.guards.remove(innermost).reported || reports;
        let outer = self.guards.iter_mut().filter(|guard| guard.stream == stream);
        outer.for_each(|guard| guard.reported |= reported);
        if self.guards.is_empty() {
            self.notes.clear();
        }
    }
}

impl Watch {
    const fn new() -> Self {
        Self(Mutex::new(State { guards: Vec::new(), notes: Vec::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn guard<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let stream = StreamId::current();
        self.state().open(stream);
        let outcome = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(result) => Ok(with_unreported(result, self.state().take_unreported(stream))),
            Err(panic) => match self.failure_of(message(&*panic), stream) {
                Some(failure) => Ok(Err(failure.into())),
                None => Err(panic),
            },
        };
        let reports = matches!(&outcome, Ok(Err(error)) if is_failure(error));
        self.state().close(stream, reports);
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn check(&self) -> Result<()> {
        let stream = StreamId::current();
        let mut state = self.state();
        let Some(failure) = state.take_unreported(stream) else { return Ok(()) };
        if let Some(innermost) = state.guards.iter_mut().rfind(|guard| guard.stream == stream) {
            innermost.reported = true;
        }
        Err(failure.into())
    }

    /// The failure that a panic on a guarded thread describes or follows from.
    fn failure_of(&self, text: &str, stream: StreamId) -> Option<DeviceFailure> {
        let first = self.state().take(stream);
        match DeviceFailure::of(text) {
            Some(failure) => Some(first.unwrap_or(failure)),
            None => first.filter(|_| is_consequence(text)),
        }
    }

    /// Records the device failure, if any, in a panic message of this thread. Returns whether a guard will report that failure or
    /// the one that it follows from.
    fn note(&self, text: &str) -> bool {
        let failure = DeviceFailure::of(text);
        let (stream, thread) = (StreamId::current(), thread::current().id());
        let mut state = self.state();
        if state.guards.is_empty() {
            return false;
        }
        match failure {
            Some(_) if text.contains(HANDED_ON) => {
                state.notes.retain(|note| (note.stream, note.thread) != (stream, thread));
                true
            }
            Some(failure) => {
                state.notes.push(Note { stream, thread, failure });
                true
            }
            None => {
                is_consequence(text) && state.notes.iter().any(|note| state.concerns(note, stream))
            }
        }
    }
}

/// Combines a result with a failure that raised no panic on the guarded thread. An error of another kind, such as that of a NaN
/// loss, is taken as a consequence of the failure.
fn with_unreported<T>(result: Result<T>, unreported: Option<DeviceFailure>) -> Result<T> {
    match (result, unreported) {
        (Ok(_), Some(failure)) => Err(failure.into()),
        (Err(error), Some(failure)) if !is_failure(&error) => {
            Err(Error::new(failure).context(format!("{error:#}")))
        }
        (result, _) => result,
    }
}

/// Runs `work` and turns a device failure into an error with a [`DeviceFailure`] in its chain, even if the failure occurred on the
/// device's own thread and `work` returned `Ok`. To handle a failure without reporting it further, nest a guard around the
/// fallible part. Failures on other threads are only seen after [`silence`] has been called.
///
/// # Errors
/// Errors of `work`, and device failures.
///
/// # Panics
/// If `work` panics for any other reason.
pub fn guard<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    WATCH.guard(work)
}

/// Reports a failure in this thread's work that has so far only shown on the device's own thread. Call it between the steps of long
/// work within a [`guard`], which would otherwise report such a failure only at its end.
///
/// # Errors
/// The device failure.
pub fn check() -> Result<()> {
    WATCH.check()
}

/// Waits until a device has finished all queued work.
///
/// # Errors
/// A device failure.
pub fn sync(device: &Device) -> Result<()> {
    device.sync().map_err(|error| {
        let text = error.to_string();
        match DeviceFailure::of(&text) {
            Some(failure) => failure.into(),
            None => anyhow!("waiting for the device: {text}"),
        }
    })
}

/// Installs a panic hook, once per process, by which [`guard`] also sees failures on other threads. Panics that a guard will report
/// print nothing; all others go to the previous hook.
pub fn silence() {
    let otherwise = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload_as_str().unwrap_or_default();
        if !WATCH.note(text) {
            otherwise(info);
        }
    }));
}

fn is_failure(error: &Error) -> bool {
    error.downcast_ref::<DeviceFailure>().is_some()
}

fn is_consequence(text: &str) -> bool {
    CONSEQUENCES.iter().any(|words| text.contains(words))
}

/// The message of a panic; empty if it isn't a string.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = "out of device memory allocating 8 bytes";
    const LOST: &str = "The device is poisoned: gone";
    const DIED: &str = "called `Result::unwrap()` on an `Err` value: RecvError";

    /// What the hook sees if the device's thread panics in work of the calling thread.
    fn on_device(watch: &Watch, text: &str) -> bool {
        let stream = StreamId::current();
        let met = || stream.executes(|| watch.note(text));
        thread::scope(|scope| scope.spawn(met).join().unwrap())
    }

    fn failure<T>(result: Result<T>) -> Option<DeviceFailure> {
        result.err().map(|error| error.downcast::<DeviceFailure>().unwrap())
    }

    #[test]
    fn a_failure_can_be_found_in_the_error() {
        let failed = guard(|| -> Result<()> { panic!("{FULL}") });
        let error = failed.unwrap_err().context("step 3");
        assert_eq!(error.downcast_ref(), Some(&DeviceFailure::OutOfMemory(Some(8))));
        assert_eq!(
            format!("{error:#}"),
            "step 3: out of device memory: no room for another 8 bytes"
        );
        assert_eq!(guard(|| Ok(3)).unwrap(), 3);
        let bug = catch_unwind(|| guard(|| -> Result<()> { panic!("a bug") })).unwrap_err();
        assert_eq!(message(&*bug), "a bug");
    }

    /// The panic on the calling thread follows from an earlier one on the device's thread.
    #[test]
    fn the_first_failure_is_reported() {
        let watch = Watch::new();
        assert!(!watch.note(DIED) && !watch.note(FULL), "no guard is open");
        let error = watch.guard(|| -> Result<()> {
            assert!(!watch.note(DIED), "no failure came before");
            assert!(on_device(&watch, LOST) && on_device(&watch, FULL) && watch.note(DIED));
            panic!("{DIED}")
        });
        assert_eq!(failure(error), DeviceFailure::of(LOST));
    }

    #[test]
    fn a_failure_on_the_devices_thread_alone_is_reported() {
        let watch = Watch::new();
        let met = || on_device(&watch, FULL);
        assert_eq!(failure(watch.guard(|| Ok(met()))), DeviceFailure::of(FULL));
        assert_eq!(failure(watch.guard(|| Ok(3))), None, "once");
        let wrong = watch.guard(|| -> Result<()> {
            met();
            Err(anyhow!("the loss is NaN"))
        });
        let error = wrong.unwrap_err();
        assert!(is_failure(&error) && format!("{error:#}").starts_with("the loss is NaN: out of"));
    }

    #[test]
    fn nested_guards_lose_no_failure() {
        let watch = Watch::new();
        let inner = watch.guard(|| {
            on_device(&watch, FULL);
            Ok(failure(watch.guard(|| Ok(()))))
        });
        assert_eq!(inner.unwrap(), DeviceFailure::of(FULL), "before the inner guard");
        let outer = watch.guard(|| {
            watch.guard(|| Ok(()))?;
            on_device(&watch, FULL);
            Ok(())
        });
        assert_eq!(failure(outer), DeviceFailure::of(FULL), "after the inner guard");
    }

    #[test]
    fn a_handled_failure_is_not_reported_again() {
        let watch = Watch::new();
        let tried = watch.guard(|| {
            let inner = watch.guard(|| Ok(on_device(&watch, LOST)));
            assert_eq!(failure(inner), DeviceFailure::of(LOST));
            // Work that was still queued.
            on_device(&watch, LOST);
            Ok(())
        });
        assert_eq!(failure(tried), None, "an inner guard");
        let caught = watch.guard(|| {
            watch.note(FULL);
            Ok(())
        });
        assert_eq!(failure(caught), None, "a panic caught on the same thread");
        let tuned = watch.guard(|| {
            let stream = StreamId::current();
            let nested = format!("{HANDED_ON}: CallError(task panicked: {FULL})");
            let met = || stream.executes(|| watch.note(FULL) && watch.note(&nested));
            Ok(thread::scope(|scope| scope.spawn(met).join().unwrap()))
        });
        assert!(tuned.unwrap(), "a kernel tried by autotuning");
        let told = watch.guard(|| -> Result<()> {
            let error = watch.guard(|| Ok(on_device(&watch, LOST))).unwrap_err();
            on_device(&watch, FULL);
            Err(anyhow!("stage align: {error:#}"))
        });
        assert_eq!(
            told.unwrap_err().to_string(),
            "stage align: the device was lost: The device is poisoned: gone"
        );
    }

    #[test]
    fn other_threads_report_their_own_failures() {
        let watch = Watch::new();
        let elsewhere = |text| {
            thread::scope(|s| {
                s.spawn(|| watch.guard(|| Ok(on_device(&watch, text)))).join().unwrap()
            })
        };
        let ours = watch.guard(|| {
            assert_eq!(failure(elsewhere(LOST)), DeviceFailure::of(LOST));
            thread::scope(|s| s.spawn(|| watch.note(FULL)).join().unwrap());
            Ok(())
        });
        assert_eq!(failure(ours), None, "a guarded thread and an unguarded one");
        assert!(watch.state().notes.is_empty(), "no note is left for later guards");
    }
}
