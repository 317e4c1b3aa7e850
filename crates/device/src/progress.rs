//! Progress reports. Libraries report to a [`Sink`] and print nothing themselves; the program decides what to display.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

/// Receives progress reports, for example a terminal's progress bars.
pub trait Sink: Send + Sync {
    /// Called when a task starts; the returned watch follows it.
    fn begin(&self, task: &Task) -> Box<dyn Watch>;
    /// A permanent line such as `sft  up to date`. `stage` is its subject, or `warning`.
    fn note(&self, stage: &str, text: &str);
}

/// Receives the progress of one task. Dropped without [`Self::finish`] if the task fails.
pub trait Watch {
    /// Called after `task.done` has grown. `message` is shown beside rate and time left.
    fn advance(&mut self, task: &Task, message: &str);
    /// Called when the task is complete. `message` summarises it.
    fn finish(&mut self, task: &Task, message: &str);
}

/// State of a task.
#[derive(Clone, Debug)]
pub struct Task {
    /// Name of the task, such as `align`.
    pub stage: String,
    /// Unit of the counts, plural: `steps`, `pairs`, `tokens`.
    pub unit: &'static str,
    /// Units in total.
    pub total: usize,
    /// Units done, including those of earlier processes.
    pub done: usize,
    /// Units done by earlier processes; excluded from the rate.
    earlier: usize,
    begun: Instant,
}

impl Task {
    /// Time since the task started in this process.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Units per second in this process.
    pub fn rate(&self) -> f64 {
        (self.done - self.earlier) as f64 / self.elapsed().as_secs_f64().max(1e-9)
    }

    /// Estimated time left at [`Self::rate`].
    pub fn time_left(&self) -> Duration {
        let left = self.total.saturating_sub(self.done) as f64 / self.rate().max(1e-9);
        Duration::from_secs_f64(left.min(1e9))
    }
}

/// A handle on a [`Sink`], cheap to clone.
#[derive(Clone)]
pub struct Reporter(Arc<dyn Sink>);

impl Reporter {
    /// A reporter whose reports go to `sink`.
    pub fn new(sink: impl Sink + 'static) -> Self {
        Self(Arc::new(sink))
    }

    /// A reporter that discards everything.
    pub fn silent() -> Self {
        Self::new(Silent)
    }

    /// Starts a task of `total` units, of which earlier processes did `done`.
    pub fn begin(&self, stage: &str, unit: &'static str, total: usize, done: usize) -> Progress {
        let begun = Instant::now();
        let task = Task { stage: stage.to_owned(), unit, total, done, earlier: done, begun };
        Progress { watch: self.0.begin(&task), task }
    }

    /// Reports a permanent line about `stage`.
    pub fn note(&self, stage: &str, text: impl AsRef<str>) {
        self.0.note(stage, text.as_ref());
    }

    /// Reports a warning: a permanent line with `warning` as its stage.
    pub fn warn(&self, text: impl AsRef<str>) {
        self.0.note("warning", text.as_ref());
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reporter")
    }
}

/// A task in progress, as [`Reporter::begin`] returns it.
pub struct Progress {
    task: Task,
    watch: Box<dyn Watch>,
}

impl Progress {
    /// Reports `units` more as done.
    pub fn advance(&mut self, units: usize, message: &str) {
        self.task.done += units;
        self.watch.advance(&self.task, message);
    }

    /// Counts `units` as done by an earlier process, without a report.
    pub fn skip(&mut self, units: usize) {
        self.task.done += units;
        self.task.earlier += units;
    }

    /// Seconds since the task started.
    pub fn seconds(&self) -> f64 {
        self.task.elapsed().as_secs_f64()
    }

    /// Completes the task.
    pub fn finish(mut self, message: &str) {
        self.watch.finish(&self.task, message);
    }
}

struct Silent;

impl Sink for Silent {
    fn begin(&self, _task: &Task) -> Box<dyn Watch> {
        Box::new(Self)
    }

    fn note(&self, _stage: &str, _text: &str) {}
}

impl Watch for Silent {
    fn advance(&mut self, _task: &Task, _message: &str) {}

    fn finish(&mut self, _task: &Task, _message: &str) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl Lines {
        fn push(&self, line: String) {
            self.0.lock().unwrap().push(line);
        }
    }

    impl Sink for Lines {
        fn begin(&self, task: &Task) -> Box<dyn Watch> {
            self.push(format!("{} {}/{} {}", task.stage, task.done, task.total, task.unit));
            Box::new(self.clone())
        }

        fn note(&self, stage: &str, text: &str) {
            self.push(format!("{stage}: {text}"));
        }
    }

    impl Watch for Lines {
        fn advance(&mut self, task: &Task, message: &str) {
            self.push(format!("{} {message}", task.done));
        }

        fn finish(&mut self, task: &Task, message: &str) {
            self.push(format!("{} of {} {message}", task.done, task.total));
        }
    }

    #[test]
    fn what_is_reported_reaches_the_sink() {
        let lines = Lines::default();
        let reporter = Reporter::new(lines.clone());
        let mut progress = reporter.begin("sft", "steps", 10, 2);
        progress.advance(3, "loss 1");
        progress.skip(5);
        reporter.warn("look");
        progress.finish("done");
        let expected = ["sft 2/10 steps", "5 loss 1", "warning: look", "10 of 10 done"];
        assert_eq!(*lines.0.lock().unwrap(), expected);
    }

    #[test]
    fn the_rate_only_counts_this_process() {
        let mut progress = Reporter::silent().begin("sft", "steps", 100, 90);
        progress.task.begun -= Duration::from_secs(10);
        progress.advance(5, "");
        progress.skip(1);
        assert!((progress.task.rate() - 0.5).abs() < 0.01);
        assert!((progress.task.time_left().as_secs_f64() - 8.0).abs() < 0.1);
    }
}
