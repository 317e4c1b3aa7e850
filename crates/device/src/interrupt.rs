//! Stopping a long task from outside, such as by Ctrl-C: a task that can be resumed listens, and stops where nothing is lost.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);
static LISTENERS: AtomicUsize = AtomicUsize::new(0);

/// A task stopped because it was asked to, after it had saved its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// While it exists, [`requested`] is asked often, so that a request can wait for the next good moment.
#[derive(Debug)]
pub struct Listener(());

impl Listener {
    /// A task that will ask.
    #[allow(clippy::new_without_default, reason = "it counts")]
    pub fn new() -> Self {
        LISTENERS.fetch_add(1, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        LISTENERS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Asks the running task to stop. Whether one will: if none listens, the caller has to end the process.
pub fn request() -> bool {
    REQUESTED.store(true, Ordering::SeqCst);
    LISTENERS.load(Ordering::SeqCst) > 0
}

/// Whether the running task should stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_waits_only_for_those_who_listen() {
        let listener = Listener::new();
        drop(listener);
        assert_eq!(LISTENERS.load(Ordering::SeqCst), 0);
        let _first = Listener::new();
        let second = Listener::new();
        drop(second);
        assert!(!requested());
        assert!(request() && requested());
    }
}
