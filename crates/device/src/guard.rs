//! From a device's failure, whichever thread met it, to an error of the work that it spoils.
//!
//! CubeCL does the work of a stream on a thread of the device, and catches what panics there. Where somebody waits for a result,
//! the panic goes on in their thread; where nobody does, it ends in a log, and tensors are left as they were found. So a hook takes
//! note of every failure, and [`guard`] looks for those of its own stream, however its work ended.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
};

use anyhow::{Error, Result, anyhow};
use burn::tensor::{Device, StreamId};

use crate::DeviceFailure;

/// What is said where the failure itself happened earlier, on the device's thread.
const CONSEQUENCES: [&str; 6] = [
    "The work writing this buffer was torn down",
    "The work was skipped",
    "Error while reading data",
    "device: host access failed",
    "RecvError",
    "the channel is disconnected",
];

/// What CubeCL says on a device's thread to work that runs there itself and gave the device more to do: it has heard of the failure,
/// and decides what becomes of it. Autotuning does so, and drops the kernel that it tried.
const HANDED_ON: &str = "Can't have an error when submitting a task";

/// Failures since guards began, whichever threads met them.
struct Watch(Mutex<State>);

#[derive(Default)]
struct State {
    /// Those that are open, the outer ones of a stream first.
    guards: Vec<Guard>,
    /// In the order in which they were met.
    notes: Vec<Note>,
}

struct Guard {
    stream: StreamId,
    /// A guard within it has reported a failure. What is met later may follow from that one.
    reported: bool,
}

struct Note {
    /// For whom the work was done that failed.
    stream: StreamId,
    /// Where.
    thread: ThreadId,
    failure: DeviceFailure,
}

static WATCH: Watch = Watch::new();

impl State {
    /// Whether a note may be about the work of a stream: its own, or what a device does of its own accord.
    fn concerns(&self, note: &Note, stream: StreamId) -> bool {
        note.stream == stream || self.guards.iter().all(|guard| guard.stream != note.stream)
    }

    /// Removes what concerns a stream, and returns the first of it.
    fn take(&mut self, stream: StreamId) -> Option<DeviceFailure> {
        let notes = std::mem::take(&mut self.notes);
        let (found, rest): (Vec<_>, Vec<_>) =
            notes.into_iter().partition(|note| self.concerns(note, stream));
        self.notes = rest;
        found.into_iter().next().map(|note| note.failure)
    }

    /// Removes the notes of a stream itself, and returns the first that nobody heard of: not from this thread, where a panic was
    /// caught on its way to the guard, nor after a failure that was dealt with.
    fn take_unheard(&mut self, stream: StreamId) -> Option<DeviceFailure> {
        let here = thread::current().id();
        let found: Vec<_> = self.notes.extract_if(.., |note| note.stream == stream).collect();
        let after = self.guards.iter().rfind(|g| g.stream == stream).is_some_and(|g| g.reported);
        let mut unheard = found.into_iter().filter(|note| note.thread != here && !after);
        unheard.next().map(|note| note.failure)
    }

    fn open(&mut self, stream: StreamId) {
        if self.guards.iter().all(|guard| guard.stream != stream) {
            // Met before there was a guard to report it.
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
            Ok(result) => Ok(with_unheard(result, self.state().take_unheard(stream))),
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
        let Some(failure) = state.take_unheard(stream) else { return Ok(()) };
        if let Some(innermost) = state.guards.iter_mut().rfind(|guard| guard.stream == stream) {
            innermost.reported = true;
        }
        Err(failure.into())
    }

    /// What a panic of a guarded thread is about, or follows from.
    fn failure_of(&self, text: &str, stream: StreamId) -> Option<DeviceFailure> {
        let first = self.state().take(stream);
        match DeviceFailure::of(text) {
            Some(failure) => Some(first.unwrap_or(failure)),
            None => first.filter(|_| is_consequence(text)),
        }
    }

    /// Keeps a failure that a panic of this thread tells of; whether a guard will report it, or the one that it follows from.
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

/// The result of work of which something failed that nobody waited for. An error of another kind follows from it, as that of a
/// loss that is no number does.
fn with_unheard<T>(result: Result<T>, unheard: Option<DeviceFailure>) -> Result<T> {
    match (result, unheard) {
        (Ok(_), Some(failure)) => Err(failure.into()),
        (Err(error), Some(failure)) if !is_failure(&error) => {
            Err(Error::new(failure).context(format!("{error:#}")))
        }
        (result, _) => result,
    }
}

/// Does `work`; where a device fails meanwhile, that is an error with a [`DeviceFailure`] in its chain, also where the device's own
/// thread met it and `work` ended well. A failure that is not to be reported is dealt with by a guard of its own.
///
/// # Errors
/// Those of `work`, and a device's failure.
///
/// # Panics
/// Where `work` does, for any other reason.
pub fn guard<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    WATCH.guard(work)
}

/// Fails where a device has failed in the work of this thread and only the device's own thread noticed. For use within a
/// [`guard`], between the parts of long work: without it such a failure would be an error only when the guard ends.
///
/// # Errors
/// The device's failure.
pub fn check() -> Result<()> {
    WATCH.check()
}

/// Waits until a device has done what it was given.
///
/// # Errors
/// A device that failed.
pub fn sync(device: &Device) -> Result<()> {
    device.sync().map_err(|error| {
        let text = error.to_string();
        match DeviceFailure::of(&text) {
            Some(failure) => failure.into(),
            None => anyhow!("waiting for the device: {text}"),
        }
    })
}

/// From here on [`guard`] hears of failures that other threads meet, and a panic that it reports prints nothing of its own. Others
/// print what they printed before.
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

/// What a panic said.
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

    /// A panic on the device's thread, over work for the thread that calls this, as the hook sees it.
    fn on_device(watch: &Watch, text: &str) -> bool {
        let stream = StreamId::current();
        let met = || stream.executes(|| watch.note(text));
        thread::scope(|scope| scope.spawn(met).join().unwrap())
    }

    fn failure<T>(result: Result<T>) -> Option<DeviceFailure> {
        result.err().map(|error| error.downcast::<DeviceFailure>().unwrap())
    }

    #[test]
    fn a_failure_is_an_error_that_can_be_found() {
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

    /// What the calling thread says where the device's thread met the failure, and what it says on its own.
    #[test]
    fn the_first_failure_counts() {
        let watch = Watch::new();
        assert!(!watch.note(DIED) && !watch.note(FULL), "nobody would report it");
        let error = watch.guard(|| -> Result<()> {
            assert!(!watch.note(DIED), "it follows from nothing");
            assert!(on_device(&watch, LOST) && on_device(&watch, FULL) && watch.note(DIED));
            panic!("{DIED}")
        });
        assert_eq!(failure(error), DeviceFailure::of(LOST));
    }

    #[test]
    fn what_nobody_waited_for_is_reported() {
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
    fn guards_within_guards_forget_nothing() {
        let watch = Watch::new();
        let inner = watch.guard(|| {
            on_device(&watch, FULL);
            Ok(failure(watch.guard(|| Ok(()))))
        });
        assert_eq!(inner.unwrap(), DeviceFailure::of(FULL), "met before the inner one began");
        let outer = watch.guard(|| {
            watch.guard(|| Ok(()))?;
            on_device(&watch, FULL);
            Ok(())
        });
        assert_eq!(failure(outer), DeviceFailure::of(FULL), "met after the inner one");
    }

    #[test]
    fn what_was_dealt_with_stays_so() {
        let watch = Watch::new();
        let tried = watch.guard(|| {
            let inner = watch.guard(|| Ok(on_device(&watch, LOST)));
            assert_eq!(failure(inner), DeviceFailure::of(LOST));
            // What had still been waiting for the device.
            on_device(&watch, LOST);
            Ok(())
        });
        assert_eq!(failure(tried), None, "an inner guard");
        let caught = watch.guard(|| {
            watch.note(FULL);
            Ok(())
        });
        assert_eq!(failure(caught), None, "a panic that was caught in the same thread");
        let tuned = watch.guard(|| {
            let stream = StreamId::current();
            let nested = format!("{HANDED_ON}: CallError(task panicked: {FULL})");
            let met = || stream.executes(|| watch.note(FULL) && watch.note(&nested));
            Ok(thread::scope(|scope| scope.spawn(met).join().unwrap()))
        });
        assert!(tuned.unwrap(), "a kernel that was tried");
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
    fn failures_of_other_threads_are_theirs() {
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
        assert_eq!(failure(ours), None, "one that is guarded, and one that is not");
        assert!(watch.state().notes.is_empty(), "nothing is left for later guards");
    }
}
